"""Fixtures of the engine's tests."""

import pytest


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self._now_s = 1000.0

    def now_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
