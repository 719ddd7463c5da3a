"""How torch is fastest with a run on this machine. Knows nothing of serving."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.plain.models import Precision, Setting
from benchmarks.plain.recommender import Recommender
from engine.answering.answer import Question
from engine.execution.cpu import num_usable_cpus
from export.checkpoint import Run
from train.models.backbone import has_fast_bf16

_BATCH_SIZES = (1, 4)
_NUM_ROUNDS = 5


def settings(precision: Precision | None, num_threads: int) -> list[Setting]:
    """Returns what may be fastest.

    Args:
        precision: None: float32, and bfloat16 where this CPU has it.
        num_threads: 0: one, and as many as this process may use.
    """
    precisions: list[Precision] = ["fp32", "bf16"] if has_fast_bf16() else ["fp32"]
    counts = [num_threads] if num_threads else sorted({1, num_usable_cpus()})
    chosen: list[Precision] = [precision] if precision else precisions
    return [Setting(p, n) for p, n in itertools.product(chosen, counts)]


def fastest(
    run: Run,
    choices: Sequence[Setting],
    questions: Sequence[Question],
    report: Callable[[str], None],
) -> Recommender:
    """Returns a warm recommender with the setting that answers batches of 1 and 4 fastest.

    Raises:
        ValueError: the run lacks a part.
    """
    by_precision = {s.precision: Recommender(run, s) for s in choices}
    times_s: dict[Setting, float] = {}
    for setting in choices:
        recommender = by_precision[setting.precision]
        recommender.setting = setting
        medians_s = [_median_s(recommender, questions, size) for size in _BATCH_SIZES]
        times_s[setting] = sum(medians_s)
        told = ", ".join(
            f"{1000 * s:.1f} ms for {n}" for s, n in zip(medians_s, _BATCH_SIZES, strict=True)
        )
        report(f"{setting.precision}, {setting.num_threads} threads: {told}")
    best = min(choices, key=lambda s: times_s[s])
    recommender = by_precision[best.precision]
    recommender.setting = best
    return recommender


def _median_s(recommender: Recommender, questions: Sequence[Question], size: int) -> float:
    """Returns the median time of a batch; the first ones are warm-up."""
    times_s: list[float] = []
    for number in range(2 * _NUM_ROUNDS):
        first = number * size % (len(questions) - size + 1)
        started_s = time.perf_counter()
        recommender.answers(questions[first : first + size])
        times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s[_NUM_ROUNDS:])
