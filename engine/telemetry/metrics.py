"""What Prometheus sees of an engine. Knows nothing of how requests are answered.

No label holds a text of a user, and every label has few values: scenarios are those of bundles,
all others are enumerations. `side` is that of the release which answers, "bundle" or "canary". All
that a request with every stage is counted for, times included, takes 38 us of CPU (`python -m
benchmarks.observation`, a Xeon with AMX).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Generic, Literal, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from engine.scheduling.stages import Effort, Left, Omission, Stage, Why
from engine.telemetry.state import PREFIX, State, StateCollector
from queryrec.v1.error_reason_pb2 import ErrorReason

Lookup = Literal["hit", "shared", "miss"]
"""Of a cache; shared: an equal value was being made already."""

K = TypeVar("K")
C = TypeVar("C", Counter, Histogram)

UNKNOWN_SCENARIO = "unknown"
"""Label of requests for a scenario that no bundle has."""

_REQUEST_BUCKETS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06),
    *(0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5),
)
_STAGE_BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.25, 1.0),
)
# What alerts look for starts at zero, so that its first time is seen as a rise.
_METHODS = ("Recommend", "RecordFeedback", "ListScenarios")
_ALERTING_ERRORS = (
    ErrorReason.ERROR_REASON_INTERNAL,
    ErrorReason.ERROR_REASON_QUEUE_FULL,
    ErrorReason.ERROR_REASON_FEEDBACK_NOT_STORED,
)
_EVENT_REFUSALS = (
    ErrorReason.ERROR_REASON_TOKEN_MALFORMED,
    ErrorReason.ERROR_REASON_TOKEN_SIGNATURE_INVALID,
    ErrorReason.ERROR_REASON_TOKEN_KEY_UNKNOWN,
    ErrorReason.ERROR_REASON_EVENT_INVALID,
    ErrorReason.ERROR_REASON_TEXT_INVALID,
    ErrorReason.ERROR_REASON_FIELD_TOO_LONG,
)
_OMITTED_STAGES = (Stage.RETRIEVE, Stage.ENCODE, Stage.GENERATE, Stage.SCORE)
_ALERTING_OMISSIONS = (Why.FAILURE, Why.OVERLOAD)
_ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one engine, in a registry of their own. To be used from one event loop.

    Attributes:
        num_in_flight: Calls that are being worked on.
    """

    def __init__(self) -> None:
        """Starts from zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        requests = self._histogram(
            "request_duration_seconds",
            "Time from the arrival of a call to its response or error.",
            ("method", "scenario", "side", "status"),
            _REQUEST_BUCKETS_S,
        )
        stages = self._histogram(
            "stage_duration_seconds",
            "Time of an answer in a stage; queue is all waiting for models; stages that run in "
            "batches count the time of the whole batch.",
            ("stage",),
            _STAGE_BUCKETS_S,
        )
        batches = self._histogram(
            "batch_duration_seconds", "Time of a model run.", ("stage",), _STAGE_BUCKETS_S
        )
        rows = self._histogram("batch_rows", "Rows of a model run.", ("stage",), _ROW_BUCKETS)
        answers = self._counter(
            "answers_total",
            "Answers by how they were made: full, reduced (something was left out), ranked "
            "(nothing was generated), lookup (no model took part).",
            ("scenario", "side", "effort"),
        )
        empty = self._counter(
            "empty_answers_total", "Answers without suggestions.", ("scenario", "side")
        )
        omissions = self._counter(
            "omissions_total",
            "Stages of answers that did less, and why.",
            ("stage", "kind", "reason"),
        )
        misses = self._counter(
            "budget_misses_total",
            "Answers later than their budget, and calls that their deadline ended.",
            ("scenario", "side"),
        )
        errors = self._counter(
            "errors_total", "Calls that were refused or failed.", ("method", "reason")
        )
        events = self._counter(
            "feedback_events_total", "Feedback events: accepted, or why not.", ("result",)
        )
        lookups = self._counter("cache_lookups_total", "Look-ups in caches.", ("cache", "result"))
        evictions = self._counter(
            "cache_evictions_total", "Entries given up for others.", ("cache",)
        )
        self.num_in_flight = 0
        in_flight = Gauge(
            PREFIX + "requests_in_flight",
            "Calls that are being worked on.",
            registry=self.registry,
        )
        in_flight.set_function(lambda: self.num_in_flight)
        self._requests = _Children[tuple[str, str, str, str], Histogram](
            lambda key: requests.labels(*key)
        )
        self._stages = _Children[Stage, Histogram](stages.labels)
        self._batches = _Children[Stage, Histogram](batches.labels)
        self._rows = _Children[Stage, Histogram](rows.labels)
        self._answers = _Children[tuple[str, str, Effort], Counter](
            lambda key: answers.labels(*key)
        )
        self._empty = _Children[tuple[str, str], Counter](lambda key: empty.labels(*key))
        self._omissions = _Children[Omission, Counter](
            lambda o: omissions.labels(o.stage, o.kind.name.lower(), o.reason.name.lower())
        )
        self._misses = _Children[tuple[str, str], Counter](lambda key: misses.labels(*key))
        self._errors = _Children[tuple[str, ErrorReason], Counter](
            lambda key: errors.labels(key[0], reason_label(key[1]))
        )
        self._accepted = events.labels("accepted")
        self._refused = _Children[ErrorReason, Counter](
            lambda reason: events.labels(reason_label(reason))
        )
        self._lookups = _Children[tuple[str, Lookup], Counter](lambda key: lookups.labels(*key))
        self._evictions = _Children[str, Counter](evictions.labels)
        self._evictions.bind("generation")
        for error in product(_METHODS, _ALERTING_ERRORS):
            self._errors.bind(error)
        for reason in _EVENT_REFUSALS:
            self._refused.bind(reason)
        for omission in product(_OMITTED_STAGES, Left, _ALERTING_OMISSIONS):
            self._omissions.bind(Omission(*omission))

    def expect(self, side: str, scenarios: Iterable[str]) -> None:
        """Starts the counters of a release at zero, so that a first miss is seen as a rise."""
        for scenario in scenarios:
            self._requests.bind(("Recommend", scenario, side, "OK"))
            self._misses.bind((scenario, side))
            self._empty.bind((scenario, side))
            for effort in Effort:
                self._answers.bind((scenario, side, effort))

    def watch(self, state: Callable[[], State]) -> None:
        """Has `state` say, at each scrape and on another thread, what the engine is then."""
        self.registry.register(StateCollector(state))

    def call_began(self) -> None:
        """Counts a call as in flight."""
        self.num_in_flight += 1

    def call_ended(
        self, method: str, scenario: str, side: str, status: str, elapsed_s: float
    ) -> None:
        """Counts a call, which is in flight no more.

        Args:
            method: Name of the RPC.
            scenario: One of a bundle's, `UNKNOWN_SCENARIO`, or empty if the method has none.
            side: Which release has that scenario, "bundle" or "canary"; empty if none.
            status: Name of a gRPC status.
            elapsed_s: Since it arrived.
        """
        self.num_in_flight -= 1
        self._requests[method, scenario, side, status].observe(elapsed_s)

    def answered(
        self,
        scenario: str,
        side: str,
        omissions: Sequence[Omission],
        timings: Iterable[tuple[Stage, float]],
        *,
        is_empty: bool,
    ) -> None:
        """Counts an answer, what it left out, and the seconds of its stages."""
        self._answers[scenario, side, Effort.of(omissions)].inc()
        if is_empty:
            self._empty[scenario, side].inc()
        for omission in omissions:
            self._omissions[omission].inc()
        for stage, elapsed_s in timings:
            self._stages[stage].observe(elapsed_s)

    def budget_missed(self, scenario: str, side: str) -> None:
        """Counts a call whose budget was over before it ended."""
        self._misses[scenario, side].inc()

    def failed(self, method: str, reason: ErrorReason) -> None:
        """Counts a call that was refused or failed."""
        self._errors[method, reason].inc()

    def feedback(self, num_accepted: int, refused: Iterable[ErrorReason]) -> None:
        """Counts the events of a call."""
        self._accepted.inc(num_accepted)
        for reason in refused:
            self._refused[reason].inc()

    def batch_ran(self, stage: Stage, num_rows: int, elapsed_s: float) -> None:
        """Counts a model run."""
        self._rows[stage].observe(num_rows)
        self._batches[stage].observe(elapsed_s)

    def cache_lookup(self, cache: str, result: Lookup) -> None:
        """Counts a look-up in the cache of that name."""
        self._lookups[cache, result].inc()

    def cache_dropped(self, cache: str, num: int) -> None:
        """Counts entries of a cache that made room for others."""
        self._evictions[cache].inc(num)

    def _histogram(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(PREFIX + name, text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)


class Endpoint:
    """Serves metrics over HTTP, from a thread of its own."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Listens.

        Raises:
            ValueError: the address cannot be bound.
        """
        disable_created_metrics()  # a second series for each counter, which nobody asks for
        try:
            self._server, self._thread = start_http_server(port, host, metrics.registry)
        except OSError as error:
            shown = f"[{host}]" if ":" in host else host
            raise ValueError(f"cannot serve metrics on {shown}:{port}: {error}") from None

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def reason_label(reason: ErrorReason) -> str:
    """Returns an error's reason as labels and logs have it, such as "query_empty"."""
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_").lower()


class _Children(dict[K, C], Generic[K, C]):
    """Children of a family, each made once: `labels` takes ten times as long as a look-up."""

    def __init__(self, make: Callable[[K], C]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> C:
        self.bind(key)
        return self[key]

    def bind(self, key: K) -> None:
        """Makes the child, so that it is exported from now on."""
        self[key] = self._make(key)
