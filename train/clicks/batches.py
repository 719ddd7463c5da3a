"""Requests in batches of similar length. Knows nothing of the model."""

# B requests of a batch, C candidates of a request, F features, L packed tokens
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.formats.features import FEATURE_NAMES, NUM_LOG_FEATURES
from train.clicks.data import ClickBatch, ClickRequests
from train.models.shared_prefix import Packed, collate, pack

_MAX_MASK = 2**25  # numbers of a batch's attention mask, B * L * L: 128 MB
Ids = NDArray[np.int64]


def make_batch(
    requests: ClickRequests, chosen: Sequence[int], *, hidden_share: float = 0.0, seed: int = 0
) -> ClickBatch:
    """Returns the batch of some requests.

    Args:
        requests: all of them.
        chosen: numbers of the batch's requests.
        hidden_share: of the candidates, whose features from the log are set to 0: the model
            learns to judge texts that the log does not know, of which training has next to none.
        seed: of that choice.
    """
    packed: list[Packed] = []
    for r in chosen:
        shown = requests.candidate_N[requests.offsets[r] : requests.offsets[r + 1]]
        packed.append(pack(requests.contexts[r], [requests.candidates[c] for c in shown]))
    width = max(int(requests.offsets[r + 1] - requests.offsets[r]) for r in chosen)
    shape = (len(chosen), width)
    features = np.zeros((*shape, len(FEATURE_NAMES)), np.float32)
    position, clicked = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for i, r in enumerate(chosen):
        start, end = requests.offsets[r], requests.offsets[r + 1]
        features[i, : end - start] = requests.features_NF[start:end]
        position[i, : end - start] = requests.position_N[start:end]
        clicked[i, : end - start] = requests.clicked_N[start:end]
    if hidden_share:
        is_hidden = np.random.default_rng([seed, *chosen]).random(shape) < hidden_share
        features[is_hidden, :NUM_LOG_FEATURES] = 0
    return ClickBatch(
        packed=collate(packed, multiple_of=8),
        features=torch.from_numpy(features),
        position=torch.from_numpy(position),
        clicked=torch.from_numpy(clicked),
        scenario=torch.from_numpy(requests.scenario_R[list(chosen)]),
    )


def batches_by_length(
    requests: ClickRequests, chosen: Ids, *, batch_size: int
) -> Iterator[list[int]]:
    """Yields the chosen requests, shortest first, at most `batch_size` at a time.

    Fewer of long ones, whose attention masks would take much memory; one alone is always a batch.
    """
    batch: list[int] = []
    lengths = np.array([requests.num_tokens(r) for r in chosen])
    for place in np.argsort(lengths, kind="stable"):
        is_large = (len(batch) + 1) * int(lengths[place]) ** 2 > _MAX_MASK
        if batch and (is_large or len(batch) == batch_size):
            yield batch
            batch = []
        batch.append(int(chosen[place]))
    if batch:
        yield batch


def training_batches(
    requests: ClickRequests, chosen: Ids, *, num_epochs: float, batch_size: int, seed: int
) -> list[list[int]]:
    """Returns the batches in which `chosen` requests are trained on, all epochs after another.

    Random, but the requests of a batch are of similar length: of every 50 batches' worth, sorted
    by length, whole batches are shuffled; what is left over comes last.
    """
    random = np.random.default_rng(seed)
    left = max(min(batch_size, len(chosen)), round(num_epochs * len(chosen)))
    order: list[list[int]] = []
    for _ in range(int(np.ceil(num_epochs))):
        shuffled = random.permutation(chosen)
        for start in range(0, len(shuffled), 50 * batch_size):
            block = shuffled[start : start + 50 * batch_size]
            batches = list(batches_by_length(requests, block, batch_size=batch_size))
            order += [batches[i] for i in random.permutation(len(batches) - 1)] + batches[-1:]
    taken: list[list[int]] = []
    for batch in order:
        if left > 0:
            taken.append(batch[:left])
            left -= len(batch)
    return taken
