"""Measures of click probabilities: by hand, and against slow references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.clicks.calibration import quality
from train.evaluation.click_measures import Auc, BinnedRates, NormalisedEntropy, RelativeError

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 2), st.integers(0, 3)),
    min_size=1,
    max_size=25,
)


@given(ROWS)
def test_auc_equals_counting_pairs_of_a_stratum(rows: list[tuple[int, bool, int, int]]) -> None:
    score, clicked, stratum, weight = (np.array(column) for column in zip(*rows, strict=True))
    wins = total = 0.0
    for i in range(len(rows)):
        for j in range(len(rows)):
            if clicked[i] and not clicked[j] and stratum[i] == stratum[j]:
                pairs = weight[i] * weight[j]
                total += pairs
                wins += pairs * (1.0 if score[i] > score[j] else 0.5 * (score[i] == score[j]))
    found = Auc(score.astype(float), clicked, stratum)(weight.astype(float))
    if total:
        assert found == pytest.approx(wins / total)
    else:
        assert np.isnan(found)


def test_position_strata_compare_no_two_positions() -> None:
    # By position alone everything is right; within positions the score is wrong once, right once.
    score = np.array([0.9, 0.8, 0.2, 0.1])
    clicked = np.array([True, False, False, True])
    position = np.array([1, 1, 2, 2])
    assert Auc(score, clicked)(np.ones(4)) == pytest.approx(2 / 4)
    assert Auc(score, clicked, position)(np.ones(4)) == pytest.approx(1 / 2)


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are nan"):
        Auc(np.array([0.1, np.nan]), np.array([True, False]))


def test_relative_error_by_hand() -> None:
    # Two bins of two: means .15 against .1, .35 against .4; (.05 + .05) / 2 / .25.
    error = RelativeError(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.1, 0.1, 0.3, 0.5]), 2)
    assert error(np.ones(4)) == pytest.approx(0.2)
    assert np.isnan(RelativeError(np.array([0.1, 0.2]), np.zeros(2), 2)(np.ones(2)))


def test_known_probabilities_are_calibrated_and_doubled_ones_are_off_by_all() -> None:
    truth = np.random.default_rng(0).uniform(0.02, 0.4, 5000)
    assert RelativeError(truth, truth)(np.ones(5000)) == 0
    assert RelativeError(2 * truth, truth)(np.ones(5000)) == pytest.approx(1)


def test_unweighted_measures_equal_those_of_training() -> None:
    random = np.random.default_rng(0)
    p = random.uniform(0.02, 0.5, 5000)
    clicked = random.random(5000) < p
    expected = quality(p, clicked, np.arange(5000) // 5)
    ones = np.ones(5000)
    assert Auc(p, clicked)(ones) == pytest.approx(expected.auc)
    assert RelativeError(p, clicked.astype(float))(ones) == pytest.approx(expected.relative_ece)
    entropy = NormalisedEntropy(p, clicked)
    assert entropy(ones) == pytest.approx(expected.normalised_entropy)


def test_weights_are_as_good_as_repeated_rows() -> None:
    random = np.random.default_rng(0)
    p, weight = random.uniform(0.1, 0.9, 40), random.integers(0, 3, 40)
    clicked = random.random(40) < p
    again = np.repeat(np.arange(40), weight)
    for measure in (Auc, NormalisedEntropy):
        repeated = measure(p[again], clicked[again])(np.ones(len(again)))
        assert measure(p, clicked)(weight.astype(float)) == pytest.approx(repeated)


def test_entropy_without_skips_is_undefined() -> None:
    assert np.isnan(NormalisedEntropy(np.full(3, 0.9), np.ones(3, bool))(np.ones(3)))


def test_binned_rates_find_the_rate_of_each_value() -> None:
    random = np.random.default_rng(0)
    position = random.integers(1, 5, 40_000).astype(float)
    clicked = random.random(40_000) < 0.4 / position
    rates = BinnedRates(position, clicked)(np.array([1.0, 2.0, 3.0, 4.0, 9.0]))
    assert rates == pytest.approx([0.4, 0.2, 0.133, 0.1, 0.1], abs=0.02)
