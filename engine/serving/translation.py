"""Between the contract's messages and the engine's own types: validates, normalises, nothing more.

Limits are those that the comments of `queryrec/v1/*.proto` state.
"""

import re
import time
from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration

from engine import errors
from engine.answering.answer import Answer, Question
from engine.answering.candidates import key_of
from engine.feedback.attribution import AttributionToken, KeyRing, Shown, Source
from engine.feedback.events import TEXT_RULE, check_id
from engine.formats.manifest import Manifest, ScenarioSpec
from engine.formats.prompt import COOCCURRING, SideInformation
from engine.formats.text import MAX_QUERY_BYTES, has_control_characters, normalise, normalise_prefix
from engine.scheduling.deadline import Clock, Deadline
from engine.scheduling.stages import Left, Probe, Why
from queryrec.v1 import query_recommender_service_pb2 as pb
from queryrec.v1.scenario_pb2 import Scenario
from queryrec.v1.stage_pb2 import Omission, OmissionKind, OmissionReason, StageTiming
from queryrec.v1.suggestion_pb2 import Suggestion, SuggestionSource

MAX_SUGGESTIONS = 32
_MAX_LOCALE_BYTES = 35
_MAX_SESSION_QUERIES = 16
_MAX_ANSWER_BYTES = 8192
_MAX_ITEMS = 16
_MAX_KIND_BYTES = 32
_MAX_ITEM_BYTES = 1024
_MAX_EXCLUDED = 256
_MAX_DURATION_S = 315_576_000_000  # of google.protobuf.Duration
_USED_CHARACTERS = 1024  # of a long text; the prompt takes a few tokens of it
_MAX_SHRINKING = 8  # normalisation makes no text (but white space) shorter than a fifth of it
_LOCALE = re.compile(r"[A-Za-z0-9-]*")
_KIND = re.compile(r"[a-z0-9_]+")
_SOURCES = {
    Source.LOG: (SuggestionSource.SUGGESTION_SOURCE_LOG,),
    Source.GENERATED: (SuggestionSource.SUGGESTION_SOURCE_GENERATED,),
    Source.LOG | Source.GENERATED: (
        SuggestionSource.SUGGESTION_SOURCE_LOG,
        SuggestionSource.SUGGESTION_SOURCE_GENERATED,
    ),
}
_KINDS = {
    Left.SKIPPED: OmissionKind.OMISSION_KIND_SKIPPED,
    Left.DEGRADED: OmissionKind.OMISSION_KIND_DEGRADED,
}
_REASONS = {
    Why.BUDGET: OmissionReason.OMISSION_REASON_BUDGET,
    Why.NOT_IN_BUNDLE: OmissionReason.OMISSION_REASON_NOT_IN_BUNDLE,
    Why.OVERLOAD: OmissionReason.OMISSION_REASON_OVERLOAD,
    Why.FAILURE: OmissionReason.OMISSION_REASON_FAILURE,
    Why.CACHED: OmissionReason.OMISSION_REASON_CACHED,
}


def question_of(
    request: pb.RecommendRequest,
    scenarios: Mapping[str, ScenarioSpec],
    *,
    time_left_s: float | None,
    default_budget_s: float,
    clock: Clock,
) -> Question:
    """Returns a request as a question.

    Args:
        request: As received.
        scenarios: Those of the bundle.
        time_left_s: Of the call's deadline; None if it has none.
        default_budget_s: Holds for calls with neither deadline nor latency budget.
        clock: Of the question's deadline.

    Raises:
        InvalidRequest: a field breaks the contract; the error names it.
        ScenarioUnknown: the bundle has no such scenario.
    """
    budget_s = _budget_s(request)
    limits_s = [limit for limit in (time_left_s, budget_s) if limit is not None]
    deadline = Deadline.after(min(limits_s, default=default_budget_s), clock)
    scenario = scenarios.get(request.scenario)
    if scenario is None:
        raise errors.ScenarioUnknown(scenarios)
    _check_ids(request)
    num_wanted = request.max_suggestions
    if not 0 <= num_wanted <= MAX_SUGGESTIONS:
        raise errors.max_suggestions_out_of_range(num_wanted, max_value=MAX_SUGGESTIONS)
    _check_count("session_queries", len(request.session_queries), _MAX_SESSION_QUERIES)
    _check_count("side_information", len(request.side_information), _MAX_ITEMS)
    _check_count("exclude", len(request.exclude), _MAX_EXCLUDED)
    _check_raw("query", request.query)
    normalised = normalise_prefix if scenario.completes_prefix else normalise
    query = normalised(request.query)
    if not query:
        raise errors.query_empty()
    _check_text("query", query, MAX_QUERY_BYTES)
    return Question(
        scenario=scenario,
        query=query,
        session_queries=tuple(
            _session_query(f"session_queries[{i}]", text)
            for i, text in enumerate(request.session_queries)
        ),
        answer=_beginning("answer", request.answer, _MAX_ANSWER_BYTES),
        side_information=tuple(
            _side_information(i, item.kind, item.text)
            for i, item in enumerate(request.side_information)
        ),
        excluded_keys=frozenset(
            key_of(_query(f"exclude[{i}]", text)) for i, text in enumerate(request.exclude)
        ),
        num_suggestions=num_wanted or min(scenario.num_suggestions, MAX_SUGGESTIONS),
        deadline=deadline,
    )


def response_of(
    answer: Answer,
    question: Question,
    *,
    request_id: str,
    session_id: str,
    bundle_id: str,
    keys: KeyRing,
    probe: Probe,
) -> pb.RecommendResponse:
    """Returns an answer as a response, with its token sealed."""
    token = AttributionToken(
        request_id=request_id,
        bundle_id=bundle_id,
        time_unix_ms=time.time_ns() // 1_000_000,
        scenario=question.scenario.name,
        query=question.query,
        session_id=session_id,
        auxiliary_text=answer.auxiliary_text,
        is_public=answer.is_public,
        suggestions=tuple(
            Shown(text=s.text, sources=s.source, propensity=s.propensity)
            for s in answer.suggestions
        ),
    ).seal(keys)
    return pb.RecommendResponse(
        request_id=request_id,
        suggestions=[
            Suggestion(
                text=s.text,
                click_probability=s.click_probability,
                sources=_SOURCES[s.source],
                position=position,
            )
            for position, s in enumerate(answer.suggestions, 1)
        ],
        auxiliary_text=answer.auxiliary_text,
        attribution_token=token,
        omissions=[
            Omission(
                stage=o.stage,
                kind=_KINDS[o.kind],
                reason=_REASONS[o.reason],
            )
            for o in answer.omissions
        ],
        bundle_id=bundle_id,
        stage_timings=[
            StageTiming(stage=stage, duration_us=round(elapsed_s * 1e6))
            for stage, elapsed_s in probe.finish()
        ],
    )


def scenarios_of(manifest: Manifest) -> pb.ListScenariosResponse:
    """Returns what a bundle can do."""
    kinds = sorted(set(manifest.prompt.side_information_kinds) - {COOCCURRING})
    return pb.ListScenariosResponse(
        scenarios=[
            Scenario(
                name=s.name,
                description=s.description,
                default_num_suggestions=min(s.num_suggestions, MAX_SUGGESTIONS),
                max_num_suggestions=MAX_SUGGESTIONS,
                has_auxiliary_text=s.has_auxiliary_text,
                side_information_kinds=kinds,
            )
            for s in sorted(manifest.scenarios, key=lambda s: s.name)
        ],
        bundle_id=manifest.bundle_id,
    )


def _budget_s(request: pb.RecommendRequest) -> float | None:
    if not request.HasField("latency_budget"):
        return None
    budget: Duration = request.latency_budget
    seconds, nanos = budget.seconds, budget.nanos
    if not (0 <= seconds <= _MAX_DURATION_S and 0 <= nanos < 1_000_000_000 and seconds + nanos > 0):
        raise errors.latency_budget_invalid()
    return seconds + nanos / 1e9


def _check_ids(request: pb.RecommendRequest) -> None:
    check_id("session_id", request.session_id)
    check_id("user_key", request.user_key)
    _check_text("locale", request.locale, _MAX_LOCALE_BYTES)
    if not _LOCALE.fullmatch(request.locale):
        raise errors.text_invalid("locale", "letters, digits and hyphens only")


def _side_information(index: int, kind: str, text: str) -> SideInformation:
    field = f"side_information[{index}]"
    _check_text(f"{field}.kind", kind, _MAX_KIND_BYTES)
    if not _KIND.fullmatch(kind):
        raise errors.text_invalid(f"{field}.kind", "characters a to z, 0 to 9 and underscore")
    normalised = _beginning(f"{field}.text", text, _MAX_ITEM_BYTES)
    if not normalised:
        raise errors.text_invalid(f"{field}.text", "at least one character but white space")
    return SideInformation(kind, normalised)


def _beginning(field: str, text: str, max_bytes: int) -> str:
    """Returns as much of a normalised text as any prompt can use."""
    text = " ".join(text.split())
    _check_text(field, text, max_bytes)
    return normalise(text[:_USED_CHARACTERS])[:_USED_CHARACTERS].rstrip()


def _session_query(field: str, text: str) -> str:
    if query := _query(field, text):
        return query
    raise errors.text_invalid(field, "at least one character but white space")


def _query(field: str, text: str) -> str:
    """Returns a normalised text that is no longer than a query may be."""
    _check_raw(field, text)
    normalised = normalise(text)
    _check_text(field, normalised, MAX_QUERY_BYTES)
    return normalised


def _check_raw(field: str, text: str) -> None:
    """Refuses what is too long in any form: normalising it could take seconds."""
    size = len(" ".join(text.split()).encode("utf-8"))
    if size > _MAX_SHRINKING * MAX_QUERY_BYTES:
        raise errors.text_too_long(field, size_bytes=size, max_bytes=MAX_QUERY_BYTES)


def _check_text(field: str, text: str, max_bytes: int) -> None:
    size = len(text) if text.isascii() else len(text.encode("utf-8"))
    if size > max_bytes:
        raise errors.text_too_long(field, size_bytes=size, max_bytes=max_bytes)
    if not text.isprintable() and has_control_characters(text):
        raise errors.text_invalid(field, TEXT_RULE)


def _check_count(field: str, num_items: int, max_items: int) -> None:
    if num_items > max_items:
        raise errors.too_many_items(field, num_items=num_items, max_items=max_items)
