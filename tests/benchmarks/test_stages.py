"""The stages that are timed do the work that the benchmark says they do."""

import pytest

from benchmarks.stages import CANDIDATE_TOKENS, NUM_CANDIDATES, measure, stages_of
from engine.execution.bundle import load_bundle
from engine.execution.runtime import Runtime


@pytest.fixture(scope="module")
def stages(tiny_bundle):
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    yield stages_of(load_bundle(tiny_bundle, runtime), seed=0)
    runtime.close()


def test_each_stage_answers_for_one_request(stages):
    (embedding,) = stages["embed"]()
    assert embedding.ndim == 1
    (generated,) = stages["generate"]()
    assert len(generated.ids) == 8
    (logits,) = stages["score"]()
    assert logits.shape == (NUM_CANDIDATES,)
    assert len(set(logits.tolist())) == NUM_CANDIDATES  # no candidate is another's copy
    assert CANDIDATE_TOKENS > NUM_CANDIDATES


def test_ratios_are_to_the_generation_of_the_same_turn(stages):
    milliseconds, ratios = measure(stages, num_rounds=3)
    assert milliseconds.keys() == {"embed", "generate", "score"}
    assert ratios.keys() == {"embed", "score"}
    assert all(value > 0 for value in [*milliseconds.values(), *ratios.values()])
