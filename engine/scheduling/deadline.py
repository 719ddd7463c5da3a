"""Deadlines: when an answer must be ready. Knows nothing of gRPC or of what the time is spent on.

One `Deadline` is made from each call and passed down; nobody makes a time limit of their own.
"""

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Monotonic time. Tests drive one by hand."""

    def now_s(self) -> float:
        """Returns seconds since some fixed moment; never decreases."""
        ...


class MonotonicClock:
    """The system's monotonic clock, which is also asyncio's."""

    def now_s(self) -> float:
        """Returns `time.monotonic()`."""
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment at which an answer must be on its way."""

    at_s: float  # on `clock`
    clock: Clock

    @classmethod
    def after(cls, seconds: float, clock: Clock) -> "Deadline":
        """Returns the deadline `seconds` from now."""
        return cls(clock.now_s() + seconds, clock)

    def left_s(self) -> float:
        """Returns the seconds that are left; negative once it has passed."""
        return self.at_s - self.clock.now_s()

    @property
    def has_passed(self) -> bool:
        """Whether no time is left."""
        return self.left_s() <= 0

    def sooner(self, seconds: float) -> "Deadline":
        """Returns this deadline moved `seconds` nearer: what an earlier stage must keep to."""
        return Deadline(self.at_s - seconds, self.clock)
