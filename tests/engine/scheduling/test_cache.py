import pytest

from engine.scheduling.cache import Cache


@pytest.fixture
def cache(clock) -> Cache[str]:
    return Cache(max_bytes=100, ttl_s=60, clock=clock)


def test_a_value_comes_back_until_it_is_too_old(cache, clock):
    cache.put("a", "A", 10)
    clock.advance(59)
    assert cache.get("a") == "A"
    clock.advance(1)
    assert cache.get("a") is None


def test_a_value_that_is_too_old_takes_no_room_once_it_was_asked_for(cache, clock):
    cache.put("a", "A", 60)
    clock.advance(60)
    assert cache.get("a") is None
    cache.put("b", "B", 50)
    cache.put("c", "C", 50)
    assert (cache.get("b"), cache.get("c")) == ("B", "C")


def test_the_least_recently_used_value_makes_room(cache):
    cache.put("a", "A", 40)
    cache.put("b", "B", 40)
    assert cache.get("a") == "A"
    cache.put("c", "C", 40)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("A", None, "C")


def test_putting_a_key_again_replaces_its_value_and_size(cache):
    cache.put("a", "old", 90)
    cache.put("a", "new", 10)
    cache.put("b", "B", 90)
    assert (cache.get("a"), cache.get("b")) == ("new", "B")


def test_a_value_larger_than_the_cache_is_not_kept(cache):
    cache.put("a", "A", 50)
    cache.put("b", "B", 101)
    assert cache.get("b") is None
    assert cache.get("a") == "A"


def test_values_that_made_room_are_counted(cache, clock):
    assert [cache.put(name, name, 50) for name in "abc"] == [0, 0, 1]
    clock.advance(60)
    assert cache.get("c") is None
    assert cache.put("d", "d", 50) == 0, "what was too old is gone already"
