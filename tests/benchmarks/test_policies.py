"""What a bundle must have for policies to be played. What they do: tests/engine/scheduling."""

import dataclasses

import msgspec
import pytest

from benchmarks.policies import cases, main, played
from benchmarks.served import write_lookup_bundle
from benchmarks.simulation import capacity_rps, summary
from engine.execution.bundle import load_bundle
from engine.execution.runtime import Runtime


def test_a_bundle_without_a_generator_is_refused(tiny_bundle, tmp_path, capsys):
    write_lookup_bundle(tiny_bundle, tmp_path)
    with pytest.raises(SystemExit):
        main([f"--bundle={tmp_path}"])
    assert f"{tmp_path}: has no generator" in capsys.readouterr().err


def test_what_a_bundle_lacks_makes_no_answer_worse(tiny_bundle):
    whole = load_bundle(tiny_bundle, Runtime(num_threads=1, shared_thread_pool=False))
    manifest = msgspec.structs.replace(whole.manifest, click_model=None)
    bundle = dataclasses.replace(whole, manifest=manifest, click_model=None)
    assert capacity_rps(bundle) > capacity_rps(whole), "nothing is scored"
    playable = cases(bundle, 10.0)
    calm = summary(played(bundle, *playable["0.5 x capacity"]))
    assert calm["undegraded"] == calm["by_plan"]["full"] > 0.8
    overloaded = summary(played(bundle, *playable["3.0 x capacity"]))["by_plan"]
    assert overloaded["log, ranked"] == overloaded["log, ranked less"] == 0
    assert overloaded["log, unranked"] > 0
