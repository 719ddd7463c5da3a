"""Models whose numbers are not finite."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from engine.answering.answer import Question
from engine.config import Config, ModelsConfig
from engine.errors import NotFinite
from engine.execution.models import GenerateRow, Generator
from engine.formats.manifest import sha256_of
from engine.formats.vocabulary import FIRST_TEXT_ID
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.planner import Rung
from engine.scheduling.stages import Probe, Stage, Why
from engine.serving.loading import load_pipeline
from engine.telemetry.logs import JsonFormatter
from export import parity
from export.checkpoint import Run
from export.generator import build_generator
from export.options import Mode
from export.sample import write_sample_run

CONFIG = Config(models=ModelsConfig(num_threads=1, shared_thread_pool=False, max_batch_size=2))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    directory = tmp_path_factory.mktemp("models") / "run"
    write_sample_run(directory, seed=3)
    return Run(directory)


def overflow(directory: Path, role: str, output: str, *, over: int = 0) -> None:
    """Multiplies an output by infinity, and brings the manifest up to date.

    Args:
        directory: of a bundle.
        role: of the model.
        output: its name.
        over: only with inputs of more ids than this, padding included.
    """
    path = directory / f"{role}.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == output:
                node.output[place] = "finite"
    constants = {"infinity": np.float32(np.inf), "one": np.float32(1), "over": np.array([over])}
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    ids = model.graph.input[0].name
    model.graph.node.extend(
        [
            helper.make_node("Shape", [ids], ["num_ids"], start=1),
            helper.make_node("Greater", ["num_ids", "over"], ["is_over"]),
            helper.make_node("Where", ["is_over", "infinity", "one"], ["factor"]),
            helper.make_node("Mul", ["finite", "factor"], [output]),
        ]
    )
    save(model, directory, role)


def save(model: onnx.ModelProto, directory: Path, role: str) -> None:
    """Saves another graph of a bundle, and brings the manifest up to date."""
    path = directory / f"{role}.onnx"
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


async def test_a_batch_whose_numbers_are_not_finite_fails_and_the_log_says_why(
    tiny_bundle, runtime, tmp_path, caplog
):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    overflow(bundle, "encoder", "embedding", over=8)  # not what warming up reads
    clock = MonotonicClock()
    pipeline = await load_pipeline(bundle, runtime, CONFIG, clock)
    question = Question(
        scenario=pipeline.bundle.scenarios["suggestion"],
        query="a quite unusual thing that nobody has searched for so far",
        deadline=Deadline.after(30.0, clock),
        num_suggestions=3,
    )
    with caplog.at_level(logging.ERROR):
        answer = await pipeline.recommend(question, Probe(clock))
    await pipeline.close()
    assert (Stage.ENCODE, Why.FAILURE) in {(o.stage, o.reason) for o in answer.omissions}
    (line,) = (JsonFormatter().format(r) for r in caplog.records)
    assert "NotFinite: embedding is not finite: the model overflows" in line


@pytest.mark.parametrize("mode", ["slots", "list"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_generator_whose_logits_are_not_finite_fails(run: Run, mode: Mode, number: float):
    checkpoint = run.generator()
    norm = checkpoint.state["norm.weight"].copy()
    norm[0] = number
    graph = build_generator(
        {**checkpoint.state, "norm.weight": norm},
        checkpoint.shape,
        checkpoint.cos_sin(100),
        mode=mode,
    )
    generator = Generator(parity.session_of(graph), 80)
    row = GenerateRow(
        [140, 150], (FIRST_TEXT_ID, checkpoint.shape.vocabulary), Rung((4, 5), (3, 3))
    )
    with pytest.raises(NotFinite, match="what the generator chooses from is not finite"):
        generator.run([row])


def test_a_search_with_fewer_ids_to_begin_with_than_beams_is_no_failure(run: Run):
    checkpoint = run.generator()
    graph = build_generator(
        checkpoint.state, checkpoint.shape, checkpoint.cos_sin(100), mode="beam"
    )  # without log-probabilities, as older bundles have it
    generator = Generator(parity.session_of(graph), 80)
    (sequences,) = generator.run([GenerateRow([140, 150], (200, 201), Rung((4, 4, 4), (1, 1, 1)))])
    assert sequences.ids == [[200], [], []]
