"""When requests are due. Knows nothing of what they ask."""

import numpy as np

from benchmarks.load.rates import Floats
from benchmarks.load.settings import Load


def due_s(load: Load) -> Floats:
    """Returns the times, in seconds from the start, by rising time; the same for the same seed.

    A process of unit rate is stretched so that the expected number until any moment is the integral
    of the rate.
    """
    if load.arrivals == "replay":
        times_s = np.array(load.times_s)
        return times_s[times_s <= load.duration_s]
    rate = load.rate()
    return rate.times_s(_unit_times(load, rate.num_expected))


def _unit_times(load: Load, end: float) -> Floats:
    if load.arrivals == "constant":
        return np.arange(0.5, end, 1.0)
    rng = np.random.default_rng(load.seed)
    # Ten standard deviations more than expected.
    times = np.cumsum(rng.exponential(size=int(end + 10 * np.sqrt(end)) + 64))
    return times[times <= end]
