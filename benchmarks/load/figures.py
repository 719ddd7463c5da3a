"""The figures of a run; see the package's docstring. Knows nothing of how requests were sent."""

import collections
import math
from collections.abc import Sequence

import numpy as np
from hdrh.histogram import HdrHistogram

from benchmarks.load.caller import Outcome
from benchmarks.load.settings import Load

MODEL_STAGES = ("encode", "generate", "score")
_MAX_LATENCY_US = 600_000_000
_DIGITS = 3

Figures = dict[str, object]


def latency_histogram(outcomes: Sequence[Outcome]) -> HdrHistogram:
    """Returns the latencies of answers in microseconds."""
    histogram = HdrHistogram(1, _MAX_LATENCY_US, _DIGITS)
    for outcome in outcomes:
        if not outcome.error:
            histogram.record_value(max(1, math.ceil(outcome.latency_s * 1e6)))
    return histogram


def summary(load: Load, outcomes: Sequence[Outcome], elapsed_s: float) -> Figures:
    """Returns the figures of the last line."""
    answers = [o for o in outcomes if not o.error]
    num_answers = len(answers)
    omissions = collections.Counter(name for o in answers for name in o.omissions)
    stage_ms: dict[str, list[float]] = {}
    for outcome in answers:
        for stage, duration_us in outcome.stage_us.items():
            stage_ms.setdefault(stage, []).append(duration_us / 1000)
    overhead_ms = overheads_ms(answers)
    without_queue_ms = overheads_ms(answers, without_queue=True)
    return {
        "mode": "idle" if load.is_idle else "open-loop",
        "arrivals": None if load.is_idle else load.arrivals,
        "prompts": load.prompts,
        "rate_rps": rounded(num_answers / elapsed_s),
        "offered_rps": None if load.is_idle or load.arrivals == "replay" else load.rate_rps,
        "duration_s": rounded(elapsed_s),
        "budget_ms": load.budget_ms,
        **_figures(load, outcomes),
        "mean_suggestions": rounded(
            sum(o.num_suggestions for o in answers) / num_answers if num_answers else math.nan
        ),
        "overhead_p50_ms": percentile(overhead_ms, 50),
        "overhead_p99_ms": percentile(overhead_ms, 99),
        "overhead_without_queue_p50_ms": percentile(without_queue_ms, 50),
        "send_lag_p99_ms": percentile([o.lag_s * 1000 for o in outcomes], 99),
        "statuses": dict(collections.Counter(o.status for o in outcomes)),
        "errors_by_reason": dict(collections.Counter(o.error for o in outcomes if o.error)),
        "efforts": dict(collections.Counter(o.effort for o in answers)),
        "omissions": {name: rounded(n / num_answers) for name, n in sorted(omissions.items())},
        "stages": {
            stage: {"num": len(ms), "p50_ms": percentile(ms, 50), "p99_ms": percentile(ms, 99)}
            for stage, ms in stage_ms.items()
        },
        "scenarios": {
            name: _figures(load, [o for o in outcomes if o.scenario == name]) for name in load.mix
        },
        "seed": load.seed,
        "num_queries": len(load.queries),
        "connections": load.num_connections,
    }


def overheads_ms(answers: Sequence[Outcome], *, without_queue: bool = False) -> list[float]:
    """Returns the server's time outside the models, an answer each."""
    left_out = (*MODEL_STAGES, "queue") if without_queue else MODEL_STAGES
    return [
        (o.stage_us["total"] - sum(o.stage_us.get(s, 0) for s in left_out)) / 1000
        for o in answers
        if "total" in o.stage_us
    ]


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Returns the exact percentile (nearest rank, upwards), or None of nothing."""
    return rounded(float(np.percentile(values, percent, method="higher"))) if values else None


def rounded(value: float) -> float | None:
    """Returns a figure as it is printed; None if there is none."""
    return round(value, 4) if math.isfinite(value) else None


def _figures(load: Load, outcomes: Sequence[Outcome]) -> Figures:
    answers = [o for o in outcomes if not o.error]
    histogram = latency_histogram(answers)

    def latency_ms(percent: float) -> float | None:
        value_us: int = histogram.get_value_at_percentile(percent)
        return rounded(value_us / 1000) if answers else None

    num_in_budget = sum(o.latency_s * 1000 <= load.budget_ms for o in answers)
    num_degraded = sum(o.is_degraded for o in answers)
    return {
        "num_requests": len(outcomes),
        "p50_ms": latency_ms(50),
        "p95_ms": latency_ms(95),
        "p99_ms": latency_ms(99),
        "p999_ms": latency_ms(99.9),
        "in_budget": rounded(num_in_budget / len(outcomes)) if outcomes else None,
        "degraded": rounded(num_degraded / len(answers)) if answers else None,
        "errors": len(outcomes) - len(answers),
    }
