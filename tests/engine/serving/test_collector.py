"""What outlives a long full collection is not looked at again, and is freed all the same."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from engine.serving.collector import ShortPauses


class Tracked:
    """Like any object that the collector looks at."""


@pytest.fixture(autouse=True)
def everything_is_looked_at() -> Iterator[None]:
    gc.unfreeze()
    gc.disable()  # but for those that the tests ask for
    yield
    gc.enable()
    gc.unfreeze()


def is_looked_at(thing: object) -> bool:
    return any(o is thing for o in gc.get_objects())


def test_what_outlives_a_long_collection_is_set_aside(clock):
    kept = Tracked()
    with ShortPauses(0.005, clock=ticking(clock, 0.006)):
        assert is_looked_at(kept)
        gc.collect()
        assert not is_looked_at(kept)
    freed = weakref.ref(kept)
    del kept
    assert freed() is None


@pytest.mark.parametrize(("generation", "pause_s"), [(2, 0.004), (1, 0.006)])
def test_short_and_partial_collections_set_nothing_aside(clock, generation, pause_s):
    kept = Tracked()
    with ShortPauses(0.005, clock=ticking(clock, pause_s)):
        gc.collect(generation)
        assert is_looked_at(kept)


def test_nothing_is_set_aside_after_the_end(clock):
    kept = Tracked()
    with ShortPauses(0.005, clock=ticking(clock, 1.0)):
        pass
    gc.collect()
    assert is_looked_at(kept)


def ticking(clock, step_s):
    """Returns a clock that goes forward with every look at it."""

    def now_s() -> float:
        clock.advance(step_s)
        return clock.now_s()

    return now_s
