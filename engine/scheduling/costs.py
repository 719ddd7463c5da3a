"""The cost model: how long a stage will take, learned from how long it took.

Model execution is predictable (Clockwork, OSDI 2020), so the planner can decide before starting
instead of after missing. Knows nothing of what the stages do.
"""

import copy
from typing import NamedTuple

from engine.scheduling.deadline import Clock
from engine.scheduling.stages import Stage
from engine.scheduling.window import Window

_SAMPLES = 64  # per kind of work at most: 6 of them above the 0.9 quantile


class Work(NamedTuple):
    """A kind of model run: batches of the same kind and size cost about the same."""

    stage: Stage
    variant: tuple[int, ...] = ()  # what sets the cost of one row, such as slots and new tokens


class CostModel:
    """Upper quantiles of run times, per kind of work and batch bucket (powers of two).

    An estimate that no run refreshes shrinks (`Window`): otherwise a stage that one bad minute
    priced out would never be tried again. Not thread-safe.
    """

    def __init__(self, clock: Clock, quantile: float = 0.9) -> None:
        """Starts without any knowledge; `observe` the warm-up runs before predicting."""
        self._clock = clock
        self._quantile = quantile
        self._windows: dict[tuple[Work, int], Window] = {}

    def observe(self, work: Work, batch_size: int, elapsed_s: float) -> None:
        """Learns from one run of `batch_size` rows."""
        key = (work, _bucket(batch_size))
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = Window(self._quantile, _SAMPLES)
        window.add(elapsed_s, self._clock.now_s())

    def adopt(self, other: "CostModel") -> None:
        """Takes over all that another one has learnt, which goes on learning for itself."""
        self._windows = copy.deepcopy(other._windows)

    def predict_s(self, work: Work, batch_size: int) -> float:
        """Returns seconds that a run of `batch_size` rows is unlikely to exceed.

        A bucket that never ran is scaled from the nearest one that did, in proportion to the rows
        upwards and not at all downwards. 0 for work that never ran: the first run will tell.
        """
        bucket = _bucket(batch_size)
        window = self._windows.get((work, bucket))
        if window is not None:
            return window.estimate_s(self._clock.now_s())
        known = [b for w, b in self._windows if w == work]
        if not known:
            return 0.0
        nearest = min(known, key=lambda b: (abs(b.bit_length() - bucket.bit_length()), b))
        scale = max(1.0, bucket / nearest)
        return scale * self._windows[work, nearest].estimate_s(self._clock.now_s())


def _bucket(batch_size: int) -> int:
    """Returns the smallest power of two that holds the batch."""
    return 1 << max(0, batch_size - 1).bit_length()
