"""Does the stated uncertainty of the click model hold? Intervals against the simulated truth.

Knows nothing of how impressions were read.
"""

# N impressions, B requests of a batch, C candidates, E activations of the head
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.execution.models import ScoreRow, candidate_ids
from engine.formats.features import FEATURE_NAMES
from engine.formats.manifest import MAX_CANDIDATE_TOKENS
from train.clicks.model import ClickModel, load_click_model
from train.clicks.uncertainty import ClickUncertainty, load_uncertainty
from train.evaluation.intervals import Floats
from train.models.shared_prefix import collate, pack

_BATCH_SIZE = 64  # requests
_IS_KNOWN = FEATURE_NAMES.index("is_known")
LEVELS = (0.5, 0.8, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How often the true p(click | seen) lies where it should."""

    num_items: int
    inside: dict[str, float]  # level, such as "0.95" -> share of truths inside the interval
    above: float  # share of truths above the lower bound of level 0.8
    lower_share: float  # mean lower bound of that level / mean prediction: how much it costs


class UncertainModel:
    """A run's click model in torch, with its uncertainty."""

    def __init__(self, directory: Path) -> None:
        """Loads run/click_model.

        Raises:
            ValueError: it was trained without uncertainty, or with other features.
        """
        self.uncertainty: ClickUncertainty = load_uncertainty(directory)
        self._model: ClickModel = load_click_model(directory)

    @torch.no_grad()
    def activations(self, rows: Sequence[ScoreRow]) -> Floats:
        """Returns what the head's last layer reads, float64 (N, E), candidates row by row."""
        read: list[Floats] = []
        for start in range(0, len(rows), _BATCH_SIZE):
            part = rows[start : start + _BATCH_SIZE]
            texts = [
                [list(candidate_ids(ids, MAX_CANDIDATE_TOKENS)) for ids in row.candidate_ids]
                for row in part
            ]
            packed = collate([pack(r.context_ids, t) for r, t in zip(part, texts, strict=True)])
            width = packed.suffix_mask.shape[1]
            features_BCF = np.zeros((len(part), width, part[0].features_CF.shape[1]), np.float32)
            for features_CF, row in zip(features_BCF, part, strict=True):
                features_CF[: len(row.features_CF)] = row.features_CF
            found = self._model.packed_activations(packed, torch.from_numpy(features_BCF))
            read += [
                activations_CE[: len(row.candidate_ids)].astype(np.float64)
                for activations_CE, row in zip(found.numpy(), part, strict=True)
            ]
        return np.concatenate(read)


def coverage(
    model: UncertainModel, scenario: str, rows: Sequence[ScoreRow], attraction_N: Floats
) -> Coverage:
    """Returns how often intervals contain the true p(click | seen) of the rows' candidates."""
    activations_NE = model.activations(rows)
    is_known_N = np.concatenate([row.features_CF[:, _IS_KNOWN] > 0 for row in rows])
    told = (scenario, activations_NE, is_known_N)
    inside: dict[str, float] = {}
    for level in LEVELS:
        low_N, high_N = model.uncertainty.interval(*told, level)
        is_inside_N = (low_N <= attraction_N) & (attraction_N <= high_N)
        inside[str(level)] = float(is_inside_N.mean())
    lower_N = model.uncertainty.lower_bound(*told)
    predicted_N = model.uncertainty.probability(*told)
    return Coverage(
        num_items=len(attraction_N),
        inside=inside,
        above=float((attraction_N >= lower_N).mean()),
        lower_share=float(lower_N.mean() / predicted_N.mean()),
    )
