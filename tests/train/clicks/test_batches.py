"""Batches hold every request once an epoch, and no more than memory allows."""

from pathlib import Path

import numpy as np
import torch

from engine.formats.features import FEATURE_NAMES, NUM_LOG_FEATURES
from train.clicks.batches import batches_by_length, make_batch, training_batches
from train.clicks.data import ClickRequests, read_requests


def panels(sizes: list[int]) -> ClickRequests:
    """Returns requests with so many candidates of eight tokens each."""
    num_rows = sum(sizes)
    position_N = np.concatenate([np.arange(size) for size in sizes])
    return ClickRequests(
        scenarios=["suggestion"],
        scenario_R=np.zeros(len(sizes), np.int64),
        query_R=np.arange(len(sizes)),
        is_valid_R=np.zeros(len(sizes), np.bool_),
        contexts=[[1, 2, 3, 4]] * len(sizes),
        offsets=np.cumsum([0, *sizes]),
        candidates=[list(range(10, 18))],
        candidate_N=np.zeros(num_rows, np.int64),
        features_NF=np.zeros((num_rows, len(FEATURE_NAMES)), np.float32),
        position_N=position_N,
        rank_N=position_N,
        clicked_N=np.zeros(num_rows, np.bool_),
    )


def test_training_batches_hold_every_request_once_an_epoch(clicked_run: Path) -> None:
    requests = read_requests(clicked_run, max_edges=50)
    assert requests is not None
    chosen = np.flatnonzero(~requests.is_valid_R)
    batches = training_batches(requests, chosen, num_epochs=2, batch_size=32, seed=0)
    order = [r for batch in batches for r in batch]
    assert sorted(order[: len(chosen)]) == sorted(order[len(chosen) :]) == chosen.tolist()
    assert {len(batch) for batch in batches} == {32}  # 2,400 requests
    assert training_batches(requests, chosen, num_epochs=2, batch_size=32, seed=0) == batches
    part = training_batches(requests, chosen, num_epochs=0.251, batch_size=32, seed=0)
    assert [r for batch in part for r in batch] == order[:602]
    (one,) = training_batches(requests, chosen[:5], num_epochs=1e-6, batch_size=32, seed=0)
    assert sorted(one) == chosen[:5].tolist()


def test_a_batch_of_long_panels_has_few_of_them() -> None:
    sizes = [5, 500, 6, 501, 7, 2000, 8] * 10
    requests = panels(sizes)
    everyone = np.arange(len(sizes))
    trained = training_batches(requests, everyone, num_epochs=1, batch_size=32, seed=0)
    read = list(batches_by_length(requests, everyone, batch_size=32))
    for batches in (trained, read):
        assert sorted(r for batch in batches for r in batch) == everyone.tolist()
        for batch in batches:
            longest = max(requests.num_tokens(r) for r in batch)
            assert len(batch) == 1 or 4 * len(batch) * longest**2 <= 2**27, "bytes of the mask"
            assert len(batch) <= 32
    assert max(len(batch) for batch in trained) == 32, "short panels fill a batch as ever"


def test_hidden_candidates_lose_what_the_log_says_and_nothing_else(clicked_run: Path) -> None:
    requests = read_requests(clicked_run, max_edges=50)
    assert requests is not None
    chosen = list(range(40))
    plain = make_batch(requests, chosen).features
    hidden = make_batch(requests, chosen, hidden_share=0.5, seed=1).features
    lost = (hidden[..., :NUM_LOG_FEATURES] == 0).all(-1) & (plain[..., :NUM_LOG_FEATURES] != 0).any(
        -1
    )
    known = (plain[..., :NUM_LOG_FEATURES] != 0).any(-1)
    assert 0.3 < lost.sum() / known.sum() < 0.7
    assert torch.equal(hidden[..., NUM_LOG_FEATURES:], plain[..., NUM_LOG_FEATURES:])
    assert torch.equal(hidden[~lost], plain[~lost])
    again = make_batch(requests, chosen, hidden_share=0.5, seed=1).features
    assert torch.equal(hidden, again)
