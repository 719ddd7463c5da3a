"""Generations kept in memory, least recently used first out. Knows nothing of models.

The key covers the whole rendered prompt, the limits and the bundle, so nothing leaks between
users whose context differs.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from engine.scheduling.deadline import Clock

V = TypeVar("V")


class Cache(Generic[V]):
    """A cache bounded by bytes and age. To be used from one event loop."""

    def __init__(self, *, max_bytes: int, ttl_s: float, clock: Clock) -> None:
        """Starts empty; `max_bytes` 0 keeps nothing."""
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[Hashable, tuple[V, int, float]] = OrderedDict()
        self._size_bytes = 0

    def get(self, key: Hashable) -> V | None:
        """Returns the value, or None if it is unknown or too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, size_bytes, expires_s = entry
        if self._clock.now_s() >= expires_s:
            del self._entries[key]
            self._size_bytes -= size_bytes
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: Hashable, value: V, size_bytes: int) -> int:
        """Keeps a value, and drops the least recently used ones that do not fit beside it.

        Returns:
            How many were dropped.
        """
        if size_bytes > self._max_bytes:
            return 0
        old = self._entries.pop(key, None)
        if old is not None:
            self._size_bytes -= old[1]
        self._entries[key] = (value, size_bytes, self._clock.now_s() + self._ttl_s)
        self._size_bytes += size_bytes
        num_dropped = 0
        while self._size_bytes > self._max_bytes:
            _, (_, dropped_bytes, _) = self._entries.popitem(last=False)
            self._size_bytes -= dropped_bytes
            num_dropped += 1
        return num_dropped
