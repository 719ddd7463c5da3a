import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.clicks.calibration import auc, fit_examination, fit_platt, gauc, pal_loss, quality

CURVE = np.array([1.0, 0.6, 0.4, 0.3])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_pal_loss_by_hand() -> None:
    loss = pal_loss(
        torch.tensor([0.0, 0.0, 2.0]), torch.tensor([0.5, 0.5, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    )
    expected = [-math.log(0.25), -math.log(0.75), -math.log(1 - 1 / (1 + math.exp(-2)))]
    assert loss.tolist() == pytest.approx(expected, rel=1e-5)


def test_pal_loss_and_its_gradient_stay_finite_for_extreme_logits() -> None:
    logits = torch.tensor([-80.0, 80.0, -80.0, 80.0] * 2, requires_grad=True)
    seen = torch.tensor([1.0] * 4 + [0.3] * 4, requires_grad=True)
    loss = pal_loss(logits, seen, torch.tensor([1.0, 1.0, 0.0, 0.0] * 2))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert logits.grad is not None
    assert seen.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(seen.grad).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_auc_equals_counting_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, clicked = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    pairs = [(c, s) for c in scores[clicked] for s in scores[~clicked]]
    found = auc(scores, clicked)
    if not pairs:
        assert math.isnan(found)
    else:
        wins = sum(1.0 if c > s else 0.5 if c == s else 0.0 for c, s in pairs)
        assert found == pytest.approx(wins / len(pairs))


def test_gauc_averages_requests_that_have_clicks_and_skips() -> None:
    scores = np.array([0.9, 0.1, 0.5, 0.6, 0.2, 0.3])
    clicked = np.array([True, False, True, False, False, False])
    request = np.array([7, 7, 3, 3, 5, 5])  # 7: right, 3: wrong, 5: no click
    assert gauc(scores, clicked, request) == pytest.approx(0.5)


def test_quality_of_the_mean_rate_is_one_and_of_the_truth_is_less() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(0.02, 0.5, 20_000)
    clicked = random.random(len(truth)) < truth
    request = np.arange(len(truth)) // 5
    constant = quality(np.full(len(truth), clicked.mean()), clicked, request)
    assert constant.normalised_entropy == pytest.approx(1)
    assert constant.auc == pytest.approx(0.5)
    right = quality(truth, clicked, request)
    assert right.normalised_entropy < 0.95
    assert right.relative_ece < 0.06
    doubled = quality(np.minimum(2 * truth, 0.99), clicked, request)
    assert doubled.relative_ece == pytest.approx(1, abs=0.1)


def test_platt_finds_slope_and_intercept_of_p_given_seen() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal(40_000) * 2
    seen = CURVE[random.integers(4, size=len(logits))]
    clicked = random.random(len(logits)) < sigmoid(0.7 * logits - 1.5) * seen
    slope, intercept = fit_platt(logits, seen, clicked)
    assert slope == pytest.approx(0.7, abs=0.05)
    assert intercept == pytest.approx(-1.5, abs=0.05)


def test_platt_never_turns_a_ranking_around() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal(5000)
    clicked = random.random(len(logits)) < sigmoid(-2 * logits)
    slope, intercept = fit_platt(logits, np.ones(len(logits)), clicked)
    assert slope == 0
    assert sigmoid(np.array(intercept)) == pytest.approx(clicked.mean(), abs=0.01)


def test_few_rows_leave_calibration_near_the_identity() -> None:
    slope, intercept = fit_platt(np.array([0.3]), np.ones(1), np.array([False]))
    assert slope == pytest.approx(1, abs=0.5)
    assert abs(intercept) < 3


def _log_of_a_policy_that_knows_more(swap_rate: float) -> tuple[np.ndarray, ...]:
    """Returns logits, positions, ranks and clicks; the policy sees half of what decides."""
    random = np.random.default_rng(1)
    num_requests, num_positions = 15_000, len(CURVE)
    visible, hidden = random.standard_normal((2, num_requests, num_positions))
    order = np.argsort(-hidden, axis=1)
    visible = np.take_along_axis(visible, order, 1)
    hidden = np.take_along_axis(hidden, order, 1)
    rank = np.tile(np.arange(num_positions), (num_requests, 1))
    position = rank.copy()
    rows = np.flatnonzero(random.random(num_requests) < swap_rate)
    at = random.integers(num_positions - 1, size=len(rows))
    position[rows, at], position[rows, at + 1] = at + 1, at
    probability = sigmoid(visible + 0.6 * hidden - 1) * CURVE[position]
    clicked = random.random(probability.shape) < probability
    return tuple(a.ravel() for a in (visible - 1, position, rank, clicked))


def test_swapped_rows_tell_examination_from_what_the_policy_knows() -> None:
    without = fit_examination(*_log_of_a_policy_that_knows_more(0.0))
    with_swaps = fit_examination(*_log_of_a_policy_that_knows_more(0.3))
    assert without.seen_P[0] == with_swaps.seen_P[0] == 1
    assert (without.seen_P[1:] < CURVE[1:] - 0.05).all()  # takes relevance for examination
    error = np.abs(with_swaps.seen_P - CURVE).max()
    assert error < 0.5 * np.abs(without.seen_P - CURVE).max()
    assert (without.rank_effect_P == 0).all()
    assert (np.diff(with_swaps.rank_effect_P) < 0).all()


def test_examination_need_not_fall_with_position() -> None:
    random = np.random.default_rng(0)
    curve = np.array([1.0, 0.3, 0.8])
    position = random.integers(3, size=30_000)
    logits = random.standard_normal(len(position))
    clicked = random.random(len(position)) < sigmoid(logits) * curve[position]
    fitted = fit_examination(logits, position, position, clicked)
    assert fitted.seen_P == pytest.approx(curve, abs=0.05)
