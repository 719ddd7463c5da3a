"""What the load generator sends, and when: no server needed."""

import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pytest

from benchmarks.load.__main__ import main
from benchmarks.load.arrivals import due_s
from benchmarks.load.comparison import compared
from benchmarks.load.figures import latency_histogram
from benchmarks.load.percentiles import percentile
from benchmarks.load.record import Record, write
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


def test_short_bursts_of_a_long_run_all_come():
    day = load(arrivals="constant", rate_rps=1.0, burst=Burst(100, 10, 0.1), duration_s=86_400.0)
    times_s = due_s(day)
    of_bursts, num = np.unique(times_s[times_s % 10 > 9.9] // 10, return_counts=True)
    assert len(of_bursts) == 8640
    assert set(num.tolist()) <= {9, 10, 11}
    assert len(times_s) == pytest.approx(8640 * (10 + 9.9), abs=1)


def test_a_ramp_goes_on_beneath_bursts():
    times_s = due_s(
        load(
            arrivals="constant",
            rate_rps=10,
            ramp_to_rps=100,
            burst=Burst(200, 5, 1),
            duration_s=10.0,
        )
    )
    counts = np.histogram(times_s, [0, 4, 5, 9, 10])[0]
    assert counts.tolist() == pytest.approx([(10 + 46) / 2 * 4, 200, (55 + 91) / 2 * 4, 200], abs=1)


@pytest.mark.parametrize(("num", "percent", "rank_"), [(1, 99, 1), (100, 99, 99), (150, 99, 149)])
def test_percentiles_are_of_the_nearest_rank_upwards(num, percent, rank_):
    assert percentile(range(1, num + 1), percent) == rank_


def test_the_thousandth_is_told_exactly():
    assert [percentile(range(1, n + 1), 99.9) for n in (1000, 1001, 3000)] == [999, 1000, 2997]


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


def record(latencies_ms: np.ndarray, *, num_errors: int = 0, **figures: object) -> Record:
    histogram = latency_histogram([])
    for latency_ms in latencies_ms:
        histogram.record_value(int(latency_ms * 1000))
    shares = {"in_budget": 0.9, "degraded": 0.0, "cached": 0.0}
    counts = {"num_requests": len(latencies_ms) + num_errors, "errors": num_errors}
    return Record(
        figures=shares | counts | figures, latency_us=histogram.encode().decode(), seconds=[]
    )


def test_a_comparison_finds_the_ratio_and_an_interval_round_it():
    rng = np.random.default_rng(0)
    first, second = (rng.gamma(4, scale, size=2000) for scale in (5.0, 10.0))
    found = compared(record(first), record(second))
    ratios = {r.name: r for r in found.ratios}
    assert ratios["p50_ms"].first == pytest.approx(np.median(first), rel=0.01)
    assert set(ratios) == {"p50_ms", "p95_ms", "p99_ms"}, "2 of 2000 answers say nothing"
    for ratio in ratios.values():
        assert ratio.low < 2 < ratio.high
        assert ratio.high - ratio.low < 1
    assert found.warnings == ["too few answers to compare p99.9"]


def test_a_comparison_of_shares_has_a_width_where_nothing_or_everything_failed():
    first = record(np.full(6000, 5.0), num_errors=0)
    second = record(np.full(3000, 5.0), num_errors=3000)
    found = {d.name: d for d in compared(first, second).differences}
    errors = found["errors_share"]
    assert (errors.first, errors.second, errors.change) == (0, 0.5, 0.5)
    assert 0.48 < errors.low < 0.5 < errors.high < 0.52
    degraded = found["degraded"]
    assert degraded.change == 0
    assert -0.01 < degraded.low < 0 < degraded.high < 0.01


def test_newcombes_interval_is_that_of_the_literature():
    # Newcombe (1998), method 10: 56 of 70 and 48 of 80.
    first = record(np.full(80, 5.0), in_budget=48 / 80)
    second = record(np.full(70, 5.0), in_budget=56 / 70)
    found = next(d for d in compared(first, second).differences if d.name == "in_budget")
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_a_comparison_says_what_was_not_alike():
    same = {"prompts": "cycle", "mix": {"suggestion": 1.0}, "seed": 0}
    latencies = np.full(6000, 5.0)
    first = record(latencies, **same, asked_rps=50.0, budget_ms=50.0)
    second = record(latencies, **(same | {"seed": 1}), asked_rps=80.0, budget_ms=50.0, cached=0.8)
    rate, cached = compared(first, second).warnings
    assert rate == "asked_rps differs: 50.0 and 80.0"
    assert "cached answers" in cached
    assert compared(first, first).warnings == []


def test_columns_of_a_comparison_do_not_run_together(tmp_path, capsys):
    paths = []
    for i, ms in enumerate((5.0, 2013.0)):
        paths.append(tmp_path / f"{i}.json")
        write(record(np.full(6000, ms), num_errors=100 * i), paths[-1])
    assert main(["compare", *map(str, paths)]) == 0
    out = capsys.readouterr().out.splitlines()
    row = next(line for line in out if line.startswith("p50_ms")).split()
    assert [float(text) for text in row[1:4]] == pytest.approx([5, 2013, 402.6], rel=0.001)
    figures = json.loads(out[-1])
    assert figures["p50_ms"]["first"] == pytest.approx(5, rel=0.001)
    assert (figures["errors_share"]["first"], figures["errors_share"]["second"]) == (0, 100 / 6100)
