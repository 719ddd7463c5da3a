"""How long a bundle that a worker died over is held back."""

import pytest

from engine.formats.manifest import MANIFEST_FILE
from engine.serving.deadly import DeadlyBundles


@pytest.fixture
def deadly(clock) -> DeadlyBundles:
    return DeadlyBundles(clock)


async def test_it_is_held_back_for_a_minute_then_for_twice_as_long_up_to_an_hour(
    deadly, clock, tiny_bundle
):
    assert not await deadly.holds(tiny_bundle)
    delays_min = []
    for _ in range(8):
        refusal = await deadly.add(tiny_bundle, is_asked=False)
        delays_min.append(refusal.delay_s / 60)
        clock.advance(refusal.delay_s - 1)
        assert await deadly.holds(tiny_bundle)
        clock.advance(1)
        assert not await deadly.holds(tiny_bundle)
    assert delays_min == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_it_counts_once_unless_it_changes_or_was_served(deadly, changed_bundle, tiny_bundle):
    bundle = changed_bundle(tiny_bundle, "bundle", provenance={"made": "once"})
    again = changed_bundle(tiny_bundle, "again", provenance={"made": "again"})
    assert not (await deadly.add(bundle, is_asked=False)).is_again
    assert (await deadly.add(bundle, is_asked=False)).is_again
    (again / MANIFEST_FILE).replace(bundle / MANIFEST_FILE)
    assert not await deadly.holds(bundle)
    assert not (await deadly.add(bundle, is_asked=False)).is_again
    deadly.forget(bundle)
    assert not await deadly.holds(bundle)
    assert not (await deadly.add(bundle, is_asked=False)).is_again


async def test_one_who_asks_starts_the_row_anew(deadly, tiny_bundle):
    delays_min = [(await deadly.add(tiny_bundle, is_asked=a)).delay_s / 60 for a in (0, 0, 1, 0)]
    assert delays_min == [1, 2, 1, 2]


async def test_one_who_asks_has_it_tried_again_until_a_worker_dies_over_it_once_more(
    deadly, tiny_bundle
):
    await deadly.add(tiny_bundle, is_asked=False)
    deadly.release(tiny_bundle)
    assert not await deadly.holds(tiny_bundle)
    assert (await deadly.add(tiny_bundle, is_asked=True)).is_again
    assert await deadly.holds(tiny_bundle)


async def test_one_that_cannot_be_read_is_held_back_too(deadly, tmp_path):
    await deadly.add(tmp_path / "nosuch", is_asked=False)
    assert await deadly.holds(tmp_path / "nosuch")
