"""Intervals of click probabilities: do they contain the truth as often as they say?"""

from pathlib import Path

import numpy as np
import pytest

from train.clicks.calibration import Platt
from train.clicks.uncertainty import (
    ClickUncertainty,
    fit_covariance,
    load_uncertainty,
    save_uncertainty,
    unseen_variance,
)

KNOWN = np.ones(200, bool)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def uncertainty(**changes) -> ClickUncertainty:
    fields = {
        "weight_E": np.array([1.0, -0.5, -2.0]),
        "covariance_EE": 0.01 * np.eye(3),
        "calibration": {"s": (Platt(1.2, 0.1), Platt(1.0, -1.0))},
        "spread": {"s": (0.2, 0.6)},
        **changes,
    }
    return ClickUncertainty(**fields)


def fitted_weights(x_NE: np.ndarray, clicked_N: np.ndarray) -> np.ndarray:
    """Returns the logistic regression with prior precision 1, by Newton's method."""
    weight = np.zeros(x_NE.shape[1])
    for _ in range(30):
        p = sigmoid(x_NE @ weight)
        gradient = x_NE.T @ (clicked_N - p) - weight
        information = (x_NE * (p * (1 - p))[:, None]).T @ x_NE + np.eye(len(weight))
        weight = weight + np.linalg.solve(information, gradient)
    return weight


def test_intervals_of_a_well_specified_model_contain_the_truth_at_their_rate() -> None:
    random = np.random.default_rng(0)
    inside, below, num = 0, 0, 0
    for _ in range(60):
        true_E = np.append(random.normal(0, 0.7, 4), -1.5)
        x_NE = np.concatenate([random.normal(size=(400, 4)), np.ones((400, 1))], axis=1)
        clicked_N = random.random(400) < sigmoid(x_NE @ true_E)
        weight_E = fitted_weights(x_NE, clicked_N)
        covariance_EE = fit_covariance(
            x_NE[:, :-1], weight_E, np.ones(400), clicked_N, np.arange(400), 400
        )
        model = uncertainty(
            weight_E=weight_E, covariance_EE=covariance_EE, calibration={}, spread={"s": (0.0, 0.0)}
        )
        new_NE = random.normal(size=(200, 4))
        truth_N = sigmoid(new_NE @ true_E[:-1] + true_E[-1])
        low_N, high_N = model.interval("s", new_NE, KNOWN, 0.9)
        inside += int(((low_N <= truth_N) & (truth_N <= high_N)).sum())
        below += int((model.lower_bound("s", new_NE, KNOWN, 0.8) <= truth_N).sum())
        num += 200
    assert inside / num == pytest.approx(0.9, abs=0.04)
    assert below / num == pytest.approx(0.8, abs=0.05)


def test_clicks_that_come_together_make_it_less_sure() -> None:
    random = np.random.default_rng(0)
    effect_N = np.repeat(random.normal(0, 1.5, 200), 10)  # of the request
    x_NE = np.ones((2000, 0))
    clicked_N = random.random(2000) < sigmoid(-1.0 + effect_N)
    weight_E = np.array([np.log(clicked_N.mean() / (1 - clicked_N.mean()))])
    request_N = np.repeat(np.arange(200), 10)
    arguments = (x_NE, weight_E, np.ones(2000), clicked_N)
    together = fit_covariance(*arguments, request_N, 200)[0, 0]
    apart = fit_covariance(*arguments, np.arange(2000), 2000)[0, 0]
    assert together > 2 * apart
    rates = [sigmoid(-1.0 + np.repeat(random.normal(0, 1.5, 200), 10)).mean() for _ in range(500)]
    # Between requests alone; clicks add a little.
    assert together > np.var(np.log(np.array(rates) / (1 - np.array(rates))))


def test_a_sample_stands_for_all_requests() -> None:
    random = np.random.default_rng(0)
    x_NE, clicked_N = random.normal(size=(4000, 2)), random.random(4000) < 0.2
    arguments = (x_NE, np.array([0.1, 0.0, -1.4]), np.ones(4000), clicked_N, np.arange(4000) // 4)
    all_of_them = fit_covariance(*arguments, 1000)
    ten_times = fit_covariance(*arguments, 10_000)
    assert np.diag(ten_times) == pytest.approx(np.diag(all_of_them) / 10, rel=0.02)


def test_far_from_the_data_it_is_less_sure() -> None:
    random = np.random.default_rng(0)
    x_NE, clicked_N = random.normal(size=(2000, 2)), random.random(2000) < 0.2
    covariance_EE = fit_covariance(
        x_NE, np.array([0.0, 0.0, -1.4]), np.ones(2000), clicked_N, np.arange(2000), 2000
    )
    model = uncertainty(weight_E=np.array([0.0, 0.0, -1.4]), covariance_EE=covariance_EE)
    probes_NE = np.array([[0.0, 0.0], [3.0, 3.0], [30.0, 30.0]])
    low_N = model.lower_bound("s", probes_NE, KNOWN[:3])
    assert low_N[0] > low_N[1] > low_N[2]


def test_what_is_not_seen_is_found_in_clicks_on_the_same_text() -> None:
    random = np.random.default_rng(0)
    num_texts, num_shown = 6000, 12
    pair_N = np.repeat(np.arange(num_texts), num_shown)
    predicted_N = random.uniform(0.1, 0.3, len(pair_N))
    for variance in (0.0, 0.5, 1.0):
        factor = np.ones(num_texts)
        if variance:
            factor = random.gamma(1 / variance, variance, num_texts)
        true_N = np.minimum(predicted_N * factor[pair_N], 1.0)
        clicked_N = random.random(len(pair_N)) < true_N
        expected = np.square(true_N - predicted_N).sum() / np.square(predicted_N).sum()
        found = unseen_variance(predicted_N, clicked_N, pair_N, prior=0.3)
        assert found == pytest.approx(expected, abs=0.1)


def test_texts_that_hardly_repeat_leave_the_prior() -> None:
    predicted_N = np.full(100, 0.02)
    nothing = np.zeros(100, bool)
    assert unseen_variance(predicted_N, nothing, np.arange(100), prior=0.7) == 0.7
    # Fifty texts twice without a click do not show that there is no spread.
    assert unseen_variance(predicted_N, nothing, np.arange(100) // 2, prior=0.7) > 0.6


def test_prediction_is_the_mean_of_a_distribution_with_mass_near_zero() -> None:
    model = uncertainty(covariance_EE=np.zeros((3, 3)), spread={"s": (0.8, 0.8)})
    x_NE = np.array([[-1.0, 2.0]])
    draws = np.array(
        [
            float(model.interval("s", x_NE, KNOWN[:1], abs(1 - 2 * u))[int(u > 0.5)][0])
            for u in (np.arange(1000) + 0.25) / 1000
        ]
    )
    mean = model.probability("s", x_NE, KNOWN[:1])[0]
    assert draws.mean() == pytest.approx(mean, rel=0.02)
    assert draws.var() / mean**2 == pytest.approx(0.8, rel=0.05)
    # The quantiles of the gamma distribution itself.
    sample = np.random.default_rng(0).gamma(1 / 0.8, 0.8 * mean, 400_000)
    for level in (0.1, 0.5, 0.9):
        assert np.quantile(draws, level) == pytest.approx(np.quantile(sample, level), rel=0.06)


@pytest.mark.parametrize("variance", [0.0, 0.5, 2.0, 9.0])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_lower_bounds_hold_at_their_level_and_keep_the_order_of_what_is_unsure(
    variance: float, level: float
) -> None:
    model = uncertainty(covariance_EE=np.zeros((3, 3)), spread={"s": (variance, variance)})
    x_NE = np.array([[-1.0, 2.0], [-1.0, 1.0], [0.0, 1.0]])
    low_N = model.lower_bound("s", x_NE, KNOWN[:3], level)
    mean_N = model.probability("s", x_NE, KNOWN[:3])
    assert (np.diff(low_N) > 0).all()
    assert low_N / low_N[0] == pytest.approx(mean_N / mean_N[0])
    if not variance:
        assert low_N == pytest.approx(mean_N, rel=1e-3)
    else:
        truth = np.random.default_rng(0).gamma(1 / variance, variance, 400_000)
        assert (truth > low_N[0] / mean_N[0]).mean() == pytest.approx(level, abs=0.003)


def test_texts_that_the_log_does_not_know_have_calibration_and_spread_of_their_own() -> None:
    model = uncertainty()
    x_NE, is_known = np.array([[0.3, -1.0]] * 2), np.array([True, False])
    logit = 0.3 + 0.5 - 2.0
    expected = sigmoid(np.array([1.2 * logit + 0.1, logit - 1.0]))
    assert model.probability("s", x_NE, is_known) == pytest.approx(expected)
    low_N = model.lower_bound("s", x_NE, is_known) / expected
    assert low_N[1] < low_N[0] < 1


@pytest.mark.parametrize("level", [0.0, 1.0, float("nan")])
def test_levels_that_mean_nothing_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        uncertainty().lower_bound("s", np.zeros((1, 2)), KNOWN[:1], level)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="no impressions"):
        fit_covariance(
            np.zeros((0, 2)), np.zeros(3), np.zeros(0), np.zeros(0, bool), np.zeros(0, int), 0
        )


def test_saved_uncertainty_loads_to_the_same_bounds(tmp_path: Path) -> None:
    two = (Platt(1.2, 0.1), Platt(1.0, -1.0))
    saved = uncertainty(
        calibration={"s": two, "other": two}, spread={"s": (0.2, 0.6), "other": (0.4, 0.5)}
    )
    save_uncertainty(saved, tmp_path)
    loaded = load_uncertainty(tmp_path)
    x_NE, is_known = np.array([[0.3, -1.0]] * 2), np.array([True, False])
    for scenario in ("s", "other", "unknown"):
        first, second = (u.lower_bound(scenario, x_NE, is_known) for u in (loaded, saved))
        assert first.tolist() == second.tolist()
    with pytest.raises(ValueError, match="is missing"):
        load_uncertainty(tmp_path / "nowhere")
