"""The search for capacity, on an engine whose capacity is known; shares and their bounds."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.capacity import Plan, _figures, measure, parse
from benchmarks.load.caller import Outcome
from benchmarks.search import Trial, in_turns, search
from benchmarks.served import write_lookup_bundle
from engine.formats.manifest import read_manifest, verify_files, write_manifest


def outcome(latency_s: float, *, error: str = "", lag_s: float = 0.0) -> Outcome:
    effort = "" if error else "full"
    return Outcome("suggestion", 0.0, lag_s, latency_s, error=error, effort=effort)


def holds(trial: Trial) -> bool:
    return trial.p99_ms <= 50


class Known:
    """An engine that holds rates up to a limit, a lower one in long runs."""

    def __init__(self, *, short_rps: float, long_rps: float) -> None:
        self._limits_rps = {15.0: short_rps, 120.0: long_rps}
        self.runs: list[tuple[float, float]] = []

    def trial(self, rate_rps: float, duration_s: float) -> Trial:
        self.runs.append((rate_rps, duration_s))
        is_held = rate_rps <= self._limits_rps[duration_s]
        return Trial(rate_rps, [outcome(0.01 if is_held else 1.0)])

    def capacity(self, start_rps: float) -> Trial | None:
        asked = search(holds, start_rps=start_rps, probe_s=15.0, confirm_s=120.0, late_ms=5.0)
        (found,) = in_turns([(asked, self.trial)])
        return found


class SentLate(Known):
    """One whose first run at a rate is sent late, or every run."""

    def __init__(self, *, is_always: bool = False) -> None:
        super().__init__(short_rps=60.0, long_rps=60.0)
        self._is_always = is_always

    def trial(self, rate_rps: float, duration_s: float) -> Trial:
        is_late = self._is_always or (rate_rps, duration_s) not in self.runs
        held = super().trial(rate_rps, duration_s)
        late = Trial(rate_rps, [outcome(1.0, lag_s=0.9)])
        return late if is_late else held


@pytest.mark.parametrize("start_rps", [1.0, 8.0, 60.0, 500.0])
@pytest.mark.parametrize("long_rps", [60.0, 66.0, 40.0])
def test_the_highest_rate_that_long_runs_hold_is_found(start_rps, long_rps):
    engine = Known(short_rps=60.0, long_rps=long_rps)
    found = engine.capacity(start_rps)
    assert found is not None
    assert long_rps / 1.06 <= found.rate_rps <= long_rps
    assert (found.rate_rps, 120.0) in engine.runs, "what is told was measured for long enough"
    assert (found.rate_rps * 1.05, 120.0) in [(pytest.approx(r), s) for r, s in engine.runs]


def test_of_an_engine_that_holds_nothing_nothing_is_found():
    assert Known(short_rps=60.0, long_rps=0.0).capacity(8.0) is None


def test_a_run_that_was_sent_late_is_made_again_before_the_engine_is_blamed():
    engine, on_time = SentLate(), Known(short_rps=60.0, long_rps=60.0)
    assert engine.capacity(8.0) == on_time.capacity(8.0)
    assert engine.runs == [run for run in on_time.runs for _ in range(2)]


def test_a_generator_that_is_always_late_is_not_waited_for():
    engine = SentLate(is_always=True)
    assert engine.capacity(8.0) is None
    assert max(engine.runs.count(run) for run in engine.runs) == 2


def test_a_late_run_that_held_nevertheless_is_not_made_again():
    runs: list[float] = []

    def trial(rate_rps: float, duration_s: float) -> Trial:
        runs.append(rate_rps)
        return Trial(rate_rps, [outcome(0.04, lag_s=0.02)] if rate_rps <= 60 else [outcome(1.0)])

    asked = search(holds, start_rps=8.0, probe_s=15.0, confirm_s=120.0, late_ms=5.0)
    (found,) = in_turns([(asked, trial)])
    assert found is not None
    assert found.send_lag_p99_ms == 20
    assert runs[:4] == [8, 16, 32, 64]


def test_searches_take_turns_and_find_what_each_finds_alone():
    engines = [Known(short_rps=60.0, long_rps=60.0), Known(short_rps=3.0, long_rps=0.0)]
    order: list[int] = []

    def trial(i: int):
        def run(rate_rps: float, duration_s: float) -> Trial:
            order.append(i)
            return engines[i].trial(rate_rps, duration_s)

        return run

    found = in_turns(
        [(search(holds, start_rps=8.0, probe_s=15.0, confirm_s=120.0), trial(i)) for i in range(2)]
    )
    alone = Known(short_rps=60.0, long_rps=60.0)
    assert found[0] == alone.capacity(8.0)
    assert found[1] is None, "its long runs hold nothing"
    assert order[:8] == [0, 1] * 4


def test_failed_requests_count_as_endless():
    answers = [outcome(0.01)] * 98
    assert Trial(1.0, [*answers, outcome(0.02), outcome(math.nan, error="X")]).p99_ms == 20
    assert Trial(1.0, [*answers, *[outcome(math.nan, error="X")] * 2]).p99_ms == math.inf


def test_shares_have_exact_bounds(tmp_path):
    plan = parse_plan(tmp_path)
    trial = Trial(1.0, [outcome(0.01, lag_s=0.003)] * 100)
    figures = _figures(plan, trial, "0_8c")
    assert figures["in_budget_0_8c"] == 1
    assert figures["in_budget_0_8c_low"] == round(0.025 ** (1 / 100), 4), "of 100 of 100"
    assert figures["n_0_8c"] == 100
    assert figures["errors_0_8c"] == 0
    assert figures["send_lag_p99_0_8c_ms"] == 3


def test_a_run_without_a_request_has_no_share(tmp_path):
    figures = _figures(parse_plan(tmp_path), Trial(0.1, []), "3c")
    assert figures["n_3c"] == 0
    assert figures["in_budget_3c"] is figures["in_budget_3c_low"] is figures["p99_3c_ms"] is None


@pytest.mark.slow
def test_a_bundle_without_click_model_and_index_has_a_capacity_but_no_lookups(
    tiny_bundle, tmp_path
):
    bare = tmp_path / "bare"
    write_bare_bundle(tiny_bundle, bare)
    plan = dataclasses.replace(
        parse_plan(tmp_path, "--budget-ms=2000"),
        bundle=bare,
        queries=tuple(f"lamp {i}" for i in range(400)),
        probe_s=2.0,
        confirm_s=2.0,
        soak_s=2.0,
        overload_s=2.0,
        idle_s=1.0,
    )
    figures: dict[str, Any] = measure(plan)
    assert figures["capacity_rps"] > 0
    assert figures["full_capacity"] >= 0.99
    assert figures["lookup_rps"] is figures["send_lag_p99_lookup_ms"] is None
    assert figures["lookup_note"] == "the bundle has no index"
    lags = [figures[f"send_lag_p99_{x}_ms"] for x in ("capacity", "0_8c", "3c")]
    assert figures["send_lag_p99_ms"] >= max(lags) >= 0


def write_bare_bundle(bundle: Path, directory: Path) -> None:
    """Copies a bundle without its click model and index."""
    shutil.copytree(bundle, directory)
    manifest = msgspec.structs.replace(read_manifest(bundle), click_model=None, index=None)
    kept = {n: h for n, h in manifest.files.items() if n in manifest.model_files()}
    for name in manifest.files.keys() - kept.keys():
        (directory / name).unlink()
    write_manifest(directory, msgspec.structs.replace(manifest, files=kept))


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
