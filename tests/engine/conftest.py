"""Fixtures of the engine's tests."""

import pytest

from engine.bundle import Bundle, load_bundle
from engine.runtime import Runtime


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


@pytest.fixture(scope="module")
def runtime():
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def bundle(tiny_bundle, runtime) -> Bundle:
    return load_bundle(tiny_bundle, runtime)
