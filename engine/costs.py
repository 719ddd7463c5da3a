"""The cost model: how long a stage will take, learned from how long it took.

Model execution is predictable (Clockwork, OSDI 2020), so the planner can decide before starting
instead of after missing. Knows nothing of what the stages do.
"""

import copy
from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple

from engine.deadline import Clock
from engine.stages import Stage

_WINDOW = 64  # samples per kind of work at most: 6 of them above the 0.9 quantile
_MEMORY_S = 5.0  # older samples do not count: what was slow may be so no longer
_HALF_LIFE_S = 2.0


class Work(NamedTuple):
    """A kind of model run: batches of the same kind and size cost about the same."""

    stage: Stage
    variant: tuple[int, ...] = ()  # what sets the cost of one row, such as slots and new tokens


class CostModel:
    """Upper quantiles of run times, per kind of work and batch bucket (powers of two).

    Runs of the last 5 s count. An estimate that no run refreshes shrinks towards the fastest run
    seen, by half every 2 s: otherwise a stage that one bad minute priced out would never be tried
    again. Not thread-safe.
    """

    def __init__(self, clock: Clock, quantile: float = 0.9) -> None:
        """Starts without any knowledge; `observe` the warm-up runs before predicting."""
        self._clock = clock
        self._quantile = quantile
        self._windows: dict[tuple[Work, int], _Window] = {}

    def observe(self, work: Work, batch_size: int, elapsed_s: float) -> None:
        """Learns from one run of `batch_size` rows."""
        key = (work, _bucket(batch_size))
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = _Window(self._quantile)
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


class _Window:
    """The last run times of one kind of work, also sorted."""

    __slots__ = ("_floor_s", "_order", "_quantile", "_sorted", "_updated_s")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._order: deque[tuple[float, float]] = deque()  # (when, run time)
        self._sorted: list[float] = []
        self._floor_s = float("inf")  # fastest run ever

    def add(self, elapsed_s: float, now_s: float) -> None:
        if len(self._order) == _WINDOW:
            self._drop_oldest()
        self._order.append((now_s, elapsed_s))
        insort(self._sorted, elapsed_s)
        self._floor_s = min(self._floor_s, elapsed_s)
        self._updated_s = now_s

    def estimate_s(self, now_s: float) -> float:
        while len(self._order) > 1 and self._order[0][0] < now_s - _MEMORY_S:
            self._drop_oldest()
        # The smallest sample that at least this share of samples does not exceed.
        rank = min(len(self._sorted) - 1, int(self._quantile * len(self._sorted)))
        upper_s = self._sorted[rank]
        age_s = now_s - self._updated_s
        if age_s < 1.0:  # the common case under load
            return upper_s
        return self._floor_s + (upper_s - self._floor_s) * 0.5 ** (age_s / _HALF_LIFE_S)

    def _drop_oldest(self) -> None:
        _, elapsed_s = self._order.popleft()
        del self._sorted[bisect_left(self._sorted, elapsed_s)]


def _bucket(batch_size: int) -> int:
    """Returns the smallest power of two that holds the batch."""
    return 1 << max(0, batch_size - 1).bit_length()
