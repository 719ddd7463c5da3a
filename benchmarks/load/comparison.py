"""Two saved runs side by side, with 95 % intervals. Knows nothing of how they were made.

Latencies have ratios, with intervals from bootstrap samples; shares have differences, with Newcombe
intervals, which have a width at 0 and 1, too. Both take requests as independent. Under load
neighbours share a queue, so true intervals are wider; repeat runs before believing a small change.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.load.percentiles import rank
from benchmarks.load.record import Latencies, Record

# L distinct latencies, R resamples
_NUM_RESAMPLES = 1000
_PERCENTS = (50.0, 95.0, 99.0, 99.9)
_LEAST_BEYOND = 5  # answers, or a percentile says nothing
_SHARES = ("in_budget", "errors", "degraded", "cached")
_OF_ANSWERS = ("degraded", "cached")  # the others are of requests
# Figures of what was asked; a run of another kind is no measure of a change.
_ASKED = (
    *("mode", "arrivals", "asked_rps", "ramp_to_rps", "burst", "prompts", "zipf", "mix"),
    *("num_queries", "budget_ms", "deadline_ms", "connections"),
)

Floats = NDArray[np.float64]


class Change(NamedTuple):
    """A figure of two runs; ``change`` is the ratio of second to first, or second minus first."""

    name: str
    first: float
    second: float
    change: float
    low: float
    high: float


class Comparison(NamedTuple):
    """What two runs have to say, and why they may not be compared."""

    ratios: list[Change]  # of latencies
    differences: list[Change]  # of shares
    warnings: list[str]


def compared(first: Record, second: Record, seed: int = 0) -> Comparison:
    """Returns latencies and shares of two runs.

    Raises:
        ValueError: a run has no answer.
    """
    rng = np.random.default_rng(seed)
    pair = (first.latencies(), second.latencies())
    num_answers = [int(latencies.counts.sum()) for latencies in pair]
    if not all(num_answers):
        raise ValueError("a run without any answer has no latencies to compare")
    warnings = _unlike(first.figures, second.figures)
    samples = [_resampled_ms(latencies, rng) for latencies in pair]
    ratios: list[Change] = []
    too_rare: list[str] = []
    for column, percent in enumerate(_PERCENTS):
        if min(num_answers) - rank(min(num_answers), percent) < _LEAST_BEYOND:
            too_rare.append(f"p{percent:g}")
            continue
        before, after = (float(_quantiles_ms(x, x.counts[None])[0, column]) for x in pair)
        low, high = np.quantile(samples[1][:, column] / samples[0][:, column], [0.025, 0.975])
        ratios.append(
            Change(f"p{percent:g}_ms", before, after, after / before, float(low), float(high))
        )
    if too_rare:
        warnings.append(f"too few answers to compare {', '.join(too_rare)}")
    differences: list[Change] = []
    for name in _SHARES:
        if name in first.figures and name in second.figures:  # older runs lack some
            title = "errors_share" if name == "errors" else name
            shares = (_share(first.figures, name), _share(second.figures, name))
            differences.append(_difference(title, *shares))
    if any(d.name == "cached" and not d.low <= 0 <= d.high for d in differences):
        warnings.append(
            "cached answers differ in share: give each run a --seed of its own, or turn the cache "
            "off"
        )
    return Comparison(ratios, differences, warnings)


def _quantiles_ms(latencies: Latencies, counts_RL: NDArray[np.int64]) -> Floats:
    """Returns the percentiles of rows of counts with one sum, (R, percents)."""
    cumulated_RL = counts_RL.cumsum(axis=1)
    total = int(cumulated_RL[0, -1])
    columns = [
        latencies.value_ms[(cumulated_RL >= rank(total, percent)).argmax(axis=1)]
        for percent in _PERCENTS
    ]
    return np.stack(columns, axis=1)


def _resampled_ms(latencies: Latencies, rng: np.random.Generator) -> Floats:
    total = int(latencies.counts.sum())
    rows = [
        _quantiles_ms(latencies, rng.multinomial(total, latencies.counts / total)[None])[0]
        for _ in range(_NUM_RESAMPLES)
    ]
    return np.array(rows)


def _share(figures: dict[str, Any], name: str) -> tuple[int, int]:
    """Returns a count, and of how many."""
    num = int(figures["num_requests"])
    if name in _OF_ANSWERS:
        num -= int(figures["errors"])
    value = figures[name]
    return (int(value) if name == "errors" else round(value * num)), num


def _difference(name: str, first: tuple[int, int], second: tuple[int, int]) -> Change:
    """Returns second minus first, with Newcombe's interval from those of Wilson."""
    tests = (binomtest(*first), binomtest(*second))
    before, after = (float(test.statistic) for test in tests)
    (low_1, high_1), (low_2, high_2) = (t.proportion_ci(method="wilson") for t in tests)
    change = after - before
    low = change - math.hypot(after - low_2, high_1 - before)
    high = change + math.hypot(high_2 - after, before - low_1)
    return Change(name, before, after, change, low, high)


def _unlike(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Returns what was asked for in another way; older runs lack some of it."""
    return [
        f"{name} differs: {first[name]} and {second[name]}"
        for name in _ASKED
        if name in first and name in second and first[name] != second[name]
    ]
