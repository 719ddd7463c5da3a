"""What it costs a request to be observed: metrics, unsampled and sampled traces.

Plays the calls that a request with every stage makes, without a server around them. The last line
is JSON: microseconds of CPU a request, the least of several rounds.

    python -m benchmarks.observation
"""

import json
import sys
import time
from typing import Any, cast

from grpc import aio
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.stages import Probe, Stage
from engine.telemetry.metrics import Metrics
from engine.telemetry.observation import Observer
from engine.telemetry.tracing import Tracer

ROUNDS = 5
REQUESTS = 1000
STAGES = (
    *(Stage.NORMALISE, Stage.RETRIEVE, Stage.TOKENISE, Stage.QUEUE, Stage.ENCODE, Stage.TOKENISE),
    *(Stage.QUEUE, Stage.GENERATE, Stage.MERGE, Stage.MERGE, Stage.TOKENISE, Stage.QUEUE),
    *(Stage.SCORE, Stage.RERANK),
)
BATCHES = (Stage.ENCODE, Stage.GENERATE, Stage.SCORE)


class Context:
    """What observation looks at of a call."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("user-agent", "grpc-python/1.76.0"),)

    def set_trailing_metadata(self, metadata: object) -> None:
        pass


def request_us(clock: MonotonicClock, observer: Observer | None) -> float:
    """Returns microseconds a request; without an observer those of the stage times alone."""
    context = cast("aio.ServicerContext[Any, Any]", Context())
    best_s = float("inf")
    for _ in range(ROUNDS):
        started_s = time.thread_time()
        for _ in range(REQUESTS):
            if observer is None:
                probe = Probe(clock)
                for stage in STAGES:
                    probe.add(stage, 0.003)
                probe.finish()
                continue
            with observer.call("Recommend", context) as call:
                call.asked("suggestion", "bundle")
                call.due(Deadline.after(1.0, clock))
                for stage in STAGES:
                    call.probe.add(stage, 0.003)
                call.probe.finish()
                observer.metrics.cache_lookup("generation", "miss")
                for stage in BATCHES:
                    observer.metrics.batch_ran(stage, 1, 0.003)
                call.answered((), 6)
        best_s = min(best_s, time.thread_time() - started_s)
    return best_s / REQUESTS * 1e6


def main() -> int:
    clock = MonotonicClock()

    def traced(sampler: Sampler) -> Observer:
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
        return Observer(clock, Metrics(), Tracer(provider))

    bare_us = request_us(clock, None)
    metrics_us = request_us(clock, Observer(clock)) - bare_us
    figures = {
        "metrics_us": metrics_us,
        "unsampled_trace_us": request_us(clock, traced(ALWAYS_OFF)) - bare_us - metrics_us,
        "sampled_trace_us": request_us(clock, traced(ALWAYS_ON)) - bare_us - metrics_us,
    }
    for name, value in figures.items():
        print(f"{name}: {value:.1f}")
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
