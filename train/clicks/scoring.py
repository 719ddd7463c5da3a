"""Runs a click model over requests, in batches of similar length. Knows nothing of training."""

# N impressions (rows), B requests of a batch, C candidates, E activations of the head
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.clicks.batches import batches_by_length, make_batch
from train.clicks.data import ClickRequests
from train.clicks.model import ClickModel
from train.models.shared_prefix import PackedBatch

_BATCH_SIZE = 128  # requests
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


def click_logits(model: ClickModel, requests: ClickRequests, chosen: Ids) -> Floats:
    """Returns logits float32 (N) of the rows of `chosen` requests, as `requests.rows` orders."""
    return _row_values(model, requests, chosen, model.packed_logits)


def click_activations(
    model: ClickModel,
    requests: ClickRequests,
    chosen: Ids,
    *,
    hidden_share: float = 0.0,
    seed: int = 0,
) -> Floats:
    """Returns what the head's last layer reads, float32 (N, E), rows as `requests.rows` orders.

    Args:
        model: click model.
        requests: all of them.
        chosen: which are read.
        hidden_share: see `make_batch`.
        seed: see `make_batch`.
    """
    return _row_values(model, requests, chosen, model.packed_activations, hidden_share, seed)


@torch.no_grad()
def _row_values(
    model: ClickModel,
    requests: ClickRequests,
    chosen: Ids,
    read: Callable[[PackedBatch, Tensor], Tensor],
    hidden_share: float = 0.0,
    seed: int = 0,
) -> Floats:
    """Returns what `read` gives of batches, (B, C, ...), by row."""
    device = next(model.parameters()).device
    value_of: dict[int, Floats] = {}
    for part in batches_by_length(requests, chosen, batch_size=_BATCH_SIZE):
        batch = make_batch(requests, part, hidden_share=hidden_share, seed=seed)
        packed = type(batch.packed)(*(tensor.to(device) for tensor in batch.packed))
        values_BC = read(packed, batch.features.to(device)).cpu().numpy()
        for row, request in enumerate(part):
            num_shown = requests.offsets[request + 1] - requests.offsets[request]
            value_of[request] = values_BC[row, :num_shown]
    return np.concatenate([value_of[r] for r in chosen.tolist()])
