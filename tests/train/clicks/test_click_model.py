"""The click model itself, and the requests that it reads."""

from pathlib import Path
from random import Random

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaModel

from engine.answering.ranking import explored
from engine.formats.features import FEATURE_NAMES
from train.clicks.batches import make_batch
from train.clicks.data import intended_ranks, read_requests
from train.clicks.losses import ClickLoss
from train.clicks.model import ClickModel, load_click_model, save_click_model
from train.models.backbone import llama_config, shapes_of
from train.models.shared_prefix import collate, pack

SHAPE = shapes_of("tiny").click_model
CONTEXTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
CANDIDATES = [[[20], [21, 22, 23]], [[24, 25]], [[26, 27], [20], [28, 29, 30, 31]]]


@pytest.fixture
def model() -> ClickModel:
    torch.manual_seed(0)
    config = llama_config(SHAPE, 256)
    config.initializer_range = 0.3  # large weights: a leak between candidates would be visible
    return ClickModel(LlamaModel(config)).eval()


def _features(width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(len(CONTEXTS), width, len(FEATURE_NAMES), generator=generator)


def _padded(rows: list[list[int]], length: int) -> tuple[list[list[int]], list[list[int]]]:
    ids = [row + [0] * (length - len(row)) for row in rows]
    return ids, [[1] * len(row) + [0] * (length - len(row)) for row in rows]


@torch.no_grad()
def test_packed_logits_equal_one_pass_per_candidate(model: ClickModel) -> None:
    features = _features(3)
    context_ids, context_mask = _padded(CONTEXTS, 6)
    rows = [_padded(c + [[]] * (3 - len(c)), 5) for c in CANDIDATES]
    slow = model(
        torch.tensor(context_ids),
        torch.tensor(context_mask),
        torch.tensor([ids for ids, _ in rows]),
        torch.tensor([mask for _, mask in rows]),
        features,
    )
    batch = collate([pack(p, s) for p, s in zip(CONTEXTS, CANDIDATES, strict=True)], multiple_of=16)
    fast = model.packed_logits(batch, features)
    assert slow.shape == fast.shape == (3, 3)
    assert slow.dtype == fast.dtype == torch.float32
    exists = batch.suffix_mask
    torch.testing.assert_close(slow[exists], fast[exists], atol=1e-5, rtol=1e-4)
    assert torch.isfinite(slow).all()  # also of missing candidates
    assert slow[exists].std() > 0.01


@torch.no_grad()
def test_other_candidates_do_not_change_a_logit(model: ClickModel) -> None:
    features = _features(3)
    together = model.packed_logits(collate([pack(CONTEXTS[2], CANDIDATES[2])]), features[2:3])
    for i, candidate in enumerate(CANDIDATES[2]):
        alone = model.packed_logits(
            collate([pack(CONTEXTS[2], [candidate])]), features[2:3, i : i + 1]
        )
        torch.testing.assert_close(alone[0, 0], together[0, i], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_saved_model_loads_to_the_same_logits(model: ClickModel, tmp_path: Path) -> None:
    model.standardise(3 * torch.rand(100, len(FEATURE_NAMES)) + 1)
    save_click_model(model, tmp_path)
    parts = ("features", "mixed", "hidden", "out")
    names = {f"head.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    names |= {"head.mean", "head.scale"}
    assert set(load_file(tmp_path / "head.safetensors")) == names
    batch = collate([pack(p, s) for p, s in zip(CONTEXTS, CANDIDATES, strict=True)])
    loaded = load_click_model(tmp_path)
    features = _features(3)
    torch.testing.assert_close(
        loaded.packed_logits(batch, features), model.packed_logits(batch, features)
    )


def test_model_of_other_features_is_refused(tmp_path: Path) -> None:
    other = ClickModel(LlamaModel(llama_config(SHAPE, 256)), num_features=3)
    save_click_model(other, tmp_path)
    with pytest.raises(ValueError, match="trained on 3 features"):
        load_click_model(tmp_path)


def test_requests_are_read_as_they_were_shown(clicked_run: Path) -> None:
    requests = read_requests(clicked_run, max_edges=50)
    assert requests is not None
    rows = pq.read_table(clicked_run / "mined/impressions.parquet").to_pylist()
    assert len(requests) == len(rows) // 5
    assert requests.is_valid_R.sum() == len(requests) // 5
    searches = {
        q["text"]: q["num_searches_before_cut"]
        for q in pq.read_table(clicked_run / "mined/queries.parquet").to_pylist()
    }
    npmi = {
        (p["source"], p["target"]): p["association"]
        for p in pq.read_table(clicked_run / "mined/pairs.parquet").to_pylist()
    }
    num_linked = 0
    for i, row in enumerate(rows[:2000]):
        assert requests.request_N[i] == i // 5
        assert requests.position_N[i] == row["position"] - 1
        assert requests.clicked_N[i] == row["clicked"]
        features = dict(zip(FEATURE_NAMES, requests.features_NF[i].tolist(), strict=True))
        assert features["log_popularity"] == pytest.approx(
            np.log1p(searches[row["text"]]) / 10, rel=1e-5
        )
        assert features["npmi"] == pytest.approx(npmi.get((row["query"], row["text"]), 0))
        num_linked += (row["query"], row["text"]) in npmi
    assert num_linked > 0
    batch = make_batch(requests, [0, 7])
    assert batch.features.shape == (2, 5, len(FEATURE_NAMES))
    assert batch.position.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_swapped_neighbours_get_the_rank_they_were_meant_for() -> None:
    low, high = 0.02, 0.9
    requests = [
        # positions shown, their propensities, ranks meant
        ([0, 1, 2], [high, high, high], [0, 1, 2]),
        ([0, 1, 2], [high, low, low], [0, 2, 1]),
        ([0, 1, 2, 3, 4], [low, low, low, low, high], [1, 0, 3, 2, 4]),
        ([0, 1, 2, 3, 4], [low, low, high, low, low], [1, 0, 2, 4, 3]),
        ([0, 1, 3], [low, low, low], [1, 0, 3]),  # position 2 is missing: 3 stays as it is
        ([0, 1, 2], [low, low, low], [1, 0, 2]),  # the first swaps with the second, 3 is missing
        ([1, 2], [low, low], [1, 2]),  # perhaps a pair, perhaps halves of two
        ([0, 2], [low, low], [0, 2]),
        ([0, 1], [low, low], [1, 0]),
    ]
    position, propensity, rank = (
        np.concatenate([np.array(r[i]) for r in requests]) for i in range(3)
    )
    offsets = np.cumsum([0, *(len(r[0]) for r in requests)])
    assert intended_ranks(position, propensity, offsets).tolist() == rank.tolist()
    stayed = np.ones(len(position))
    assert intended_ranks(position, stayed, offsets).tolist() == position.tolist()


@pytest.mark.parametrize("kept", [1.0, 0.8, 0.5])
def test_no_row_is_taken_for_swapped_with_another_where_rows_are_missing(kept: float) -> None:
    random, randomness = np.random.default_rng(0), Random(0)
    position, propensity, rank, offsets = [], [], [], [0]
    for _ in range(5000):
        order, likely = explored(6, 0.5, randomness)
        rows = [i for i in range(6) if random.random() < kept]
        position += rows
        propensity += [likely[i] for i in rows]
        rank += [order[i] for i in rows]
        offsets.append(len(position))
    found = intended_ranks(np.array(position), np.array(propensity), np.array(offsets))
    is_moved = found != position
    assert (found == rank)[is_moved].all()
    assert is_moved.sum() >= kept**3 * (np.array(rank) != position).sum() > 0


def test_the_tower_starts_from_the_curves_it_is_given() -> None:
    model = ClickModel(LlamaModel(llama_config(SHAPE, 256)))
    plain = ClickLoss(model, 4, [[], []])
    given = ClickLoss(model, 4, [[1.0, 0.3, 0.2], []])
    row = [1, 2**-0.5, 3**-0.5, 0.5]
    assert torch.sigmoid(plain.start)[0].tolist() == pytest.approx(row[1:])
    assert torch.sigmoid(given.start)[0].tolist() == pytest.approx([0.3, 0.2, 0.5])
    assert torch.sigmoid(given.start)[1].tolist() == pytest.approx(row[1:])
