"""Traces: a span per sampled call, with a child per stage. Knows nothing of what calls are about.

What is not sampled costs the decision alone: no stage makes a span. Needs the packages of the
extra `otel` only once it is used.
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from grpc import StatusCode

from engine.scheduling.deadline import Clock
from engine.scheduling.stages import Probe, Stage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span
    from opentelemetry.trace import Tracer as SpanMaker

_SERVICE = "queryrec.v1.QueryRecommenderService"
_EXPORT_TIMEOUT_S = 2.0  # retries included; the last export delays the end of the process
_PROPAGATED = ("traceparent", "tracestate")
# OpenTelemetry's rule for servers: all others are the caller's doing, or its wish.
_ERRORS = frozenset(
    {
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.UNIMPLEMENTED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    }
)

Attribute = str | int | Sequence[str]


def connect(endpoint: str, sample_rate: float) -> "Tracer":
    """Returns a tracer that sends spans to an OpenTelemetry collector.

    Args:
        endpoint: Of its OTLP gRPC receiver, such as http://localhost:4317.
        sample_rate: Share of calls that are traced, of those whose caller has not decided.

    Raises:
        ValueError: the packages are not installed, or the endpoint is no URL.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
    except ImportError:
        raise ValueError(
            f'tracing.endpoint is "{endpoint}", but the OpenTelemetry packages are not installed: '
            "install queryrec with its extra, pip install -c constraints.txt -e '.[otel]'"
        ) from None
    if not _is_url(endpoint):
        raise ValueError(
            f'tracing.endpoint is "{endpoint}"; it must be a URL, such as http://localhost:4317'
        )
    provider = TracerProvider(
        sampler=ParentBasedTraceIdRatio(sample_rate),
        resource=Resource.create({"service.name": "queryrec-engine"}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S))
    )
    return Tracer(provider)


def _is_url(endpoint: str) -> bool:
    try:
        url = urlsplit(endpoint)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:  # brackets around no address, a port that is none
        return False


class Tracer:
    """Begins traces, or continues those of callers."""

    def __init__(self, provider: "TracerProvider") -> None:
        """Takes over the provider, whose sampler decides."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._spans = provider.get_tracer("queryrec")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, metadata: Mapping[str, str | bytes]) -> "Trace | None":
        """Returns the trace of a call, or None if it is not sampled.

        Args:
            method: Name of the RPC.
            metadata: Of the call; a W3C traceparent in it is continued, its decision kept.
        """
        from opentelemetry.trace import SpanKind

        carrier = {key: metadata[key] for key in _PROPAGATED if key in metadata}
        span = self._spans.start_span(
            f"{_SERVICE}/{method}",
            self._propagator.extract(carrier) if carrier else None,
            SpanKind.SERVER,
        )
        return Trace(self._spans, span, method) if span.is_recording() else None

    def close(self) -> None:
        """Sends what waits. Blocks for seconds if the collector does not answer."""
        self._provider.shutdown()


class Trace:
    """A call that is sampled."""

    def __init__(self, spans: "SpanMaker", span: "Span", method: str) -> None:
        """Goes on until `end`."""
        self._spans = spans
        self._span = span
        self._method = method
        self._probe: _IntervalProbe | None = None

    def probe(self, clock: Clock) -> Probe:
        """Returns the probe whose stages become spans."""
        self._probe = _IntervalProbe(clock)
        return self._probe

    def end(self, status: StatusCode, attributes: Mapping[str, Attribute]) -> None:
        """Ends the spans of the call and of its stages.

        Args:
            status: Of the call.
            attributes: Of its span; their names get the prefix "queryrec.".
        """
        from opentelemetry.trace import Status, set_span_in_context
        from opentelemetry.trace import StatusCode as SpanStatus

        parent = set_span_in_context(self._span)
        for stage, started_ns, ended_ns in self._probe.intervals_ns() if self._probe else ():
            child = self._spans.start_span(stage.value, parent, start_time=started_ns)
            child.end(ended_ns)
        number: int = status.value[0]
        self._span.set_attributes(
            {
                "rpc.system": "grpc",
                "rpc.service": _SERVICE,
                "rpc.method": self._method,
                "rpc.grpc.status_code": number,
                **{f"queryrec.{name}": value for name, value in attributes.items()},
            }
        )
        if status in _ERRORS:
            self._span.set_status(Status(SpanStatus.ERROR, status.name))
        self._span.end()


class _IntervalProbe(Probe):
    """Also remembers when stages ran, each time they did."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._intervals_s: list[tuple[Stage, float, float]] = []

    def add(self, stage: Stage, elapsed_s: float, *, ago_s: float = 0.0) -> None:
        super().add(stage, elapsed_s)
        ended_s = self._clock.now_s() - ago_s
        self._intervals_s.append((stage, ended_s - elapsed_s, ended_s))

    def intervals_ns(self) -> list[tuple[Stage, int, int]]:
        """Returns (stage, start, end) in nanoseconds since 1970."""
        offset_ns = time.time_ns() - round(self._clock.now_s() * 1e9)
        return [
            (stage, offset_ns + round(start_s * 1e9), offset_ns + round(end_s * 1e9))
            for stage, start_s, end_s in self._intervals_s
        ]
