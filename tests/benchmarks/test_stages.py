"""The stages that are timed do the work that the benchmark says they do."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks import stages
from engine.execution.bundle import load_bundle
from engine.execution.runtime import Runtime


class Recorder:
    """Hands rows on to a model and keeps them."""

    def __init__(self, model) -> None:
        self._model = model
        self.rows: list = []

    def run(self, rows, *args):
        self.rows += rows
        return self._model.run(rows, *args)


def test_each_stage_does_the_work_of_one_request(tiny_bundle):
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    bundle = load_bundle(tiny_bundle, runtime)
    models = ("encoder", "generator", "click_model")
    recorders = {name: Recorder(getattr(bundle, name)) for name in models}
    for name, recorder in recorders.items():
        object.__setattr__(bundle, name, recorder)
    for run in stages.stages_of(bundle, seed=0).values():
        run()
    runtime.close()
    (query,) = recorders["encoder"].rows
    (generated,) = recorders["generator"].rows
    (scored,) = recorders["click_model"].rows
    assert len(query) == 8
    assert len(generated.prompt_ids) == 64
    assert len(generated.rung.slots) == 8
    assert len(scored.context_ids) == 40
    assert len(scored.candidate_ids) == 32
    assert sum(map(len, scored.candidate_ids)) == 156


def test_ratios_are_to_the_generation_of_the_same_turn(monkeypatch):
    """Every second turn all is three times as slow: medians of times and of ratios differ."""
    now_s = 0.0
    slowness = itertools.cycle([1.0, 3.0])

    def taking(seconds, *, starts_turn=False):
        def run():
            nonlocal now_s, factor
            factor = next(slowness) if starts_turn else factor
            now_s += seconds * factor

        return run

    factor = 1.0
    monkeypatch.setattr("time.perf_counter", lambda: now_s)
    runs: dict[str, Callable[[], object]] = {
        "embed": taking(0.001, starts_turn=True),
        "generate": taking(0.01),
        "score": taking(0.004),
    }
    milliseconds, ratios = stages.measure(runs, num_rounds=5)
    assert ratios == pytest.approx({"embed": 0.1, "score": 0.4})
    assert milliseconds["generate"] == pytest.approx(10 * np.median([3, 1, 3, 1, 3]))
