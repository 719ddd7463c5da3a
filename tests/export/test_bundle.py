"""A bundle is complete, verified, and never written over another."""

import shutil
from collections.abc import Callable
from math import exp
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from engine.execution.bundle import load_bundle
from engine.execution.models import GenerateRow
from engine.execution.runtime import Runtime
from engine.formats.manifest import read_manifest, verify_files
from export import parity
from export.bundle import export_bundle
from export.checkpoint import Run
from export.encoder import build_encoder, quantise_encoder
from export.sample import write_sample_bundle
from train.clicks.calibration import quality
from train.evaluation.origin import doubts


def test_manifest_describes_the_graphs(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    verify_files(bundle, manifest)
    for spec in (manifest.encoder, manifest.generator, manifest.click_model):
        assert spec is not None
        assert spec.precision == "int8"
        session = parity.session_of(onnx.load(bundle / spec.file))
        inputs = {
            i.name: ["int64" if "int64" in i.type else "float32", *i.shape]
            for i in session.get_inputs()
        }
        assert inputs == spec.inputs
        assert [o.name for o in session.get_outputs()] == list(spec.outputs)


def test_every_tensor_is_stored_once(bundle: Path) -> None:
    for path in bundle.glob("*.onnx"):
        graph = onnx.load(path).graph
        contents = [
            numpy_helper.to_array(t).tobytes() for t in graph.initializer if len(t.raw_data) > 4096
        ]
        assert len(contents) == len(set(contents)), path.name


def test_int8_bundle_is_at_most_a_third_of_fp32(
    run_directory: Path, bundle: Path, tmp_path: Path
) -> None:
    export_bundle(run_directory, tmp_path / "fp32", precision="fp32", num_parity_requests=3)
    small = (bundle / "generator.onnx").stat().st_size
    assert small * 3 < (tmp_path / "fp32/generator.onnx").stat().st_size * 1.2


def test_existing_target_is_left_alone(run_directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "precious").write_text("data")
    with pytest.raises(ValueError, match="exists already"):
        export_bundle(run_directory, target)
    assert (target / "precious").read_text() == "data"


def test_failed_export_leaves_nothing(run_directory: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    shutil.copytree(run_directory, broken)
    weights = load_file(broken / "generator/model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, broken / "generator/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.norm\.weight"):
        export_bundle(broken, tmp_path / "bundle")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_run_without_click_model_and_index_still_makes_a_bundle(
    run_directory: Path, tmp_path: Path
) -> None:
    cold = tmp_path / "run"
    shutil.copytree(run_directory, cold)
    shutil.rmtree(cold / "click_model")
    shutil.rmtree(cold / "index")
    manifest = export_bundle(cold, tmp_path / "bundle", num_parity_requests=3)
    assert manifest.click_model is None
    assert manifest.index is None
    assert manifest.generator is not None


@pytest.mark.parametrize("model", ["encoder", "generator", "click_model"])
def test_a_bundle_is_not_of_a_run_that_was_trained_again(
    model: str, run_directory: Path, bundle: Path, tmp_path: Path
) -> None:
    assert not doubts(read_manifest(bundle), run_directory)
    again = Path(shutil.copytree(run_directory, tmp_path / "run"))
    weights = next((again / model).glob("*.safetensors"))
    save_file({n: w + 1 for n, w in load_file(weights).items()}, weights, {"format": "pt"})
    (doubt,) = doubts(read_manifest(bundle), again)
    assert f"{model}/{weights.name}" in doubt


def test_same_run_gives_the_same_bundle_id(tmp_path: Path) -> None:
    first = write_sample_bundle(tmp_path / "a", seed=5)
    second = write_sample_bundle(tmp_path / "b", seed=5)
    other = write_sample_bundle(tmp_path / "c", seed=6)
    assert first.bundle_id == second.bundle_id != other.bundle_id


def test_generators_that_search_say_how_probable_their_texts_are(tmp_path: Path) -> None:
    slots = write_sample_bundle(tmp_path / "slots", mode="slots").generator
    assert slots is not None
    assert list(slots.outputs) == ["sequences"]
    write_sample_bundle(tmp_path / "beam", mode="beam")
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    bundle = load_bundle(tmp_path / "beam", runtime)
    assert bundle.generator is not None
    prompt = bundle.renderer.generation_prompt("completion", "wir", [])
    rung = bundle.rungs["completion"][0]
    row = GenerateRow(prompt.ids, prompt.first_token_range, rung)
    (found,) = bundle.generator.run([row])
    runtime.close()
    assert found.logprobs is not None
    logprobs = [p for p in found.logprobs if p is not None]
    assert len(logprobs) == len(found.ids) == len(rung.slots)
    assert logprobs == sorted(logprobs, reverse=True)
    assert 0 < sum(map(exp, logprobs)) < 1 + 1e-5


def test_int8_embedding_keeps_the_direction(bundle: Path, run_directory: Path) -> None:
    cosine = read_manifest(bundle).parity["encoder"]["mean_cosine_int8"]
    assert 0.98 <= cosine <= 1 + 1e-6


def test_mode_that_the_generator_was_not_taught_is_refused(
    run_directory: Path, tmp_path: Path
) -> None:
    other = tmp_path / "run"
    shutil.copytree(run_directory, other)
    (other / "generator/metrics.json").write_text('{"mode": "slots"}')
    with pytest.raises(ValueError, match=r"generator\.mode 'slots'.*--mode slots"):
        export_bundle(other, tmp_path / "bundle", mode="list")


def test_scales_of_the_click_model_do_not_depend_on_the_number_of_parity_requests(
    run_of: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_of("encoder", "index", "click_model")
    one = export_bundle(run, tmp_path / "one", num_parity_requests=1)
    several = export_bundle(run, tmp_path / "several", num_parity_requests=5)
    assert one.files["click_model.onnx"] == several.files["click_model.onnx"]
    assert one.parity["click_model"] != several.parity["click_model"]


def test_an_encoder_without_token_embeddings_is_not_quantised(run_directory: Path) -> None:
    graph = build_encoder(Run(run_directory).encoder())
    for node in graph.graph.node:
        if node.op_type == "Gather" and node.input[1] == "input_ids":
            node.input[1] = "other_ids"
    graph.graph.node.insert(0, onnx.helper.make_node("Identity", ["input_ids"], ["other_ids"]))
    ids = np.ones((1, 3), np.int64)
    with pytest.raises(ValueError, match=r"looks up no embeddings by input_ids.*precision fp32"):
        quantise_encoder(graph, [{"input_ids": ids, "attention_mask": ids}])


def test_only_files_of_an_index_are_copied(run_of: Callable[..., Path], tmp_path: Path) -> None:
    run = run_of("encoder", "index")
    (run / "index/hnsw.bin").write_bytes(b"of an older release")
    manifest = export_bundle(run, tmp_path / "bundle")
    assert "index/hnsw.faiss" in manifest.files
    assert "index/hnsw.bin" not in manifest.files
    assert load_bundle(tmp_path / "bundle", None).index is not None


def test_a_manifest_says_how_good_the_click_model_is(
    run_of: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_of("generator", "click_model")
    clicked = np.array([True, False, True, False])
    measured = quality(np.array([0.9, 0.2, 0.4, 0.5]), clicked, np.arange(4))  # no GAUC
    metrics = {"all": {"click_rate": 0.5, "model": measured}, "suggestion": {"click_rate": 0.5}}
    (run / "click_model/metrics.json").write_bytes(msgspec.json.encode(metrics))
    export_bundle(run, tmp_path / "bundle", num_parity_requests=3)
    assert read_manifest(tmp_path / "bundle").quality == {
        "click_model_auc": measured.auc,
        "click_model_normalised_entropy": measured.normalised_entropy,
        "click_model_relative_ece": measured.relative_ece,
    }
