"""Plans: a pure function of costs, time left and load."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.formats.manifest import GeneratorSpec, ScenarioSpec
from engine.scheduling.costs import Work
from engine.scheduling.planner import (
    SCORED_SIZES,
    Load,
    Plan,
    Rung,
    Wanted,
    generation_rungs,
    make_plan,
    score_work,
)
from engine.scheduling.stages import Left, Omission, Stage, Why

FULL, FEWER, SHORTER = Rung((1,) * 8, (8,) * 8), Rung((1,) * 4, (8,) * 4), Rung((1,) * 4, (6,) * 4)
ALL = Wanted(encode=True, rungs=(FULL, FEWER, SHORTER), num_scored=32)


class FixedCosts:
    """Milliseconds: encode 2; generate 20, 15, 12; score 5, 3, 1; doubled for batches."""

    def predict_s(self, work: Work, batch_size: int) -> float:
        table = {
            Work(Stage.ENCODE): 2,
            FULL.work: 20,
            FEWER.work: 15,
            SHORTER.work: 12,
            score_work(32): 5,
            score_work(16): 3,
            score_work(8): 1,
            Work(Stage.GENERATE, (7, 16)): 30,
        }
        return table[work] / 1000 * (2 if batch_size > 1 else 1)


def plan(left_ms: float, load: Load = Load(), wanted: Wanted = ALL) -> Plan:  # noqa: B008
    return make_plan(FixedCosts(), wanted, left_ms / 1000, load)


@pytest.mark.parametrize(
    ("left_ms", "rung", "num_scored", "encode"),
    [
        (100, FULL, 32, True),
        (27.1, FULL, 32, True),
        (26, FEWER, 32, True),
        (20, SHORTER, 32, True),
        (18, None, 32, True),
        (6, None, 16, True),
        (4, None, 8, True),
        (2.5, None, 0, True),
        (1, None, 0, False),
        (0, None, 0, False),
        (-5, None, 0, False),
    ],
)
def test_the_ladder_gives_up_the_least_that_makes_the_rest_fit(left_ms, rung, num_scored, encode):
    chosen = plan(left_ms)
    assert (chosen.rung, chosen.num_scored, chosen.encode) == (rung, num_scored, encode)


def test_a_full_plan_leaves_nothing_out():
    assert plan(100).omissions == ()


def test_what_does_not_fit_is_listed_with_budget_as_the_reason_on_an_idle_engine():
    assert plan(4).omissions == (
        Omission(Stage.GENERATE, Left.SKIPPED, Why.BUDGET),
        Omission(Stage.SCORE, Left.DEGRADED, Why.BUDGET),
    )
    assert plan(26).omissions == (Omission(Stage.GENERATE, Left.DEGRADED, Why.BUDGET),)


def test_what_would_fit_an_idle_engine_is_left_out_for_overload():
    assert plan(30, Load(wait_s=0.020)).omissions[0].reason is Why.OVERLOAD
    crowded = Load(own={FULL.work: 3}, max_rows=8)
    assert plan(30, crowded).omissions[0].reason is Why.OVERLOAD


def test_time_spent_waiting_is_no_lack_of_budget():
    chosen = make_plan(FixedCosts(), ALL, 0.026, Load(), waited_s=0.010)
    assert chosen.omissions == (Omission(Stage.GENERATE, Left.DEGRADED, Why.OVERLOAD),)


def test_rows_ahead_of_the_same_kind_share_batches_and_others_take_their_time():
    full_ms = 27  # an idle engine's; batches of more than one row take twice as long
    same = Load(own={FULL.work: 3}, max_rows=4)
    assert plan(full_ms + 20, same).rung is FULL
    assert plan(full_ms + 19, same).rung is not FULL
    two_batches = Load(own={FULL.work: 4}, max_rows=4)
    assert plan(full_ms + 40, two_batches).rung is FULL
    assert plan(full_ms + 39, two_batches).rung is not FULL
    other = Load(own={Work(Stage.GENERATE, (7, 16)): 1}, max_rows=4)
    assert plan(full_ms + 30, other).rung is FULL
    assert plan(full_ms + 29, other).rung is not FULL


def test_a_flood_of_another_scenario_counts_no_more_than_the_own_time_and_its_lead():
    flood = {Work(Stage.GENERATE, (7, 16)): 1000}
    even = Load(others=[(flood, 0.0)], max_rows=1)
    assert plan(2 * 27.1, even).rung is FULL
    assert plan(2 * 26.9, even).rung is not FULL
    behind = Load(others=[(flood, 0.020)], max_rows=1)
    assert plan(2 * 27.1 - 20, behind).rung is FULL
    little = Load(others=[({Work(Stage.GENERATE, (7, 16)): 1}, 0.0)], max_rows=1)
    assert plan(27.1 + 30, little, Wanted(encode=True, rungs=(FULL,), num_scored=32)).rung is FULL


def test_absent_models_are_no_omissions():
    chosen = plan(100, wanted=Wanted(encode=False))
    assert chosen == Plan(False, None, 0, ())


@given(st.floats(0, 60), st.floats(0, 60), st.floats(0, 0.05))
def test_more_time_never_gets_a_lesser_plan(one_ms, other_ms, wait_s):
    less, more = sorted((one_ms, other_ms))
    order = [FULL, FEWER, SHORTER, None]
    lesser, better = plan(less, Load(wait_s)), plan(more, Load(wait_s))
    assert order.index(better.rung) <= order.index(lesser.rung)
    assert better.num_scored >= lesser.num_scored or better.rung is not lesser.rung


@pytest.mark.parametrize(("num", "size"), [(1, 8), (8, 8), (9, 16), (17, 32), (32, 32)])
def test_candidates_are_padded_to_the_next_size(num, size):
    assert score_work(num).variant == (size,)
    assert size in SCORED_SIZES


def spec(mode: str, max_new_tokens: int = 100) -> GeneratorSpec:
    return GeneratorSpec(
        file="g.onnx",
        precision="fp32",
        inputs={},
        outputs={},
        mode=mode,
        max_prompt_tokens=64,
        max_new_tokens=max_new_tokens,
    )


def scenario(**fields) -> ScenarioSpec:
    return ScenarioSpec(name="s", description="", position_ctr=[1.0], **fields)


def test_every_other_slot_goes_then_a_quarter_of_the_tokens():
    rungs = generation_rungs(scenario(), spec("slots"), list(range(20, 28)), 3)
    assert rungs[0] == Rung(tuple(range(20, 28)), (8,) * 8)
    assert rungs[1] == Rung((21, 23, 25, 27), (8,) * 4)
    assert rungs[2] == Rung((21, 23, 25, 27), (6,) * 4)


def test_the_auxiliary_text_keeps_its_slot_and_length():
    rungs = generation_rungs(
        scenario(has_auxiliary_text=True, num_slots=7), spec("slots"), list(range(20, 27)), 3
    )
    assert rungs[0] == Rung(tuple(range(20, 27)), (16, *(8,) * 6))
    assert rungs[1] == Rung((20, 22, 24, 26), (16, 8, 8, 8))


def test_a_list_is_one_sequence_no_longer_than_the_graph_allows():
    rungs = generation_rungs(scenario(), spec("list", 50), list(range(8)), 3)
    assert rungs[0] == Rung((3,), (50,))
    assert rungs[1] == Rung((3,), (32,))
