"""How well click probabilities rank and calibrate, against clicks or against the truth.

Every measure takes weights of the impressions, so that requests can be resampled; what depends on
the order of the scores is made once. Knows nothing of what made the probabilities.
"""

# N impressions, G groups of equal scores, S strata, B bins
import numpy as np
from numpy.typing import NDArray

from train.evaluation.intervals import Floats

Flags = NDArray[np.bool_]
Ids = NDArray[np.int64]
_TINY = 1e-9  # a probability is at least that far from 0 and 1 in a logarithm


class Auc:
    """Share of pairs (clicked, unclicked) of one stratum that a score orders rightly.

    Ties count half. Pairs count alike, whatever their stratum: with one stratum it is the usual
    AUC, with positions as strata no pair compares two positions.
    """

    def __init__(self, score_N: Floats, clicked_N: Flags, stratum_N: Ids | None = None) -> None:
        """Sorts the scores.

        Raises:
            ValueError: a score is not a number.
        """
        if np.isnan(score_N).any():
            raise ValueError(f"{int(np.isnan(score_N).sum())} of {len(score_N)} scores are nan")
        stratum_N = np.zeros(len(score_N), np.int64) if stratum_N is None else stratum_N
        order = np.lexsort((score_N, stratum_N))
        score, stratum = score_N[order], stratum_N[order]
        is_new = np.ones(len(order), np.bool_)
        is_new[1:] = (np.diff(score) != 0) | (np.diff(stratum) != 0)
        self._order, self._clicked = order, clicked_N[order]
        self._group_N = np.cumsum(is_new) - 1
        _, self._stratum_G = np.unique(stratum[is_new], return_inverse=True)
        _, self._first_S = np.unique(self._stratum_G, return_index=True)

    def __call__(self, weight_N: Floats) -> float:
        """Returns the share; nan if there is no pair."""
        weight = weight_N[self._order]
        num_groups = len(self._stratum_G)
        clicks_G = np.bincount(self._group_N, weight * self._clicked, num_groups)
        skips_G = np.bincount(self._group_N, weight * ~self._clicked, num_groups)
        before_G = np.cumsum(skips_G) - skips_G
        below_G = before_G - before_G[self._first_S][self._stratum_G] + skips_G / 2
        clicks_S = np.bincount(self._stratum_G, clicks_G)
        skips_S = np.bincount(self._stratum_G, skips_G)
        num_pairs = float(clicks_S @ skips_S)
        return float(clicks_G @ below_G) / num_pairs if num_pairs > 0 else float("nan")


class RelativeError:
    """Expected calibration error over bins of equal mass, relative to the mean of the target.

    `sum over bins of n_b / n * |mean p - mean target| / mean target`. The target is a click or,
    without its noise, the true probability of one.
    """

    def __init__(self, probability_N: Floats, target_N: Floats, num_bins: int = 10) -> None:
        """Sorts the probabilities into bins; ties go by row."""
        bins = np.array_split(np.argsort(probability_N, kind="stable"), num_bins)
        self._bin_N = np.empty(len(probability_N), np.int64)
        for number, rows in enumerate(bins):
            self._bin_N[rows] = number
        self._gap_N = probability_N - target_N
        self._target_N = target_N

    def __call__(self, weight_N: Floats) -> float:
        """Returns the error; nan if the target is 0 everywhere."""
        total = float(weight_N @ self._target_N)
        gaps_B = np.bincount(self._bin_N, weight_N * self._gap_N)
        return float(np.abs(gaps_B).sum()) / total if total > 0 else float("nan")


class NormalisedEntropy:
    """Log loss over the entropy of the mean click rate: 1 knows no more than the mean."""

    def __init__(self, probability_N: Floats, clicked_N: Flags) -> None:
        """Takes the logarithms."""
        p = np.clip(probability_N, _TINY, 1 - _TINY)
        self._loss_N = -np.where(clicked_N, np.log(p), np.log1p(-p))
        self._clicked_N = clicked_N

    def __call__(self, weight_N: Floats) -> float:
        """Returns the ratio; nan if nothing or everything is clicked."""
        total = float(weight_N.sum())
        rate = float(weight_N @ self._clicked_N) / total
        if not 0 < rate < 1:
            return float("nan")
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        return float(weight_N @ self._loss_N / total / entropy)


class BinnedRates:
    """Click rates by bins of one number: the probabilities of a rival that knows only that."""

    def __init__(self, value_N: Floats, clicked_N: Flags, num_bins: int = 20) -> None:
        """Learns the rates; bins have equal mass, fewer where values are equal."""
        self._edges = np.unique(np.quantile(value_N, np.linspace(0, 1, num_bins + 1)[1:-1]))
        bin_N = np.searchsorted(self._edges, value_N, side="right")
        size = len(self._edges) + 1
        shown_B = np.bincount(bin_N, minlength=size)
        clicks_B = np.bincount(bin_N, clicked_N.astype(np.float64), size)
        self._rate_B = (clicks_B + clicked_N.mean()) / (shown_B + 1)  # shrunk to the mean

    def __call__(self, value_N: Floats) -> Floats:
        """Returns the rate of each value's bin."""
        return self._rate_B[np.searchsorted(self._edges, value_N, side="right")]
