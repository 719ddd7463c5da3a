"""Trains the part of the click model that judges by features alone. Knows nothing of texts."""

# N impressions (rows), F features
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.formats.features import NUM_LOG_FEATURES
from train.clicks.data import ClickRequests
from train.clicks.losses import ClickLoss, FeatureRows

_NUM_EPOCHS = 3
_BATCH_SIZE = 2048  # rows
_LEAST_STEPS = 200
_LEARNING_RATE = 3e-3
Ids = NDArray[np.int64]


def fit_features(
    loss: ClickLoss, requests: ClickRequests, chosen: Ids, *, hidden_share: float, seed: int
) -> None:
    """Trains what judges by features alone, and has the rest start from there.

    That is seconds of work, and a click model of its own; what reads texts then learns what they
    say beyond it.

    Args:
        loss: of the model, its features standardised.
        requests: all of them.
        chosen: those to train on.
        hidden_share: see `features_of`.
        seed: of what is drawn.
    """
    head = loss.model.head
    device = head.out.weight.device  # an earlier training may have moved the model
    loss.to(device)
    trained = [*head.features.parameters(), *head.mixed.parameters(), *head.out.parameters()]
    trained.append(loss.tower)
    optimizer = torch.optim.AdamW(trained, lr=_LEARNING_RATE, weight_decay=0.0)
    rows = requests.rows(chosen)
    num_steps = max(_LEAST_STEPS, _NUM_EPOCHS * len(rows) // _BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=num_steps)
    request_N = requests.request_N
    rng = np.random.default_rng(seed)
    for step in range(num_steps):
        drawn = rng.choice(rows, _BATCH_SIZE)
        batch = FeatureRows(
            features_of(requests, drawn, hidden_share, seed + step).to(device),
            torch.from_numpy(requests.scenario_R[request_N[drawn]]).to(device),
            torch.from_numpy(requests.position_N[drawn]).to(device),
            torch.from_numpy(requests.clicked_N[drawn].astype(np.float32)).to(device),
        )
        optimizer.zero_grad()
        loss.of_features(batch).backward()
        optimizer.step()
        schedule.step()
    head.forget_text()


def features_of(requests: ClickRequests, rows: Ids, hidden_share: float, seed: int) -> Tensor:
    """Returns features float32 (N, F) of rows.

    Args:
        requests: all of them.
        rows: N of their rows.
        hidden_share: of the rows, without what the log knows of the text itself; what its tokens
            say stays, which leaving the text out of the counts made worse (docs/decisions.md).
        seed: of that choice.
    """
    features_NF = requests.features_NF[rows]
    is_hidden_N = np.random.default_rng(seed).random(len(rows)) < hidden_share
    features_NF[is_hidden_N, :NUM_LOG_FEATURES] = 0
    return torch.from_numpy(features_NF)
