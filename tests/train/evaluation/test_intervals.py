"""Intervals hold the truth as often as they say, also where units depend on each other."""

import numpy as np
import pytest

from train.evaluation.intervals import (
    difference_interval,
    mean_interval,
    ratio_interval,
    statistic_interval,
)


def test_clusters_of_correlated_units_are_held_as_often_as_promised() -> None:
    """Of 200 means over 100 queries in three panels, 95 % of intervals hold the true one."""
    rng = np.random.default_rng(0)
    queries = [*range(100)] * 3
    num_held = {True: 0, False: 0}
    for seed in range(200):
        value_U = np.tile(rng.normal(size=100), 3) + rng.normal(size=300)
        for is_clustered in num_held:
            clusters = queries if is_clustered else None
            found = mean_interval(value_U, 300, seed, cluster_U=clusters)
            num_held[is_clustered] += found.low <= 0 <= found.high
    assert num_held[True] >= 180
    assert num_held[False] <= 175


def test_the_mean_stays_that_over_units_and_clusters_may_differ_in_size() -> None:
    value_U = np.array([1.0, 1.0, 1.0, 5.0])
    found = mean_interval(value_U, cluster_U=["a", "a", "a", "b"])
    assert found == (2.0, 1.0, 5.0)
    assert ratio_interval(2 * value_U, value_U, cluster_U=["a", "a", "a", "b"]) == (2, 2, 2)
    assert difference_interval(value_U, value_U - 1, cluster_U=[0, 0, 1, 1]) == (1, 1, 1)


def test_without_clusters_every_unit_is_its_own() -> None:
    value_U = np.random.default_rng(0).random(50)
    alone = mean_interval(value_U, cluster_U=range(50))
    assert mean_interval(value_U) == pytest.approx(alone)


@pytest.mark.parametrize("cluster_U", [None, [0, 0, 1, 2, 2, 2] * 5])
def test_a_mean_as_a_statistic_has_the_interval_of_the_mean(cluster_U: list[int] | None) -> None:
    value_U = np.random.default_rng(0).random(30)
    found = statistic_interval(
        lambda times_U: float(times_U @ value_U / times_U.sum()), 30, cluster_U=cluster_U
    )
    assert found == pytest.approx(mean_interval(value_U, cluster_U=cluster_U))
