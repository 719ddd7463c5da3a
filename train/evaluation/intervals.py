"""Means with 95 % intervals by the percentile bootstrap. Knows nothing of what is averaged.

The same seed and number of units give the same resamples, so differences and ratios of two
systems that answered the same questions are paired: both are resampled together.

What depends on each other has to be resampled together, or intervals come out too narrow: a query
that is asked in three scenarios is easy or hard in all of them. `cluster_U` names what each unit
belongs to, and clusters are resampled (the cluster bootstrap of Davison and Hinkley, 1997, section
3.8); without it every unit is a cluster of its own. The mean is over units in either case.
"""

# U units (values: queries, sessions, panes), C clusters of them, R resamples
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 1000
Floats = NDArray[np.floating]


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(
    value_U: Floats,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    *,
    cluster_U: Sequence[Hashable] | None = None,
) -> Interval:
    """Returns the mean of the values of U units; `cluster_U`: see the module's text."""
    sample_R = _resampled(value_U, num_resamples, seed, cluster_U)
    return _interval(sample_R, float(value_U.mean()))


def difference_interval(
    value_U: Floats,
    rival_U: Floats,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    *,
    cluster_U: Sequence[Hashable] | None = None,
) -> Interval:
    """Returns the mean of value - rival over units, paired."""
    return mean_interval(value_U - rival_U, num_resamples, seed, cluster_U=cluster_U)


def ratio_interval(
    value_U: Floats,
    rival_U: Floats,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    *,
    cluster_U: Sequence[Hashable] | None = None,
) -> Interval:
    """Returns the ratio of the means of two systems over the same units, paired."""
    top_R = _resampled(value_U, num_resamples, seed, cluster_U)
    bottom_R = _resampled(rival_U, num_resamples, seed, cluster_U)
    mean = float(value_U.mean() / max(float(rival_U.mean()), 1e-12))
    return _interval(top_R / np.maximum(bottom_R, 1e-12), mean)


def statistic_interval(
    statistic: Callable[[Floats], float],
    num_units: int,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    *,
    cluster_U: Sequence[Hashable] | None = None,
) -> Interval:
    """Returns a statistic that is no mean, such as an AUC or a ratio of two.

    Args:
        statistic: from weights float64 (U), how often each unit counts, to the statistic; resamples
            where it is nan are left out.
        num_units: U.
        num_resamples: R.
        seed: of the resamples.
        cluster_U: see the module's text.
    """
    rng = np.random.default_rng(seed)
    place_U = _places(range(num_units) if cluster_U is None else cluster_U)
    num = int(place_U.max(initial=-1)) + 1
    draws = (rng.integers(num, size=num) for _ in range(num_resamples))
    values = [
        statistic(np.bincount(drawn, minlength=num).astype(np.float64)[place_U]) for drawn in draws
    ]
    sample = np.array([v for v in values if not np.isnan(v)] or [np.nan])
    return _interval(sample, float(statistic(np.ones(num_units))))


def _resampled(
    value_U: Floats, num_resamples: int, seed: int, cluster_U: Sequence[Hashable] | None
) -> Floats:
    """Returns the means of bootstrap samples, (R,)."""
    rng = np.random.default_rng(seed)
    place_U = _places(range(len(value_U)) if cluster_U is None else cluster_U)
    sum_C, size_C = np.bincount(place_U, value_U), np.bincount(place_U)
    num = len(size_C)
    draws = (rng.integers(num, size=num) for _ in range(num_resamples))
    return np.array([sum_C[drawn].sum() / size_C[drawn].sum() for drawn in draws])


def _places(clusters: Sequence[Hashable]) -> NDArray[np.int64]:
    """Returns the number of each unit's cluster, from 0 in the order they come in, (U)."""
    place_of = {cluster: c for c, cluster in enumerate(dict.fromkeys(clusters))}
    return np.array([place_of[cluster] for cluster in clusters], np.int64)


def _interval(sample_R: Floats, mean: float) -> Interval:
    low, high = np.quantile(sample_R, [0.025, 0.975])
    return Interval(mean, float(low), float(high))
