"""A quantile of recent times. Knows nothing of what took them."""

from bisect import bisect_left, insort
from collections import deque
from math import ceil

_MEMORY_S = 5.0  # older samples do not count: what was slow may be so no longer
_HALF_LIFE_S = 2.0


class Window:
    """An upper quantile of times of the last 5 s.

    What nothing refreshes shrinks towards the shortest time seen, by half every 2 s.
    """

    __slots__ = ("_floor_s", "_max_samples", "_order", "_quantile", "_sorted", "_updated_s")

    def __init__(self, quantile: float, max_samples: int) -> None:
        """Starts empty; older samples than the last `max_samples` do not count either."""
        self._quantile = quantile
        self._max_samples = max_samples
        self._order: deque[tuple[float, float]] = deque()  # (when, time)
        self._sorted: list[float] = []
        self._floor_s = float("inf")  # shortest ever

    def add(self, elapsed_s: float, now_s: float) -> None:
        """Notes a time."""
        if len(self._order) == self._max_samples:
            self._drop_oldest()
        self._order.append((now_s, elapsed_s))
        insort(self._sorted, elapsed_s)
        self._floor_s = min(self._floor_s, elapsed_s)
        self._updated_s = now_s

    def estimate_s(self, now_s: float) -> float:
        """Returns the quantile; 0 of nothing."""
        if not self._sorted:
            return 0.0
        while len(self._order) > 1 and self._order[0][0] < now_s - _MEMORY_S:
            self._drop_oldest()
        # The smallest sample that at least this share of samples does not exceed.
        rank = max(0, ceil(self._quantile * len(self._sorted)) - 1)
        upper_s = self._sorted[rank]
        age_s = now_s - self._updated_s
        if age_s < 1.0:  # the common case under load
            return upper_s
        return self._floor_s + (upper_s - self._floor_s) * 0.5 ** (age_s / _HALF_LIFE_S)

    def _drop_oldest(self) -> None:
        _, elapsed_s = self._order.popleft()
        del self._sorted[bisect_left(self._sorted, elapsed_s)]
