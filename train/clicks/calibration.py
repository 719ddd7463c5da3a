"""From click logits to click probabilities: position likelihood, calibration, ranking measures.

The model of a click is PAL's (Guo et al., RecSys 2019):

    p(click | x, position) = p(click | x, seen) * p(seen | position),  p(seen | 1) = 1

Works on arrays of impressions, and reads the curves that came of them; knows nothing of the
network that made the logits.
"""

# N impressions, P positions
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Priors, in logits, of what each further rank of a policy tells beyond the click model: a trend
# common to all ranks and what is particular to one.
_TREND_SD, _RANK_SD = 0.5, 0.1
_SLOPE_SD, _INTERCEPT_SD = 1.0, 3.0  # weak priors around slope 1, intercept 0: no data, no change
_POWER, _POWER_SD = 0.5, 1.0  # exponent of the examination curve; its logarithm's deviation
_PARTICULAR_SD = 0.3  # logits by which a position departs from the power
EXAMINATION = "click_model/position.json"  # in a run
Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]


class Platt(NamedTuple):
    """p(click | seen) = sigmoid(slope * logit + intercept)."""

    slope: float
    intercept: float


class Examination(NamedTuple):
    """How often positions are looked at, and what else the rank in a log tells."""

    seen_P: NDArray[np.float64]  # p(seen | position), 1 at the first
    rank_effect_P: NDArray[np.float64]  # logits; zero where nothing tells rank from position


def read_examination(run: Path) -> dict[str, list[float]]:
    """Returns p(seen | position) by scenario, as the click model of a run was trained to see it.

    Raises:
        ValueError: the run has no click model.
    """
    path = run / EXAMINATION
    if not path.is_file():
        raise ValueError(f"{run}: has no click model, so how positions are seen is not known")
    return msgspec.json.decode(path.read_bytes(), type=dict[str, list[float]])


def seen_at(seen_P: Sequence[float] | Floats, places: NDArray[np.int64]) -> Floats:
    """Returns p(seen) at places, from 0; beyond the end of the curve its last value.

    Without a curve (P = 0) all places are seen.
    """
    if not len(seen_P):
        return np.ones(places.shape)
    return np.asarray(seen_P)[np.minimum(places, len(seen_P) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How well probabilities of clicks rank and calibrate; nan where undefined."""

    auc: float
    gauc: float  # mean AUC within a request, over requests with both clicks and skips
    normalised_entropy: float  # log loss / entropy of the mean click rate; 1 = knows nothing
    relative_ece: float  # expected calibration error over 10 equal bins / mean click rate


def pal_loss(logits_N: Tensor, seen_N: Tensor, clicked_N: Tensor) -> Tensor:
    """Returns the negative log-likelihood per impression of clicks under PAL.

    With s = p(seen) and l the logit: -log p = softplus(-l) - log s for a click, and
    -log(1 - p) = softplus(l) - softplus(l + log(1 - s)) for none; both stable for any l.

    Args:
        logits_N: logit of p(click | seen).
        seen_N: in (0, 1].
        clicked_N: 0 or 1.
    """
    unseen_N = (1 - seen_N).clamp(min=1e-12).log()
    click_N = F.softplus(-logits_N) - seen_N.clamp(min=1e-12).log()
    skip_N = F.softplus(logits_N) - F.softplus(logits_N + unseen_N)
    return torch.where(clicked_N > 0.5, click_N, skip_N)


def fit_examination(
    logits_N: Floats, position_N: NDArray[np.int64], rank_N: NDArray[np.int64], clicked_N: Flags
) -> Examination:
    """Returns the maximum a posteriori examination curve of one scenario, logits fixed.

    A logging policy puts first what it believes in, for reasons that the click model may not
    see; then clicks fall with position even if everybody looks at everything. The rank that the
    policy meant and the position that was shown differ where exploration swapped neighbours:
    an effect of the rank on the logit takes up what those rows show to be no effect of position.
    Without swapped rows the two cannot be told apart and all is put down to position.

    The prior of p(seen | position) is a power of the position with an unknown exponent, as in
    Joachims et al. (WSDM 2017), and in logits what is particular to a position: swaps are few, and
    smooth curves need fewer.

    Args:
        logits_N: of p(click | seen), as trained; level and slope are fitted anew.
        position_N: shown at, from 0.
        rank_N: meant for, from 0; equals the position but in swapped rows.
        clicked_N: clicks.
    """
    num_positions = int(max(position_N.max(), rank_N.max())) + 1
    has_swaps = bool((position_N != rank_N).any())
    logits, clicked = _double(logits_N), _double(clicked_N)
    position, rank = torch.from_numpy(position_N), torch.from_numpy(rank_N)
    place_P = torch.arange(2, num_positions + 1, dtype=torch.float64)
    power = torch.full((1,), _POWER, dtype=torch.float64).log().requires_grad_()
    particular = torch.zeros(num_positions - 1, dtype=torch.float64, requires_grad=True)
    # Effect of a rank over the one before: a common trend, which all swaps tell of, and its own.
    trend = torch.zeros(1, dtype=torch.float64, requires_grad=has_swaps)
    own = torch.zeros(num_positions - 1, dtype=torch.float64, requires_grad=has_swaps)
    platt = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)

    def curve() -> Tensor:
        examination = torch.special.logit(place_P ** -power.exp()) + particular
        return torch.cat([torch.ones(1, dtype=torch.float64), examination.sigmoid()])

    def effects() -> Tensor:
        return torch.cat([torch.zeros(1, dtype=torch.float64), (trend + own).cumsum(0)])

    def objective() -> Tensor:
        level = platt[0] * logits + platt[1] + effects()[rank]
        prior = 0.5 * ((power - math.log(_POWER)) / _POWER_SD).square().sum()
        prior = prior + 0.5 * (particular / _PARTICULAR_SD).square().sum()
        prior = prior + 0.5 * (trend / _TREND_SD).square().sum()
        prior = prior + 0.5 * (own / _RANK_SD).square().sum() + _platt_prior(platt)
        return pal_loss(level, curve()[position], clicked).sum() + prior

    _minimise(objective, [power, particular, platt, *([trend, own] if has_swaps else [])])
    return Examination(curve().detach().numpy(), effects().detach().numpy())


def fit_platt(logits_N: Floats, seen_N: Floats, clicked_N: Flags) -> Platt:
    """Returns slope and intercept that maximise the PAL likelihood, p(seen) fixed.

    So calibrated, sigmoid(slope * logit + intercept) is p(click | seen), not p(click). A weak
    prior keeps (1, 0) where there are next to no data. The slope is never negative.
    """
    logits, seen, clicked = _double(logits_N), _double(seen_N), _double(clicked_N)
    platt = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)

    def objective() -> Tensor:
        return pal_loss(platt[0] * logits + platt[1], seen, clicked).sum() + _platt_prior(platt)

    _minimise(objective, [platt])
    slope, intercept = platt.detach().tolist()
    if slope < 0:  # the model ranks worse than chance here: its logit must not be turned around
        logits = torch.zeros_like(logits)
        _minimise(objective, [platt])
        slope, intercept = 0.0, platt.detach().tolist()[1]
    return Platt(slope, intercept)


def auc(scores_N: Floats, clicked_N: Flags) -> float:
    """Returns the probability that a click scores above a skip, ties counted half; nan if none."""
    num_clicks = int(clicked_N.sum())
    num_skips = len(clicked_N) - num_clicks
    if not num_clicks or not num_skips:
        return float("nan")
    _, inverse, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # from 1
    rank_sum = mean_rank[inverse][clicked_N].sum()
    return float((rank_sum - num_clicks * (num_clicks + 1) / 2) / (num_clicks * num_skips))


def gauc(scores_N: Floats, clicked_N: Flags, request_N: NDArray[np.int64]) -> float:
    """Returns the mean AUC within a request, over requests with both clicks and skips."""
    order = np.argsort(request_N, kind="stable")
    bounds = np.flatnonzero(np.diff(request_N[order])) + 1
    values = [auc(scores_N[rows], clicked_N[rows]) for rows in np.split(order, bounds)]
    values = [v for v in values if not np.isnan(v)]
    return float(np.mean(values)) if values else float("nan")


def quality(
    probability_N: Floats, clicked_N: Flags, request_N: NDArray[np.int64], num_bins: int = 10
) -> Quality:
    """Returns measures of predicted p(click | shown at its position) of impressions."""
    rate = float(clicked_N.mean())
    p = np.clip(probability_N.astype(np.float64), 1e-9, 1 - 1e-9)
    log_loss = -np.where(clicked_N, np.log(p), np.log1p(-p)).mean()
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if 0 < rate < 1 else np.nan
    bins = np.array_split(np.argsort(p, kind="stable"), num_bins)
    gaps = [abs(p[b].mean() - clicked_N[b].mean()) * len(b) for b in bins if len(b)]
    return Quality(
        auc=auc(p, clicked_N),
        gauc=gauc(p, clicked_N, request_N),
        normalised_entropy=float(log_loss / entropy),
        relative_ece=float(sum(gaps) / len(p) / rate) if rate else float("nan"),
    )


def _platt_prior(platt: Tensor) -> Tensor:
    scale = torch.tensor([_SLOPE_SD, _INTERCEPT_SD], dtype=torch.float64)
    return 0.5 * ((platt - torch.tensor([1.0, 0.0], dtype=torch.float64)) / scale).square().sum()


def _double(values: Floats | Flags) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float64))


def _minimise(objective: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=100, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def step() -> float:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return float(loss.detach())

    optimizer.step(step)
