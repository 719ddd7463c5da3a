"""When requests are due. Knows nothing of what they ask."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.settings import Load

_NUM_STEPS = 200_000  # of the time in which the rate is summed up

Floats = NDArray[np.float64]


def due_s(load: Load) -> Floats:
    """Returns the times, in seconds from the start, by rising time; the same for the same seed.

    A process of unit rate is stretched so that the expected number until any moment is the integral
    of the rate: exact for ramps, and off by at most a step at the edges of bursts.
    """
    if load.arrivals == "replay":
        times_s = np.array(load.times_s)
        return times_s[times_s <= load.duration_s]
    time_s = np.linspace(0, load.duration_s, _NUM_STEPS + 1)
    rate_rps = _rate_rps(load, time_s)
    steps = (rate_rps[1:] + rate_rps[:-1]) / 2 * np.diff(time_s)
    expected = np.concatenate([[0.0], np.cumsum(steps)])
    return np.interp(_unit_times(load, float(expected[-1])), expected, time_s)


def _rate_rps(load: Load, time_s: Floats) -> Floats:
    end_rps = load.rate_rps if load.ramp_to_rps is None else load.ramp_to_rps
    rate_rps = load.rate_rps + (end_rps - load.rate_rps) * time_s / load.duration_s
    if load.burst is not None:
        is_burst = time_s % load.burst.every_s >= load.burst.every_s - load.burst.length_s
        rate_rps = np.where(is_burst, load.burst.rate_rps, rate_rps)
    return rate_rps


def _unit_times(load: Load, end: float) -> Floats:
    if load.arrivals == "constant":
        return np.arange(0.5, end, 1.0)
    rng = np.random.default_rng(load.seed)
    # Ten standard deviations more than expected.
    times = np.cumsum(rng.exponential(size=int(end + 10 * np.sqrt(end)) + 64))
    return times[times <= end]
