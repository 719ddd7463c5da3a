"""The search for capacity, on an engine whose capacity is known; shares and their bounds."""

import math

import pytest

from benchmarks.capacity import Plan, _figures, parse
from benchmarks.load.caller import Outcome
from benchmarks.search import Trial, capacity, in_turns, search
from benchmarks.served import write_lookup_bundle
from engine.formats.manifest import read_manifest, verify_files


def outcome(latency_s: float, *, error: str = "") -> Outcome:
    return Outcome("suggestion", 0.0, 0.0, latency_s, error=error, effort="" if error else "full")


class Known:
    """An engine that holds rates up to a limit, a lower one in long runs."""

    def __init__(self, *, short_rps: float, long_rps: float) -> None:
        self._limits_rps = {15.0: short_rps, 120.0: long_rps}
        self.runs: list[tuple[float, float]] = []

    def trial(self, rate_rps: float, duration_s: float) -> Trial:
        self.runs.append((rate_rps, duration_s))
        is_held = rate_rps <= self._limits_rps[duration_s]
        return Trial(rate_rps, [outcome(0.01 if is_held else 1.0)])

    def capacity(self, start_rps: float) -> Trial:
        return capacity(
            self.trial,
            lambda trial: trial.p99_ms <= 50,
            start_rps=start_rps,
            probe_s=15.0,
            confirm_s=120.0,
        )


@pytest.mark.parametrize("start_rps", [1.0, 8.0, 60.0, 500.0])
@pytest.mark.parametrize("long_rps", [60.0, 66.0, 40.0])
def test_the_highest_rate_that_long_runs_hold_is_found(start_rps, long_rps):
    engine = Known(short_rps=60.0, long_rps=long_rps)
    found = engine.capacity(start_rps)
    assert long_rps / 1.06 <= found.rate_rps <= long_rps
    assert (found.rate_rps, 120.0) in engine.runs, "what is told was measured for long enough"
    assert (found.rate_rps * 1.05, 120.0) in [(pytest.approx(r), s) for r, s in engine.runs]


def test_an_engine_that_holds_nothing_is_an_error():
    with pytest.raises(ValueError, match="does not hold even"):
        Known(short_rps=60.0, long_rps=0.0).capacity(8.0)


def test_searches_take_turns_and_find_what_each_finds_alone():
    engines = [Known(short_rps=60.0, long_rps=60.0), Known(short_rps=3.0, long_rps=0.0)]
    order: list[int] = []

    def trial(i: int):
        def run(rate_rps: float, duration_s: float) -> Trial:
            order.append(i)
            return engines[i].trial(rate_rps, duration_s)

        return run

    def holds(trial: Trial) -> bool:
        return trial.p99_ms <= 50

    found = in_turns(
        [(search(holds, start_rps=8.0, probe_s=15.0, confirm_s=120.0), trial(i)) for i in range(2)]
    )
    alone = Known(short_rps=60.0, long_rps=60.0)
    assert found[0] is not None
    assert found[0].rate_rps == alone.capacity(8.0).rate_rps
    assert found[1] is None, "its long runs hold nothing"
    assert order[:8] == [0, 1] * 4


def test_failed_requests_count_as_endless():
    answers = [outcome(0.01)] * 98
    assert Trial(1.0, [*answers, outcome(0.02), outcome(math.nan, error="X")]).p99_ms == 20
    assert Trial(1.0, [*answers, *[outcome(math.nan, error="X")] * 2]).p99_ms == math.inf


def test_shares_have_exact_bounds(tmp_path):
    plan = parse_plan(tmp_path)
    trial = Trial(1.0, [outcome(0.01)] * 100)
    figures = _figures(plan, trial, "0_8c")
    assert figures["in_budget_0_8c"] == 1
    assert figures["in_budget_0_8c_low"] == round(0.025 ** (1 / 100), 4), "of 100 of 100"
    assert figures["n_0_8c"] == 100
    assert figures["errors_0_8c"] == 0


def parse_plan(tmp_path, *arguments: str) -> Plan:
    queries = tmp_path / "queries.txt"
    queries.write_text("shoes\n")
    return parse(["--bundle=b", f"--queries={queries}", *arguments])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--soak=0", "--soak is 0.0"),
        ("--budget-ms=nan", "--budget-ms is nan"),
        ("--scenarios=x=-1", "--scenarios has"),
        ("--queries=nowhere.txt", "--queries cannot be read"),
    ],
)
def test_nonsense_is_refused(tmp_path, capsys, argument, message):
    with pytest.raises(SystemExit):
        parse_plan(tmp_path, argument)
    assert message in capsys.readouterr().err


def test_a_lookup_bundle_is_a_valid_bundle_without_models(tiny_bundle, tmp_path):
    write_lookup_bundle(tiny_bundle, tmp_path)
    manifest = read_manifest(tmp_path)
    verify_files(tmp_path, manifest)
    assert (manifest.encoder, manifest.generator, manifest.click_model) == (None, None, None)
    assert manifest.index is not None
