"""What is run before the first request comes."""

from collections import defaultdict
from typing import Any

import pytest

from engine.answering.pipeline import Pipeline
from engine.config import Config, ModelsConfig
from engine.execution.bundle import load_bundle
from engine.execution.warmup import warm_up
from engine.scheduling.deadline import MonotonicClock

CONFIG = Config(models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2))


@pytest.mark.parametrize("is_beside_others", [False, True])
async def test_a_device_that_compiles_sees_the_smallest_and_the_largest_shapes(
    tiny_bundle, runtime, monkeypatch, is_beside_others: bool
):
    bundle = load_bundle(tiny_bundle, runtime)
    shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for model in (bundle.encoder, bundle.generator, bundle.click_model):
        assert model is not None
        run = model._session.run

        def noted(outputs: Any, feed: dict[str, Any], run: Any = run) -> Any:
            for name, array in feed.items():
                shapes[f"{outputs[0]} {name}"].append(array.shape)
            return run(outputs, feed)

        monkeypatch.setattr(model._session, "run", noted)
    pipeline = Pipeline(bundle, runtime, CONFIG, MonotonicClock())
    await warm_up(bundle, pipeline.worker, is_beside_others=is_beside_others, is_compiled=True)
    longest = bundle.manifest.prompt.max_tokens
    expected = {
        "embedding input_ids": ((1, 8), (2, 64)),
        "sequences input_ids": ((1, 8), (2, longest)),
        "click_logit context_ids": ((1, 8), (2, longest)),
    }
    for name, (least, most) in expected.items():
        assert min(shapes[name]) == least
        assert max(shapes[name]) == most
    tokens = {shape[2] for shape in shapes["click_logit candidate_ids"]}
    assert (min(tokens), max(tokens)) == (8, 16)
