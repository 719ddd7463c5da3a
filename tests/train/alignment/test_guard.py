"""Rounds are taken when they help, and hardly ever when their reward means nothing."""

import numpy as np
import pytest

from train.alignment.guard import STEPS, Asked, least_gain, refusal
from train.alignment.quality import Measured, PolicyQuality
from train.clicks.judge import Judged
from train.evaluation.intervals import ratio_interval
from train.report.placebo import PlaceboJudge

SCENARIOS = ("suggestion", "completion", "clarification")
NUM_PROMPTS, NUM_TEXTS = 60, 8  # of a scenario, of a list
SEEN = np.arange(1, NUM_TEXTS + 1) ** -0.6
ASKED = Asked(
    [s for s in SCENARIOS for _ in range(NUM_PROMPTS)],
    [f"{s} {i}" for s in SCENARIOS for i in range(NUM_PROMPTS)],
)


def measured(
    reward_U: np.ndarray, *, found: float = 0.5, kl: float = 1.0, asked: Asked = ASKED
) -> Measured:
    own = np.array(asked.scenario_U)
    return Measured(
        {
            s: PolicyQuality(
                reward=float(reward_U[own == s].mean()),
                found=found,
                distinct=8.0,
                known_share=0.5,
                kl=kl,
            )
            for s in dict.fromkeys(asked.scenario_U)
        },
        reward_U,
    )


def liked(judge: PlaceboJudge, version_UC: np.ndarray) -> np.ndarray:
    """What a placebo expects of lists of which each text is in some version."""
    questions = [
        Judged(scenario, query, [], [f"text {c} {v}" for c, v in enumerate(version_C)])
        for scenario, query, version_C in zip(*ASKED, version_UC.tolist(), strict=True)
    ]
    return np.array([np.sort(j.p_seen_C)[::-1] @ SEEN for j in judge(questions, level=0.5)])


@pytest.mark.parametrize("changed_share", [0.1, 0.5])
def test_a_round_that_changes_texts_at_random_is_taken_about_as_often_as_its_level_says(
    changed_share: float,
) -> None:
    num_taken = 0
    for seed in range(40):
        judge, rng = PlaceboJudge(seed=seed), np.random.default_rng(seed)
        version_UC = np.zeros((len(ASKED.query_U), NUM_TEXTS), np.int64)
        before = measured(liked(judge, version_UC))
        turn_UC = rng.random(version_UC.shape)
        looks = [measured(liked(judge, version_UC + (turn_UC < changed_share * s))) for s in STEPS]
        num_taken += any(not refusal(ASKED, before, after, max_kl=40) for after in looks)
    assert num_taken <= 4, "2 of 40 are expected at most"


def test_a_gain_beyond_chance_is_taken_and_a_larger_one_of_a_few_prompts_is_not() -> None:
    rng = np.random.default_rng(0)
    reward_U = rng.uniform(0.1, 0.5, len(ASKED.query_U))
    before = measured(reward_U)
    steady = reward_U * rng.normal(1.03, 0.05, len(reward_U))
    assert refusal(ASKED, before, measured(steady), max_kl=40) == ""
    lucky = reward_U.copy()
    lucky[::60] *= 10  # one prompt of each scenario
    assert lucky.mean() > steady.mean()
    assert "on average at least x 1.0" in refusal(ASKED, before, measured(lucky), max_kl=40)


def asked_of(*nums: int) -> Asked:
    """So many prompts of each scenario, each of a query of its own."""
    scenarios = [s for s, num in zip(SCENARIOS, nums, strict=False) for _ in range(num)]
    return Asked(scenarios, [str(i) for i in range(len(scenarios))])


@pytest.mark.parametrize("num_rare", [1, 3, 8])
def test_a_rare_scenario_does_not_stand_in_the_way_of_a_gain_unless_it_loses(
    num_rare: int,
) -> None:
    asked = asked_of(60, 60, num_rare)
    reward_U = np.random.default_rng(0).uniform(0.2, 0.4, len(asked.query_U))
    before = measured(reward_U, asked=asked)
    assert refusal(asked, before, measured(1.3 * reward_U, asked=asked), max_kl=40) == ""
    after_U = reward_U * np.repeat([1.3, 1.3, 0.9], [60, 60, num_rare])
    why_not = refusal(asked, before, measured(after_U, asked=asked), max_kl=40)
    assert "clarification x 0.900" in why_not


@pytest.mark.parametrize("nums", [(1,), (2,), (7, 3)])
def test_a_handful_of_prompts_tells_nothing(nums: tuple[int, ...]) -> None:
    asked = asked_of(*nums)
    reward_U = np.full(len(asked.query_U), 0.2)
    before, after = (measured(x * reward_U, asked=asked) for x in (1, 2))
    assert refusal(asked, before, after, 40) == "too few held-out prompts to tell"


def test_prompts_of_few_queries_are_a_handful_however_many_they_are() -> None:
    asked = Asked(["suggestion"] * 60, [str(i % 7) for i in range(60)])
    assert least_gain(asked, np.full(60, 0.2), np.full(60, 0.4)) is None


def test_the_bound_is_that_of_a_paired_ratio_clustered_by_query() -> None:
    """One scenario, whose prompts of a query rise and fall together."""
    rng = np.random.default_rng(1)
    queries = [f"q{i}" for i in range(100)] * 3
    before_U = rng.uniform(0.1, 0.5, 300)
    after_U = before_U * np.tile(rng.normal(1.05, 0.2, 100), 3)
    bound = least_gain(Asked(["s"] * 300, queries), before_U, after_U)
    alone = least_gain(Asked(["s"] * 300, [f"q{i}" for i in range(300)]), before_U, after_U)
    low = ratio_interval(after_U, before_U, 4000, cluster_U=queries).low  # at 2.5 %, not 1.67 %
    assert bound is not None
    assert alone is not None
    assert bound == pytest.approx(low, abs=0.01)
    assert bound < low < alone


@pytest.mark.parametrize(
    ("changes", "why"),
    [((0.3, 1.0), "finds only 0.300"), ((0.5, 50.0), "50.0 nats a list")],
)
def test_what_forgets_clicked_texts_or_goes_too_far_is_refused_however_much_it_gains(
    changes: tuple[float, float], why: str
) -> None:
    reward_U = np.full(len(ASKED.query_U), 0.2)
    found, kl = changes
    after = measured(1.5 * reward_U, found=found, kl=kl)
    assert why in refusal(ASKED, measured(reward_U), after, max_kl=40)


def test_a_scenario_that_loses_is_not_paid_for_by_the_others() -> None:
    reward_U = np.full(len(ASKED.query_U), 0.2)
    after_U = reward_U * np.repeat([1.5, 1.5, 0.9], NUM_PROMPTS)
    assert "clarification x 0.900" in refusal(ASKED, measured(reward_U), measured(after_U), 40)


@pytest.mark.parametrize("num_worthless", [1, 60])
def test_a_scenario_whose_lists_are_worth_nothing_stands_in_nobodys_way(num_worthless: int) -> None:
    asked = asked_of(60, num_worthless)
    worthless = np.repeat([1.0, 0.0], [60, num_worthless])
    before_U = worthless * np.random.default_rng(0).uniform(0.2, 0.4, len(worthless))
    for scale in (1.0, 1e-20):  # lower bounds may be tiny
        scaled_U = scale * before_U
        before = measured(scaled_U, asked=asked)
        assert refusal(asked, before, measured(1.3 * scaled_U, asked=asked), max_kl=40) == ""
        why_not = refusal(asked, before, measured(0.9 * scaled_U, asked=asked), max_kl=40)
        assert "suggestion x 0.900, completion x 1.000" in why_not


def test_a_scenario_whose_worth_is_lost_is_refused() -> None:
    asked = asked_of(60, 60)
    before = measured(np.full(120, 0.2), asked=asked)
    after = measured(np.repeat([0.4, 0.0], 60), asked=asked)
    assert "completion x 0.000" in refusal(asked, before, after, max_kl=40)
