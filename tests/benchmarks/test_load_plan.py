"""What the load generator sends, and when: no server needed."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from benchmarks.load.arrivals import due_s
from benchmarks.load.comparison import compared
from benchmarks.load.figures import latency_histogram
from benchmarks.load.record import Record
from benchmarks.load.settings import Burst, Load
from benchmarks.load.traffic import requests

LOAD = Load(
    target="", queries=("red shoes", "blue socks", "hats"), mix={"suggestion": 1.0}, rate_rps=100.0
)


def load(**changes) -> Load:
    return dataclasses.replace(LOAD, **changes)


def test_constant_arrivals_are_at_even_distances():
    times_s = due_s(load(arrivals="constant", duration_s=10.0))
    assert len(times_s) == 1000
    np.testing.assert_allclose(np.diff(times_s), 0.01, rtol=1e-6)


def test_poisson_arrivals_have_the_rate_and_independent_gaps():
    gaps_s = np.diff(due_s(load(duration_s=100.0)))
    assert len(gaps_s) == pytest.approx(10_000, rel=0.05)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.05), "exponential"
    assert abs(np.corrcoef(gaps_s[1:], gaps_s[:-1])[0, 1]) < 0.05


def test_the_same_seed_gives_the_same_times():
    np.testing.assert_array_equal(due_s(load()), due_s(load()))
    assert due_s(load())[0] != due_s(load(seed=1))[0]


def test_a_ramp_sends_as_many_as_the_rate_adds_up_to():
    times_s = due_s(load(arrivals="constant", rate_rps=10, ramp_to_rps=190, duration_s=10.0))
    assert len(times_s) == pytest.approx(1000, abs=1)
    assert (times_s < 5).sum() == pytest.approx((10 + 100) / 2 * 5, abs=1)


def test_a_burst_is_another_rate_at_the_end_of_each_interval():
    bursts = load(arrivals="constant", rate_rps=10, burst=Burst(200, 5, 1), duration_s=10.0)
    times_s = due_s(bursts)
    assert ((times_s >= 4) & (times_s < 5)).sum() == pytest.approx(200, abs=2)
    assert (times_s < 4).sum() == pytest.approx(40, abs=1)


def prompts(settings: Load, number: int) -> list[tuple]:
    asked = itertools.islice(requests(settings), number)
    return [(r.scenario, r.query, tuple(r.session_queries)) for r in asked]


@pytest.mark.parametrize("mix", [{"suggestion": 1.0}, {"completion": 1.0, "suggestion": 1.0}])
def test_distinct_prompts_never_repeat(mix):
    sent = prompts(load(prompts="distinct", mix=mix), 25)
    assert len(set(sent)) == 25


def test_too_few_queries_for_distinct_prompts_are_said_to_be_so():
    with pytest.raises(ValueError, match="use a longer file"):
        prompts(load(prompts="distinct"), 100)


def test_zipf_asks_few_queries_often():
    queries = tuple(f"query {i}" for i in range(1000))
    sent = Counter(q for _, q, _ in prompts(load(prompts="zipf", queries=queries), 20_000))
    harmonic = sum(1 / r for r in range(1, 1001))
    shares = [count / 20_000 for _, count in sent.most_common(2)]
    assert shares == pytest.approx([1 / harmonic, 1 / (2 * harmonic)], rel=0.1)


def test_order_is_that_of_the_file():
    assert [q for _, q, _ in prompts(load(prompts="order"), 4)] == [*LOAD.queries, "red shoes"]


def record(latencies_ms: np.ndarray, *, num_errors: int) -> Record:
    histogram = latency_histogram([])
    for latency_ms in latencies_ms:
        histogram.record_value(int(latency_ms * 1000))
    figures = {
        "num_requests": len(latencies_ms) + num_errors,
        "errors": num_errors,
        "in_budget": 0.9,
        "degraded": 0.0,
    }
    return Record(figures=figures, latency_us=histogram.encode().decode(), seconds=[])


def test_a_comparison_finds_the_ratio_and_an_interval_round_it():
    rng = np.random.default_rng(0)
    first, second = (rng.gamma(4, scale, size=2000) for scale in (5.0, 10.0))
    ratios = {
        r.name: r for r in compared(record(first, num_errors=20), record(second, num_errors=0))
    }
    assert ratios["p50_ms"].first == pytest.approx(np.median(first), rel=0.01)
    for name in ("p50_ms", "p95_ms", "p99_ms"):
        assert ratios[name].low < 2 < ratios[name].high
        assert ratios[name].high - ratios[name].low < 1
    assert ratios["errors_share"].ratio == 0
    assert ratios["degraded"].ratio is None, "nothing can be said of 0 to 0"
