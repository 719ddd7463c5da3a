"""Models whose numbers overflow."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engine.config import Config, ModelsConfig
from engine.execution.runtime import Runtime
from engine.formats.manifest import sha256_of
from engine.scheduling.deadline import MonotonicClock
from engine.serving.loading import load_pipeline

CONFIG = Config(models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2))


@pytest.fixture(scope="module")
def runtime():
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    yield runtime
    runtime.close()


def overflow(directory: Path, role: str, output: str) -> None:
    """Multiplies an output by infinity, and brings the manifest up to date."""
    path = directory / f"{role}.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = "finite"
    model.graph.initializer.append(
        numpy_helper.from_array(np.array(np.inf, np.float32), "infinity")
    )
    model.graph.node.append(helper.make_node("Mul", ["finite", "infinity"], [output]))
    onnx.save(model, path)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][path.name] = sha256_of(path)
    manifest["index"]["encoder_sha256"] = manifest["files"]["encoder.onnx"]
    (directory / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("role", "output"), [("encoder", "embedding"), ("click_model", "click_logit")]
)
async def test_a_release_whose_numbers_are_not_finite_is_refused(
    tiny_bundle, runtime, tmp_path, role: str, output: str
):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    overflow(bundle, role, output)
    with pytest.raises(ValueError, match=f"{output} is not finite: the model overflows"):
        await load_pipeline(bundle, runtime, CONFIG, MonotonicClock())
