"""What callers get under load, on simulated time: the engine's own pipeline, planner and batcher.

Hours of traffic would take seconds; these take less. Loads are relative to how many full answers
a second the simulated machine could make one after the other.
"""

import logging
from collections.abc import Iterable, Sequence

import pytest

from benchmarks.simulation import (
    Arrival,
    Machine,
    Outcome,
    capacity_rps,
    play,
    poisson,
    simulate,
    summary,
)
from engine.answering.pipeline import Pipeline
from engine.config import Config
from engine.execution.bundle import Bundle
from engine.execution.models import GenerateRow, ScoreRow
from engine.execution.runner import LookupRow
from engine.scheduling.stages import Stage, Why


class Played:
    """A simulation that has ended."""

    def __init__(self, bundle: Bundle, arrivals: Iterable[Arrival], **faults) -> None:
        self.machine: Machine
        self.pipeline: Pipeline
        self.outcomes: list[Outcome] = simulate(
            lambda loop: self._play(bundle, list(arrivals), loop, faults)
        )

    async def _play(self, bundle, arrivals, loop, faults) -> list[Outcome]:
        self.machine = Machine(loop, **faults)
        outcomes, self.pipeline = await play(bundle, arrivals, self.machine, loop, Config())
        return outcomes

    def full_share(self, begin_s: float = 0.0, end_s: float = float("inf")) -> float:
        chosen = [o for o in self.outcomes if begin_s <= o.arrival.at_s < end_s]
        return summary(chosen)["undegraded"]


@pytest.fixture
def rate_rps(bundle) -> float:
    return capacity_rps(bundle)


def ran_at(played: Played, bundle: Bundle) -> list[tuple[float, str]]:
    """Returns when which query was in a model run, as its rows tell."""
    texts: list[tuple[float, str]] = []
    for at_s, _, rows in played.machine.runs:
        for row in rows:
            if isinstance(row, LookupRow):
                texts.append((at_s, row.query))
            else:
                assert isinstance(row, GenerateRow | ScoreRow)
                ids = row.prompt_ids if isinstance(row, GenerateRow) else row.context_ids
                texts.append((at_s, bundle.vocabulary.bytes_of(ids).decode("utf-8", "ignore")))
    return texts


def test_nobody_waits_longer_than_the_budget_and_answers_get_lesser_as_load_grows(bundle, rate_rps):
    shares: list[float] = []
    for load in (0.5, 0.8, 3.0):
        played = Played(bundle, poisson(load * rate_rps, 6))
        assert all(o.is_in_budget for o in played.outcomes), "none late, none refused"
        shares.append(played.full_share())
        result = summary(played.outcomes)["by_plan"]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9
    assert result["look-up"] < 0.2, "at three times the capacity, most still get more than that"
    assert result["log, unranked"] < 0.3


def test_what_is_given_up_first_is_what_costs_the_answer_least(bundle, rate_rps):
    played = Played(bundle, poisson(3 * rate_rps, 6))
    for outcome in played.outcomes:
        left = {o.stage for o in outcome.omissions}
        assert Stage.ENCODE not in left or Stage.GENERATE in left
    plans = [o.plan for o in played.outcomes]
    assert {"full", "log, ranked", "log, ranked less", "log, unranked"} <= set(plans)


def test_under_load_other_requests_are_the_reason_not_the_budget(bundle, rate_rps):
    played = Played(bundle, poisson(3 * rate_rps, 4))
    reasons = [o.reason for outcome in played.outcomes for o in outcome.omissions]
    assert reasons.count(Why.OVERLOAD) > 20 * reasons.count(Why.BUDGET)


def test_a_burst_is_answered_within_the_budget_and_forgotten(bundle, rate_rps):
    burst = [Arrival(2.0, f"burst {i}") for i in range(50)]
    played = Played(bundle, [*poisson(0.5 * rate_rps, 6), *burst])
    assert all(o.is_in_budget for o in played.outcomes)
    assert played.full_share(2.3) > 0.85


def test_six_seconds_after_a_stall_all_is_as_before(bundle, rate_rps):
    for load in (0.1, 0.5):
        played = Played(bundle, poisson(load * rate_rps, 14), stalls_s=[(2.0, 0.2)])
        assert all(o.is_in_budget for o in played.outcomes)
        assert played.full_share(8.2) > 0.85


def test_six_seconds_after_a_stage_that_took_ten_times_as_long_all_is_as_before(bundle, rate_rps):
    def slow(work, now_s):
        return 10.0 if work.stage is Stage.GENERATE and 3 <= now_s < 8 else 1.0

    played = Played(bundle, poisson(0.5 * rate_rps, 18), slowdown=slow)
    assert all(o.is_in_budget for o in played.outcomes)
    assert played.full_share(4, 8) < 0.5
    assert played.full_share(14) > 0.85
    slow_runs = [w for at, w, _ in played.machine.runs if 4 <= at < 8 and w.stage is Stage.GENERATE]
    assert len(slow_runs) < 8, "it is tried now and then only"


def test_a_run_that_raises_costs_its_own_callers_a_stage_and_is_logged_once(
    bundle, rate_rps, caplog
):
    with caplog.at_level(logging.WARNING):
        played = Played(bundle, poisson(0.5 * rate_rps, 12), failure_rate=0.02)
    failed = [o for o in played.outcomes if any(x.reason is Why.FAILURE for x in o.omissions)]
    assert len(failed) == len(played.machine.failed_rows) > 0
    assert all(o.is_in_budget for o in played.outcomes)
    assert played.full_share() > 0.8
    logged = [r for r in caplog.records if "rows failed" in r.getMessage()]
    assert 0 < len(logged) <= len(played.machine.failed_rows)
    assert "odd 0" not in caplog.text, "no query text"


def test_rows_of_callers_who_left_and_rows_past_their_deadline_never_run(bundle, rate_rps):
    crowd = list(poisson(3 * rate_rps, 3))
    patience_s = [0.020 if i % 3 == 0 else float("inf") for i in range(len(crowd))]
    arrivals = [
        Arrival(a.at_s, a.query, a.scenario, a.budget_s, p)
        for a, p in zip(crowd, patience_s, strict=True)
    ]
    played = Played(bundle, arrivals)
    gone = [o for o in played.outcomes if o.error]
    assert gone
    end_s = {a.query: a.at_s + min(a.budget_s, a.patience_s) for a in arrivals}
    checked = 0
    for at_s, text in ran_at(played, bundle):
        for query in (q for q in end_s if q in text):
            assert at_s < end_s[query]
            checked += 1
    assert checked > len(arrivals)


def test_batches_hold_one_kind_of_work(bundle, rate_rps):
    played = Played(bundle, poisson(3 * rate_rps, 3))
    batches = [(w, rows) for _, w, rows in played.machine.runs if w.stage is Stage.GENERATE]
    assert len({work for work, _ in batches}) > 1
    assert max(len(rows) for _, rows in batches) > 1
    assert all({r.rung.work for r in rows} == {work} for work, rows in batches)


@pytest.mark.parametrize(
    ("calm", "flood"), [("completion", "suggestion"), ("suggestion", "clarification")]
)
def test_a_flood_of_one_scenario_does_not_starve_another(bundle, calm, flood):
    floods = list(poisson(3 * capacity_rps(bundle, flood), 8, scenario=flood))
    calms = list(poisson(0.2 * capacity_rps(bundle, calm), 8, seed=1, scenario=calm))
    outcomes = Played(bundle, [*floods, *calms]).outcomes
    by_scenario = [
        summary([o for o in outcomes if o.arrival.scenario == s])["by_plan"] for s in (calm, flood)
    ]
    generated, flooded = [s["full"] + s["generated less"] for s in by_scenario]
    assert all(o.is_in_budget for o in outcomes)
    assert generated > 0.4
    assert generated > 4 * flooded
    assert by_scenario[0]["look-up"] < 0.05


def test_equal_queries_that_come_together_are_generated_once(bundle):
    together: Sequence[Arrival] = [Arrival(1.0, "odd 0 same") for _ in range(30)]
    later = [Arrival(2.0, "odd 0 same")]
    registry = Played(bundle, [*together, *later]).pipeline.worker._metrics.registry
    num_misses, num_shared, num_hits = (
        registry.get_sample_value(
            "queryrec_cache_lookups_total", {"cache": "generation", "result": result}
        )
        or 0
        for result in ("miss", "shared", "hit")
    )
    assert 1 <= num_misses <= 2  # the second batch of encoded queries may come after the first
    assert num_hits >= 1
    assert num_misses + num_shared + num_hits <= 31


def test_a_millisecond_gets_a_look_up_and_an_hour_gets_everything_whoever_else_is_there(bundle):
    hours = [Arrival(1.0 + i / 1000, f"hour {i}", budget_s=3600.0) for i in range(30)]
    hasty = [Arrival(1.0 + i / 100, f"hasty {i}", budget_s=0.001) for i in range(30)]
    usual = [Arrival(1.0 + i / 5, f"usual {i}") for i in range(20)]
    outcomes = Played(bundle, [*hours, *hasty, *usual]).outcomes
    assert all(o.is_in_budget for o in outcomes)
    by_budget = {
        b: [o.plan for o in outcomes if o.arrival.budget_s == b] for b in (3600.0, 0.001, 0.1)
    }
    assert set(by_budget[3600.0]) == {"full"}
    assert set(by_budget[0.001]) == {"look-up"}
    assert by_budget[0.1].count("full") > 10
