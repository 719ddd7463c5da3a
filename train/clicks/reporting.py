"""How good a click model is on held-out impressions, beside what knows positions alone.

Knows nothing of the model.
"""

# R requests, N impressions (rows), P positions
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.formats.features import FEATURE_NAMES
from train.clicks.calibration import Examination, Platt, Quality, auc, gauc, quality
from train.clicks.data import ClickRequests
from train.clicks.fitting import ClickFit, half, is_known, scenario_rows, seen_probability

_LOG_POPULARITY = FEATURE_NAMES.index("log_popularity")
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickReport:
    """Quality on the validation split of one scenario, or of all ("all")."""

    num_requests: int
    num_impressions: int
    click_rate: float
    model: Quality  # p(click | seen) * p(seen | position)
    position_only: Quality  # click rate per scenario and position in the training split
    popularity_auc: float
    popularity_gauc: float
    logit_gauc: float  # the model without the position it was shown at
    num_swapped: int  # held-out impressions that exploration moved

    def describe(self, name: str) -> str:
        """Returns one line for people."""
        model, position = self.model, self.position_only
        return (
            f"click model, {name}: {self.num_impressions} held-out impressions, "
            f"click rate {self.click_rate:.4f}, AUC {model.auc:.3f} "
            f"(position only {position.auc:.3f}, popularity {self.popularity_auc:.3f}), "
            f"GAUC {model.gauc:.3f} ({position.gauc:.3f}, {self.popularity_gauc:.3f}), "
            f"normalised entropy {model.normalised_entropy:.3f} "
            f"({position.normalised_entropy:.3f}), relative ECE {model.relative_ece:.3f}"
        )


def click_reports(
    requests: ClickRequests, train: Ids, valid: Ids, logits: Floats, fit: ClickFit
) -> dict[str, ClickReport]:
    """Returns the reports per scenario that has held-out impressions, and of "all".

    Args:
        requests: all of them.
        train: those trained on.
        valid: those held out.
        logits: of the rows of the held-out ones, in their order.
        fit: what was fitted to them. Entropy and calibration error of each half are measured with
            what was fitted to the other.
    """
    rows = requests.rows(valid)
    half_N = half(requests, valid)
    served_N, crossed_N, baseline_N = (np.zeros(len(rows)) for _ in range(3))
    masks = scenario_rows(requests, rows)
    for name, mask in masks.items():
        rates_P = _position_rates(requests, train, name)
        baseline_N[mask] = rates_P[requests.position_N[rows[mask]]]
        examination = fit.examinations.get(name)
        fitted = fit.calibrations[name], fit.unknown_calibrations[name]
        served_N[mask] = _probability(requests, rows[mask], logits[mask], examination, *fitted)
        for number, own in enumerate(fit.halves):
            own_N = mask & (half_N == number)
            fitted = own.calibrations[name], own.unknown_calibrations[name]
            crossed_N[own_N] = _probability(
                requests, rows[own_N], logits[own_N], examination, *fitted
            )
    masks["all"] = np.ones(len(rows), np.bool_)
    result: dict[str, ClickReport] = {}
    for name, mask in masks.items():
        own = rows[mask]
        clicked_N, request_N = requests.clicked_N[own], requests.request_N[own]
        popularity_N = requests.features_NF[own, _LOG_POPULARITY]
        result[name] = ClickReport(
            num_requests=len(np.unique(request_N)),
            num_impressions=len(own),
            click_rate=float(clicked_N.mean()),
            # Two halves have an order of their own each, which together is none.
            model=replace(
                quality(crossed_N[mask], clicked_N, request_N), auc=auc(served_N[mask], clicked_N)
            ),
            position_only=quality(baseline_N[mask], clicked_N, request_N),
            popularity_auc=auc(popularity_N, clicked_N),
            popularity_gauc=gauc(popularity_N, clicked_N, request_N),
            logit_gauc=gauc(logits[mask], clicked_N, request_N),
            num_swapped=int((requests.rank_N[own] != requests.position_N[own]).sum()),
        )
    return result


def _probability(
    requests: ClickRequests,
    rows: Ids,
    logits: Floats,
    examination: Examination | None,
    known: Platt,
    unknown: Platt,
) -> NDArray[np.float64]:
    """Returns p(click) at their positions of rows (N), float64."""
    is_known_N = is_known(requests, rows)
    level_N = np.where(is_known_N, known.slope, unknown.slope) * logits.astype(np.float64)
    level_N += np.where(is_known_N, known.intercept, unknown.intercept)
    seen_N = seen_probability(examination, requests.position_N[rows])
    return seen_N / (1 + np.exp(-level_N))


def _position_rates(requests: ClickRequests, train: Ids, scenario: str) -> NDArray[np.float64]:
    """Returns click rates (P) per position in the training split, shrunk to their mean."""
    rows = requests.rows(train)
    mask = scenario_rows(requests, rows).get(scenario)
    num_positions = int(requests.position_N.max()) + 1
    if mask is None:
        return np.full(num_positions, requests.clicked_N[rows].mean())
    own = rows[mask]
    shown_P = np.bincount(requests.position_N[own], minlength=num_positions)
    clicks_P = np.bincount(
        requests.position_N[own], requests.clicked_N[own].astype(np.float64), num_positions
    )
    return (clicks_P + requests.clicked_N[own].mean()) / (shown_P + 1)
