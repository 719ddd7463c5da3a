"""Two saved runs side by side: ratios with 95 % intervals. Knows nothing of how they were made.

Intervals are from bootstrap samples of the requests, as if these were independent. Under load
neighbours share a queue, so true intervals are wider; repeat runs before believing a small ratio.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.record import Latencies, Record

# L distinct latencies, R resamples
_NUM_RESAMPLES = 1000
_PERCENTS = (50.0, 95.0, 99.0, 99.9)

Floats = NDArray[np.float64]


class Ratio(NamedTuple):
    """A figure of two runs; the ratio is second to first, None where the first is 0."""

    name: str
    first: float
    second: float
    ratio: float | None
    low: float | None
    high: float | None


def compared(first: Record, second: Record, seed: int = 0) -> list[Ratio]:
    """Returns latencies and shares of two runs.

    Raises:
        ValueError: a run has no answer.
    """
    rng = np.random.default_rng(seed)
    pair = (first.latencies(), second.latencies())
    if any(latencies.counts.sum() == 0 for latencies in pair):
        raise ValueError("a run without any answer has no latencies to compare")
    samples = [_resampled_ms(latencies, rng) for latencies in pair]
    ratios: list[Ratio] = []
    for column, percent in enumerate(_PERCENTS):
        values = [_quantiles_ms(x, x.counts[None])[0, column] for x in pair]
        ratios.append(_ratio(f"p{percent:g}_ms", values, [sample[:, column] for sample in samples]))
    records = (first, second)
    for name, of in (("in_budget", "num_requests"), ("errors", "num_requests"), ("degraded", "")):
        shares: list[float] = []
        resamples: list[Floats] = []
        for record, latencies in zip(records, pair, strict=True):
            total = int(record.figures[of]) if of else int(latencies.counts.sum())
            value = float(record.figures[name])
            shares.append(value / total if name == "errors" else value)
            resamples.append(rng.binomial(total, shares[-1], _NUM_RESAMPLES) / total)
        ratios.append(_ratio(f"{name}_share" if name == "errors" else name, shares, resamples))
    return ratios


def _quantiles_ms(latencies: Latencies, counts_RL: NDArray[np.int64]) -> Floats:
    """Returns the percentiles (nearest rank, upwards) of each row of counts, (R, percents)."""
    cumulated_RL = counts_RL.cumsum(axis=1)
    total = cumulated_RL[:, -1:]
    columns = [
        latencies.value_ms[(cumulated_RL >= np.ceil(total * percent / 100)).argmax(axis=1)]
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


def _ratio(name: str, values: list[float], samples: list[Floats]) -> Ratio:
    first, second = map(float, values)
    if first == 0:
        return Ratio(name, first, second, None, None, None)
    usable = samples[0] > 0
    low, high = np.quantile(samples[1][usable] / samples[0][usable], [0.025, 0.975]).tolist()
    return Ratio(name, first, second, second / first, low, high)
