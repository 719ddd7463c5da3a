"""The cost model against numpy, and its memory on a manual clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.scheduling.costs import CostModel, Work
from engine.scheduling.stages import Stage
from tests.engine.conftest import ManualClock

WORK = Work(Stage.GENERATE, (8, 8))


@given(
    st.lists(st.floats(1e-4, 10), min_size=1, max_size=200),
    st.sampled_from([0.01, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0]),
)
def test_the_prediction_is_the_quantile_of_the_last_64_runs(samples, quantile):
    costs = CostModel(ManualClock(), quantile)
    for sample in samples:
        costs.observe(WORK, 1, sample)
    expected = np.quantile(samples[-64:], quantile, method="inverted_cdf")
    assert costs.predict_s(WORK, 1) == expected


def test_batch_sizes_share_the_bucket_of_the_next_power_of_two(clock):
    costs = CostModel(clock)
    costs.observe(WORK, 3, 0.040)
    assert costs.predict_s(WORK, 4) == 0.040
    assert costs.predict_s(WORK, 3) == 0.040


def test_a_batch_size_never_seen_is_scaled_up_from_the_nearest_and_never_down(clock):
    costs = CostModel(clock)
    costs.observe(WORK, 4, 0.040)
    assert costs.predict_s(WORK, 16) == pytest.approx(0.160)
    assert costs.predict_s(WORK, 1) == pytest.approx(0.040)


def test_work_never_seen_is_predicted_as_free(clock):
    assert CostModel(clock).predict_s(WORK, 1) == 0


def test_a_bad_minute_is_forgotten_but_not_below_the_fastest_run(clock):
    costs = CostModel(clock)
    costs.observe(WORK, 1, 0.010)
    for _ in range(64):
        costs.observe(WORK, 1, 1.010)
    assert costs.predict_s(WORK, 1) == pytest.approx(1.010)
    clock.advance(2)
    assert costs.predict_s(WORK, 1) == pytest.approx(0.510)
    clock.advance(1000)
    assert costs.predict_s(WORK, 1) == pytest.approx(0.010)


def test_runs_of_more_than_five_seconds_ago_do_not_count_beside_new_ones(clock):
    costs = CostModel(clock)
    for _ in range(64):
        costs.observe(WORK, 1, 1.0)
    clock.advance(5.1)
    costs.observe(WORK, 1, 0.010)
    assert costs.predict_s(WORK, 1) == pytest.approx(0.010)
