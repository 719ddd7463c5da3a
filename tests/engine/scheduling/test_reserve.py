"""The time kept of a budget, on a manual clock."""

import pytest

from engine.scheduling.reserve import Reserve


def test_nothing_but_the_least_is_kept_before_anything_is_learnt(clock):
    assert Reserve(0.004, clock).of(0.050) == 0.004


def test_what_answers_take_after_their_last_model_is_kept_too(clock):
    reserve = Reserve(0.004, clock)
    for tail_s in [0.001] * 99 + [0.006]:
        reserve.ended(clock.now_s() - tail_s)
    assert reserve.of(0.050) == pytest.approx(0.010)


def test_an_answer_that_was_ready_in_time_has_no_tail(clock):
    reserve = Reserve(0.004, clock)
    reserve.ended(clock.now_s() + 1.0)
    assert reserve.of(0.050) == pytest.approx(0.004)


def test_a_long_pause_takes_a_fifth_of_a_budget_at_most_and_is_forgotten(clock):
    reserve = Reserve(0.004, clock)
    reserve.ended(clock.now_s() - 3.0)
    assert reserve.of(0.050) == pytest.approx(0.014)
    clock.advance(6.0)
    for _ in range(20):
        reserve.ended(clock.now_s() - 0.001)
    assert reserve.of(0.050) == pytest.approx(0.005)


def test_a_budget_that_is_over_keeps_the_least(clock):
    reserve = Reserve(0.004, clock)
    reserve.ended(clock.now_s() - 3.0)
    assert reserve.of(-1.0) == 0.004
