"""Every call is counted by how it ended, whatever way that was."""

import asyncio
from contextlib import suppress

import pytest

from engine import errors
from engine.scheduling.deadline import Deadline
from engine.scheduling.stages import Effort, Left, Omission, Stage, Why
from engine.telemetry.metrics import Metrics
from engine.telemetry.observation import Observer
from engine.telemetry.state import State
from queryrec.v1.error_reason_pb2 import ErrorReason


class Context:
    """A call's context as far as observation looks at it."""

    def __init__(self, metadata=()) -> None:
        self._metadata = metadata
        self.trailing: tuple[tuple[str, str], ...] = ()

    def invocation_metadata(self):
        return self._metadata

    def set_trailing_metadata(self, metadata) -> None:
        self.trailing = metadata


SUGGESTION = {"scenario": "suggestion", "side": "bundle"}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def observer(clock, metrics) -> Observer:
    return Observer(clock, metrics)


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"queryrec_{name}", labels) or 0.0


def num_calls(metrics: Metrics, status: str, *, scenario: str = "suggestion") -> float:
    side = "" if scenario == "unknown" else "bundle"
    labels = {"method": "Recommend", "scenario": scenario, "side": side, "status": status}
    return value(metrics, "request_duration_seconds_count", **labels)


def recommend(
    observer, clock, *, lasts_s: float, error: BaseException | None = None, num_suggestions: int = 6
) -> None:
    with observer.call("Recommend", Context()) as call:
        call.asked("suggestion", "bundle")
        call.due(Deadline.after(0.05, clock))
        clock.advance(lasts_s)
        if error is not None:
            raise error
        call.answered((), num_suggestions)


def test_an_answer_in_time_counts_by_scenario_and_status(observer, clock, metrics):
    recommend(observer, clock, lasts_s=0.03)
    assert num_calls(metrics, "OK") == 1
    seconds = {"method": "Recommend", **SUGGESTION, "status": "OK"}
    assert value(metrics, "request_duration_seconds_sum", **seconds) == pytest.approx(0.03)
    assert value(metrics, "answers_total", **SUGGESTION, effort="full") == 1
    assert value(metrics, "budget_misses_total", **SUGGESTION) == 0


def test_an_answer_without_suggestions_is_counted(observer, clock, metrics):
    recommend(observer, clock, lasts_s=0.03)
    recommend(observer, clock, lasts_s=0.03, num_suggestions=0)
    assert value(metrics, "answers_total", **SUGGESTION, effort="full") == 2
    assert value(metrics, "empty_answers_total", **SUGGESTION) == 1


def test_an_answer_after_its_budget_is_a_miss(observer, clock, metrics):
    recommend(observer, clock, lasts_s=0.06)
    assert num_calls(metrics, "OK") == 1
    assert value(metrics, "budget_misses_total", **SUGGESTION) == 1


@pytest.mark.parametrize(
    ("lasts_s", "status", "num_misses"), [(0.06, "DEADLINE_EXCEEDED", 1), (0.01, "CANCELLED", 0)]
)
def test_a_cancelled_call_is_a_miss_only_once_its_budget_is_over(
    observer, clock, metrics, lasts_s, status, num_misses
):
    with pytest.raises(asyncio.CancelledError):
        recommend(observer, clock, lasts_s=lasts_s, error=asyncio.CancelledError())
    assert num_calls(metrics, status) == 1
    assert value(metrics, "budget_misses_total", **SUGGESTION) == num_misses
    assert value(metrics, "answers_total", **SUGGESTION, effort="full") == 0


def test_a_refused_call_counts_by_reason_and_passes_the_error_on(observer, clock, metrics):
    with pytest.raises(errors.QueueFull):
        recommend(observer, clock, lasts_s=0.001, error=errors.QueueFull("models"))
    assert num_calls(metrics, "RESOURCE_EXHAUSTED") == 1
    assert value(metrics, "errors_total", method="Recommend", reason="queue_full") == 1


def test_a_scenario_that_nobody_confirmed_is_no_label(observer, metrics):
    with pytest.raises(errors.ScenarioUnknown), observer.call("Recommend", Context()):
        raise errors.ScenarioUnknown(["suggestion"])
    assert num_calls(metrics, "NOT_FOUND", scenario="unknown") == 1


def test_calls_are_in_flight_until_they_end(observer, metrics):
    with observer.call("Recommend", Context()), observer.call("ListScenarios", Context()):
        assert value(metrics, "requests_in_flight") == 2
    assert value(metrics, "requests_in_flight") == 0


def test_stage_times_and_omissions_of_answers_are_counted(observer, clock, metrics):
    with observer.call("Recommend", Context()) as call:
        with call.probe.during(Stage.GENERATE):
            clock.advance(0.012)
        call.asked("completion", "canary")
        call.answered((Omission(Stage.SCORE, Left.SKIPPED, Why.OVERLOAD),), 6)
    assert value(metrics, "stage_duration_seconds_sum", stage="generate") == pytest.approx(0.012)
    omission = {"stage": "score", "kind": "skipped", "reason": "overload"}
    assert value(metrics, "omissions_total", **omission) == 1
    canary = {"scenario": "completion", "side": "canary"}
    assert value(metrics, "answers_total", **canary, effort="reduced") == 1


def test_what_a_canary_does_worse_is_counted_for_it_alone(observer, clock, metrics):
    for side, lasts_s, num_suggestions in (("bundle", 0.03, 6), ("canary", 0.06, 0)):
        with observer.call("Recommend", Context()) as call:
            call.asked("suggestion", side)
            call.due(Deadline.after(0.05, clock))
            clock.advance(lasts_s)
            call.answered((), num_suggestions)
    for name in ("budget_misses_total", "empty_answers_total"):
        assert value(metrics, name, scenario="suggestion", side="canary") == 1
        assert value(metrics, name, **SUGGESTION) == 0
    canary = {"method": "Recommend", "scenario": "suggestion", "side": "canary", "status": "OK"}
    assert value(metrics, "request_duration_seconds_sum", **canary) == pytest.approx(0.06)


def test_feedback_events_count_as_accepted_or_by_reason(observer, metrics):
    with observer.call("RecordFeedback", Context()) as call:
        call.stored(3, [ErrorReason.ERROR_REASON_TOKEN_MALFORMED] * 2)
    assert value(metrics, "feedback_events_total", result="accepted") == 3
    assert value(metrics, "feedback_events_total", result="token_malformed") == 2


@pytest.mark.parametrize("given", ["a", "7f3c-01_x.y:z=1", "x" * 64])
def test_a_valid_request_id_of_the_caller_is_kept_and_sent_back(observer, given):
    context = Context((("user-agent", "test"), ("x-request-id", given)))
    call = observer.call("Recommend", context)
    assert call.request_id == given
    assert context.trailing == (("x-request-id", given),)
    assert call.response_id != given, "a retry may send the same id again"


@pytest.mark.parametrize("given", ["", "x" * 65, "two words", "line\nbreak", "ü", b"bytes"])
def test_another_one_is_replaced(observer, given):
    context = Context((("x-request-id", given),))
    call = observer.call("Recommend", context)
    assert call.request_id == call.response_id
    assert context.trailing == (("x-request-id", call.response_id),)


GENERATE, SCORE, ENCODE = Stage.GENERATE, Stage.SCORE, Stage.ENCODE


@pytest.mark.parametrize(
    ("omissions", "effort"),
    [
        ([], Effort.FULL),
        ([Omission(GENERATE, Left.SKIPPED, Why.CACHED)], Effort.FULL),
        ([Omission(GENERATE, Left.DEGRADED, Why.OVERLOAD)], Effort.REDUCED),
        ([Omission(ENCODE, Left.SKIPPED, Why.BUDGET)], Effort.REDUCED),
        (
            [
                Omission(GENERATE, Left.SKIPPED, Why.CACHED),
                Omission(SCORE, Left.SKIPPED, Why.BUDGET),
            ],
            Effort.REDUCED,
        ),
        ([Omission(GENERATE, Left.SKIPPED, Why.BUDGET)], Effort.RANKED),
        (
            [
                Omission(GENERATE, Left.SKIPPED, Why.OVERLOAD),
                Omission(SCORE, Left.DEGRADED, Why.OVERLOAD),
            ],
            Effort.RANKED,
        ),
        (
            [
                Omission(GENERATE, Left.SKIPPED, Why.NOT_IN_BUNDLE),
                Omission(SCORE, Left.SKIPPED, Why.FAILURE),
            ],
            Effort.LOOKUP,
        ),
        ([Omission(SCORE, Left.SKIPPED, Why.NOT_IN_BUNDLE)], Effort.FULL),
        (
            [
                Omission(GENERATE, Left.SKIPPED, Why.NOT_IN_BUNDLE),
                Omission(ENCODE, Left.SKIPPED, Why.NOT_IN_BUNDLE),
            ],
            Effort.FULL,
        ),
        (
            [
                Omission(GENERATE, Left.DEGRADED, Why.BUDGET),
                Omission(SCORE, Left.SKIPPED, Why.NOT_IN_BUNDLE),
            ],
            Effort.REDUCED,
        ),
    ],
)
def test_effort_is_what_took_part_in_an_answer(omissions, effort):
    assert Effort.of(omissions) is effort


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("errors_total", {"method": "Recommend", "reason": "internal"}),
        ("errors_total", {"method": "ListScenarios", "reason": "queue_full"}),
        ("errors_total", {"method": "RecordFeedback", "reason": "feedback_not_stored"}),
        ("omissions_total", {"stage": "generate", "kind": "skipped", "reason": "failure"}),
        ("omissions_total", {"stage": "retrieve", "kind": "degraded", "reason": "failure"}),
        ("feedback_events_total", {"result": "token_key_unknown"}),
    ],
)
def test_what_alerts_look_for_starts_at_zero(metrics, name, labels):
    assert metrics.registry.get_sample_value(f"queryrec_{name}", labels) == 0.0


def test_late_feedback_is_no_late_answer(observer, clock, metrics):
    with suppress(asyncio.CancelledError), observer.call("RecordFeedback", Context()) as call:
        call.due(Deadline.after(0.05, clock))
        clock.advance(0.06)
        raise asyncio.CancelledError
    none = {"scenario": "", "side": ""}
    labels = {"method": "RecordFeedback", **none, "status": "DEADLINE_EXCEEDED"}
    assert value(metrics, "request_duration_seconds_count", **labels) == 1
    assert metrics.registry.get_sample_value("queryrec_budget_misses_total", none) is None


def test_state_is_asked_at_each_scrape(metrics):
    state = State()
    metrics.watch(lambda: state)
    assert value(metrics, "ready") == 0
    sides = {"bundle": "b-1", "canary": "b-2"}
    state = State(bundle_ids=sides, num_waiting=7, call_wait_s=0.25, num_refusals=2)
    assert value(metrics, "ready") == 1
    assert value(metrics, "rows_waiting") == 7
    assert value(metrics, "call_wait_seconds") == 0.25
    assert value(metrics, "bundle_refusals_total") == 2
    assert value(metrics, "bundle_info", side="bundle", bundle_id="b-1") == 1
    assert value(metrics, "bundle_info", side="canary", bundle_id="b-2") == 1
    state = State(bundle_ids={"bundle": "b-2"})
    assert value(metrics, "bundle_info", side="bundle", bundle_id="b-1") == 0


def test_scenarios_that_are_expected_start_at_zero(metrics):
    metrics.expect("canary", ["suggestion"])
    for side, expected in (("canary", 0.0), ("bundle", None)):
        labels = {"scenario": "suggestion", "side": side}
        name = "queryrec_budget_misses_total"
        assert metrics.registry.get_sample_value(name, labels) == expected
