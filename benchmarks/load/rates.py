"""How many requests a second are due at each moment: even, a ramp, bursts."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Burst(NamedTuple):
    """Another rate at the end of every interval."""

    rate_rps: float
    every_s: float
    length_s: float


class Rate:
    """A rate that changes evenly within each of its stretches, and may jump between them."""

    def __init__(
        self, begin_rps: float, end_rps: float, burst: Burst | None, duration_s: float
    ) -> None:
        """Takes what is above 0; a burst that begins after the duration never comes."""
        edges_s = np.array([0.0, duration_s])
        if burst is not None:
            ends_s = np.arange(1, np.ceil(duration_s / burst.every_s) + 1) * burst.every_s
            bursts_s = np.concatenate([ends_s, ends_s - burst.length_s])
            edges_s = np.unique(np.concatenate([edges_s, bursts_s[bursts_s < duration_s]]))
        self._begin_s, length_s = edges_s[:-1], np.diff(edges_s)
        slope = (end_rps - begin_rps) / duration_s
        self._begin_rps = begin_rps + slope * self._begin_s
        self._slope = np.full(len(length_s), slope)
        if burst is not None:
            middle_s = self._begin_s + length_s / 2
            is_burst = middle_s % burst.every_s > burst.every_s - burst.length_s
            self._begin_rps[is_burst], self._slope[is_burst] = burst.rate_rps, 0.0
        counts = (self._begin_rps + self._slope * length_s / 2) * length_s
        self._expected = np.concatenate([[0.0], np.cumsum(counts)])  # until each edge

    @property
    def num_expected(self) -> float:
        """Its integral: the expected number of requests."""
        return float(self._expected[-1])

    def times_s(self, expected: Floats) -> Floats:
        """Returns when so many requests are expected to have been due; from 0 to `num_expected`."""
        stretch = np.searchsorted(self._expected, expected, side="right") - 1
        stretch = np.minimum(stretch, len(self._begin_s) - 1)
        rest = expected - self._expected[stretch]
        begin_rps, slope = self._begin_rps[stretch], self._slope[stretch]
        # The root of begin * t + slope * t ** 2 / 2 = rest, in the form that divides by no slope.
        root = np.sqrt(np.maximum(0.0, begin_rps**2 + 2 * slope * rest))
        return self._begin_s[stretch] + 2 * rest / (begin_rps + root)
