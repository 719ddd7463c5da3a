"""Figures of a click model on impressions whose true click probabilities are known.

What they mean is said in `train.evaluation.clicks`. Intervals are over queries: some are clicked
more than any model can tell, each time that they are asked. Knows nothing of where impressions are
from.
"""

# N impressions, U requests
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from train.evaluation.click_measures import (
    Auc,
    Flags,
    NormalisedEntropy,
    RelativeError,
)
from train.evaluation.click_rows import ClickRows
from train.evaluation.intervals import NUM_RESAMPLES, Floats, Interval, statistic_interval

GOALS = {"auc_share": 0.85, "gauc_share": 0.85, "true_ece": 0.05}  # at least, at least, at most
MIN_CLICKS = 10  # of a source, for its figures to say anything


@dataclass(frozen=True, slots=True, kw_only=True)
class ClickQuality:
    """Figures of the impressions of one scenario and one source, or of all sources."""

    num_requests: int
    num_impressions: int
    num_clicks: int
    auc: Interval
    oracle_auc: Interval
    auc_share: Interval
    gauc: Interval
    oracle_gauc: Interval
    gauc_share: Interval
    bias: Interval  # mean served probability / mean true probability - 1
    true_ece: Interval
    relative_ece: Interval
    oracle_ece: float
    normalised_entropy: Interval
    rival_entropy: dict[str, float]  # "position", "popularity", "overlap", "oracle"
    entropy_below_position: Interval  # normalised entropy - that of position only
    met: dict[str, bool]  # goal -> whether its point estimate meets it


@dataclass(frozen=True, slots=True, kw_only=True)
class PickedQuality:
    """Calibration on items that the bundle picked for held-out queries, without sampling noise."""

    num_queries: int
    num_items: int
    mean_true: float
    bias: Interval
    true_ece: Interval
    first_bias: Interval  # of the items at position 1
    generated_bias: Interval  # of the items that the generator wrote; nan if there are none


def quality(
    rows: ClickRows,
    rivals: dict[str, Floats],
    mask: Flags | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> ClickQuality:
    """Returns the figures of some impressions of one scenario.

    Args:
        rows: impressions.
        rivals: name -> click probability float64 (N); "position" among them.
        mask: which rows; all if None.
        num_resamples: of the intervals.
        seed: of the intervals.

    Raises:
        ValueError: fewer than 10 clicks or skips, or a probability that is not a number.
    """
    mask = np.ones(len(rows.clicked_N), np.bool_) if mask is None else mask
    clicked, true, served = rows.clicked_N[mask], rows.true_N[mask], rows.served_N[mask]
    num_clicks = int(clicked.sum())
    if min(num_clicks, len(clicked) - num_clicks) < MIN_CLICKS:
        raise ValueError(
            f"{num_clicks} of {len(clicked)} held-out impressions are clicked: ranking and "
            f"calibration need at least {MIN_CLICKS} clicks and as many skips"
        )
    for name, values in (("served", served), ("true", true)):
        if not np.isfinite(values).all():
            raise ValueError(f"{int((~np.isfinite(values)).sum())} {name} probabilities are nan")
    requests, request_N = np.unique(rows.request_N[mask], return_inverse=True)
    queries = rows.query_U[requests].tolist()
    position = rows.position_N[mask]

    def interval(statistic: Callable[[Floats], float]) -> Interval:
        return statistic_interval(
            lambda weight_U: statistic(weight_U[request_N]),
            len(requests),
            num_resamples,
            seed,
            cluster_U=queries,
        )

    auc, oracle_auc = Auc(served, clicked), Auc(true, clicked)
    gauc, oracle_gauc = Auc(served, clicked, position), Auc(true, clicked, position)
    entropy = NormalisedEntropy(served, clicked)
    rival_entropy = {n: NormalisedEntropy(p[mask], clicked) for n, p in rivals.items()}
    rival_entropy["oracle"] = NormalisedEntropy(true, clicked)
    ones = np.ones(len(clicked))
    figures = {
        "auc_share": interval(share(auc, oracle_auc)),
        "gauc_share": interval(share(gauc, oracle_gauc)),
        "true_ece": interval(RelativeError(served, true)),
    }
    below = interval(lambda w: entropy(w) - rival_entropy["position"](w))
    return ClickQuality(
        num_requests=len(requests),
        num_impressions=len(clicked),
        num_clicks=num_clicks,
        auc=interval(auc),
        oracle_auc=interval(oracle_auc),
        gauc=interval(gauc),
        oracle_gauc=interval(oracle_gauc),
        **figures,
        bias=interval(_bias(served, true)),
        relative_ece=interval(RelativeError(served, clicked.astype(np.float64))),
        oracle_ece=RelativeError(true, clicked.astype(np.float64))(ones),
        normalised_entropy=interval(entropy),
        rival_entropy={name: measure(ones) for name, measure in rival_entropy.items()},
        entropy_below_position=below,
        met={
            "auc_share": figures["auc_share"].mean >= GOALS["auc_share"],
            "gauc_share": figures["gauc_share"].mean >= GOALS["gauc_share"],
            "true_ece": figures["true_ece"].mean <= GOALS["true_ece"],
            "entropy_below_position": below.mean < 0,
        },
    )


def picked_quality(
    rows: ClickRows, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> PickedQuality:
    """Returns the figures of lists that a bundle made, each a request."""
    num_queries = len(rows.inputs)

    def interval(statistic: Callable[[Floats], float]) -> Interval:
        return statistic_interval(
            lambda weight_U: statistic(weight_U[rows.request_N]),
            num_queries,
            num_resamples,
            seed,
            cluster_U=rows.query_U.tolist(),
        )

    def bias(mask_N: Flags) -> Interval:
        return interval(_bias(rows.served_N * mask_N, rows.true_N * mask_N))

    return PickedQuality(
        num_queries=num_queries,
        num_items=len(rows.true_N),
        mean_true=float(rows.true_N.mean()),
        bias=interval(_bias(rows.served_N, rows.true_N)),
        true_ece=interval(RelativeError(rows.served_N, rows.true_N)),
        first_bias=bias(rows.position_N == 1),
        generated_bias=bias(rows.source_N == "generated"),
    )


def share(auc: Callable[[Floats], float], oracle: Callable[[Floats], float]) -> Callable:
    """Returns the share of the oracle's AUC above chance as a function of weights.

    nan where the oracle is no better than chance: then nothing can be known.
    """

    def value(weight_N: Floats) -> float:
        best = oracle(weight_N) - 0.5
        return (auc(weight_N) - 0.5) / best if best > 0 else float("nan")

    return value


def _bias(predicted_N: Floats, true_N: Floats) -> Callable[[Floats], float]:
    def value(weight_N: Floats) -> float:
        true = float(weight_N @ true_N)
        return float(weight_N @ predicted_N) / true - 1 if true > 0 else float("nan")

    return value
