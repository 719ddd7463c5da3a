"""What the click model is trained to say: of clicks, and of what was searched next.

Knows nothing of optimisers.
"""

# N impressions (rows), B requests of a batch, C candidates, F features, S scenarios, P positions
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.clicks.calibration import pal_loss
from train.clicks.data import ClickBatch
from train.clicks.model import ClickModel

_TOWER_SPEED = 20.0  # the tower has few parameters and far to go: its steps are so much larger


class FeatureRows(NamedTuple):
    """Impressions without their texts."""

    features: Tensor  # float32 (N, F)
    scenario: Tensor  # int64 (N)
    position: Tensor  # int64 (N)
    clicked: Tensor  # float32 (N)


class ClickLoss(nn.Module):
    """Click model and position tower of PAL, as they are trained together."""

    def __init__(
        self, model: ClickModel, num_positions: int, curves: Sequence[Sequence[float]]
    ) -> None:
        """Adds a tower.

        Args:
            model: the click model.
            num_positions: P.
            curves: S of them: p(seen | position) of each scenario to start from; beyond its end,
                which may be at once, it is 1 / sqrt(position).
        """
        super().__init__()
        self.model = model
        seen_SP = torch.arange(1.0, num_positions + 1).pow(-0.5).repeat(len(curves), 1)
        for seen_P, curve in zip(seen_SP, curves, strict=True):
            own = torch.tensor(curve[:num_positions])
            seen_P[: len(own)] = own
        self.start: Tensor
        self.register_buffer("start", torch.special.logit(seen_SP[:, 1:], eps=1e-3))
        # A vector, as what is no matrix of a layer: Muon takes matrices (train.models.optimizer).
        self.tower = nn.Parameter(torch.zeros(self.start.numel()))

    def forward(self, batch: ClickBatch) -> Tensor:
        """Returns the mean loss of the shown candidates, a scalar."""
        logits_BC = self.model.packed_logits(batch.packed, batch.features)
        seen_BC = self._seen()[batch.scenario[:, None], batch.position]
        shown_BC = batch.packed.suffix_mask
        return pal_loss(logits_BC[shown_BC], seen_BC[shown_BC], batch.clicked[shown_BC]).mean()

    def of_features(self, rows: FeatureRows) -> Tensor:
        """Returns the mean loss of rows that are judged by their features alone, a scalar."""
        seen_N = self._seen()[rows.scenario, rows.position]
        logits_N = self.model.head.feature_logits(rows.features)
        return pal_loss(logits_N, seen_N, rows.clicked).mean()

    def _seen(self) -> Tensor:
        """Returns p(seen | position), (scenarios, positions)."""
        seen_SP = torch.sigmoid(self.start + _TOWER_SPEED * self.tower.view_as(self.start))
        return torch.cat([torch.ones_like(seen_SP[:, :1]), seen_SP], dim=1)


class ChoiceLoss(nn.Module):
    """Click model as it learns from sessions: the first candidate is the right one."""

    def __init__(self, model: ClickModel) -> None:
        """Takes the model."""
        super().__init__()
        self.model = model

    def forward(self, batch: ClickBatch) -> Tensor:
        """Returns the mean cross-entropy of choosing the right candidate, a scalar."""
        logits_BC = self.model.packed_logits(batch.packed, batch.features)
        logits_BC = logits_BC.masked_fill(~batch.packed.suffix_mask, -1e9)
        return F.cross_entropy(logits_BC, torch.zeros_like(batch.scenario))
