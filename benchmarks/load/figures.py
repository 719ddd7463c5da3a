"""The figures of a run; see the package's docstring. Knows nothing of how requests were sent."""

import collections
import math
from collections.abc import Sequence

from hdrh.histogram import HdrHistogram

from benchmarks.load.caller import Outcome
from benchmarks.load.percentiles import percentile, rounded
from benchmarks.load.run import Run
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


def summary(load: Load, run: Run) -> Figures:
    """Returns the figures of the last line."""
    outcomes, elapsed_s = run.outcomes, run.elapsed_s
    answers = [o for o in outcomes if not o.error]
    num_answers = len(answers)
    omissions = collections.Counter(name for o in answers for name in o.omissions)
    stage_ms: dict[str, list[float]] = {}
    for outcome in answers:
        for stage, duration_us in outcome.stage_us.items():
            stage_ms.setdefault(stage, []).append(duration_us / 1000)
    overhead_ms = overheads_ms(answers)
    without_queue_ms = overheads_ms(answers, without_queue=True)
    sending_s = min(elapsed_s, load.duration_s)
    return {
        "mode": "idle" if load.is_idle else "open-loop",
        "cut_short": run.is_cut_short,
        "rate_rps": rounded(num_answers / elapsed_s),
        "offered_rps": None if load.is_idle else rounded(len(outcomes) / sending_s),
        "duration_s": rounded(elapsed_s),
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
        **_asked(load),
    }


def _asked(load: Load) -> Figures:
    """Returns what was to be sent, as far as it does not depend on the engine."""
    is_rate = not load.is_idle and load.arrivals != "replay"
    return {
        "arrivals": None if load.is_idle else load.arrivals,
        "asked_rps": load.rate_rps if is_rate else None,
        "ramp_to_rps": load.ramp_to_rps if is_rate else None,
        "burst": load.burst if is_rate else None,
        "prompts": load.prompts,
        "zipf": load.zipf_exponent if load.prompts == "zipf" else None,
        "mix": load.mix,
        "num_queries": len(load.queries),
        "budget_ms": load.budget_ms,
        "deadline_ms": load.deadline_ms,
        "connections": load.num_connections,
        "seed": load.seed,
    }


def overheads_ms(answers: Sequence[Outcome], *, without_queue: bool = False) -> list[float]:
    """Returns the server's time outside the models, an answer each."""
    left_out = (*MODEL_STAGES, "queue") if without_queue else MODEL_STAGES
    return [
        (o.stage_us["total"] - sum(o.stage_us.get(s, 0) for s in left_out)) / 1000
        for o in answers
        if "total" in o.stage_us
    ]


def _figures(load: Load, outcomes: Sequence[Outcome]) -> Figures:
    answers = [o for o in outcomes if not o.error]
    latency_ms = [o.latency_s * 1000 for o in answers]
    num_in_budget = sum(ms <= load.budget_ms for ms in latency_ms)
    num_degraded = sum(o.is_degraded for o in answers)
    return {
        "num_requests": len(outcomes),
        "p50_ms": percentile(latency_ms, 50),
        "cached": rounded(sum(o.is_cached for o in answers) / len(answers)) if answers else None,
        "p95_ms": percentile(latency_ms, 95),
        "p99_ms": percentile(latency_ms, 99),
        "p999_ms": percentile(latency_ms, 99.9),
        "in_budget": rounded(num_in_budget / len(outcomes)) if outcomes else None,
        "degraded": rounded(num_degraded / len(answers)) if answers else None,
        "errors": len(outcomes) - len(answers),
    }
