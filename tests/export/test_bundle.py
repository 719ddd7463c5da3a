"""A bundle is complete, verified, and never written over another."""

import shutil
from collections.abc import Callable
from math import exp
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from engine.execution.bundle import load_bundle
from engine.execution.models import GenerateRow
from engine.execution.runtime import Runtime
from engine.formats.manifest import read_manifest, verify_files
from export import linear, parity
from export.bundle import export_bundle
from export.checkpoint import Run
from export.cli import app
from export.encoder import build_encoder, quantise_encoder
from export.sample import write_sample_bundle, write_sample_run
from train.clicks.calibration import quality
from train.stages import Stage, StageRunner


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle") / "run"
    write_sample_run(directory)
    return directory


@pytest.fixture(scope="module")
def bundle(run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("target") / "bundle"
    export_bundle(run_directory, target, num_parity_requests=6)
    return target


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


def test_unfinished_run_is_refused_by_the_missing_part(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mined/scenarios\.json"):
        Run(tmp_path)


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


def test_a_run_whose_parts_are_not_of_one_training_is_refused(
    run_directory: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(run_directory, tmp_path / "run")

    def make(name: str, setting: int) -> None:
        def kept(part: str) -> Callable[[Path], str]:
            def copy(out: Path) -> str:
                shutil.copytree(run_directory / part, out, dirs_exist_ok=True)
                return "made"

            return copy

        mined = Stage(name="mine", output="mined", needs=(), settings=setting, make=kept("mined"))
        sft = Stage(
            name="sft", output="generator", needs=["mine"], settings=0, make=kept("generator")
        )
        StageRunner(run, [mined, sft]).run(name)

    make("mine", 1)
    make("sft", 1)
    make("mine", 2)
    with pytest.raises(ValueError, match="stage sft was made from what stage mine has replaced"):
        export_bundle(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


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


@pytest.fixture
def run_of(run_directory: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a run with some of its parts."""

    def copied(*parts: str) -> Path:
        others = {"encoder", "generator", "click_model", "index"} - {*parts}
        ignore = shutil.ignore_patterns(*others)
        return Path(shutil.copytree(run_directory, tmp_path / "run", ignore=ignore))

    return copied


@pytest.mark.parametrize(
    ("parts", "damaged", "message"),
    [
        (["generator", "click_model"], "click_model/token_statistics.npz", r"statistics\.npz: tok"),
        (["encoder", "index"], "index/edges.npy", "index cannot be loaded"),
    ],
)
def test_a_bundle_that_the_engine_would_refuse_is_not_written(
    run_of: Callable[..., Path], tmp_path: Path, parts: list[str], damaged: str, message: str
) -> None:
    path = run_of(*parts) / damaged
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=message):
        export_bundle(tmp_path / "run", tmp_path / "bundle", num_parity_requests=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    "damaged",
    [
        *("encoder/model.safetensors", "generator/model.safetensors", "generator/config.json"),
        *("click_model/head.safetensors", "click_model/calibration.json", "tokenizer.json"),
        *("mined/prompt.json", "mined/queries.parquet", "index/index.json"),
    ],
)
def test_a_damaged_file_of_a_run_ends_the_command_with_its_name(
    run_directory: Path, tmp_path: Path, damaged: str
) -> None:
    path = Path(shutil.copytree(run_directory, tmp_path / "run")) / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    options = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]
    done = CliRunner().invoke(app, ["bundle", *options, "--parity-requests", "1"])
    assert done.exit_code == 2
    last = done.output.splitlines()[-1]
    assert last.startswith("error: ")
    assert str(path) in last
    assert not (tmp_path / "bundle").exists()


def test_a_model_too_large_for_onnx_is_refused_before_anything_is_run(
    run_of: Callable[..., Path], tmp_path: Path
) -> None:
    num = 600_000_000
    header = msgspec.json.encode({"w": {"dtype": "U8", "shape": [num], "data_offsets": [0, num]}})
    path = run_of("encoder", "generator") / "generator/model.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(file.tell() + num)  # sparse: takes no room
    lines: list[str] = []
    with pytest.raises(ValueError, match=r"generator: has 2\.2 GiB .* up to 2 GiB"):
        export_bundle(tmp_path / "run", tmp_path / "bundle", report=lines.append)
    assert lines == []


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


def test_a_run_that_suggests_nothing_is_refused(
    run_of: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="neither generator nor index"):
        export_bundle(run_of("encoder"), tmp_path / "bundle")


def test_a_run_that_is_trained_meanwhile_is_refused(
    run_of: Callable[..., Path], run_directory: Path, tmp_path: Path
) -> None:
    run = run_of("encoder", "generator")

    def make(out: Path) -> str:
        shutil.copytree(run_directory / "generator", out, dirs_exist_ok=True)
        return "made"

    def train_anew(line: str) -> None:
        if line.startswith("encoder"):
            stage = Stage(name="sft", output="generator", needs=(), settings=0, make=make)
            StageRunner(run, [stage]).run("sft")

    with pytest.raises(ValueError, match="queryrec-train has replaced parts of it"):
        export_bundle(run, tmp_path / "bundle", num_parity_requests=3, report=train_anew)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("generator", r"int8 generator's mean gap .* is nan, must be at most 0\.1: .*fp32"),
        ("click_model", r"int8 click model's mean difference .*, must be at most 0\.1: .*fp32"),
    ],
)
def test_int8_weights_that_know_nothing_are_refused(
    run_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    message: str,
) -> None:
    quantise = linear.quantise_columns
    monkeypatch.setattr(
        linear, "quantise_columns", lambda matrix: (quantise(matrix)[0] * 0, quantise(matrix)[1])
    )
    with pytest.raises(ValueError, match=message):
        export_bundle(run_of(part), tmp_path / "bundle", num_parity_requests=3)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("generator", r"fp16 generator's mean gap .* must be at most 0\.01: .*fp32"),
        ("click_model", r"fp16 click model's mean difference .* must be at most 0\.01: .*fp32"),
    ],
)
def test_activations_too_large_for_half_precision_are_refused(
    run_of: Callable[..., Path], tmp_path: Path, part: str, message: str
) -> None:
    run = run_of(part)
    weights = load_file(run / part / "model.safetensors")
    for name in weights:  # the same function, in float32
        if "up_proj" in name:
            weights[name] *= np.float32(2**18)
        if "down_proj" in name:
            weights[name] /= np.float32(2**18)
    save_file(weights, run / part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        export_bundle(run, tmp_path / "bundle", precision="fp16", num_parity_requests=3)


def test_click_model_that_gives_no_numbers_is_refused(
    run_of: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_of("click_model")
    head = load_file(run / "click_model/head.safetensors")
    head["head.out.bias"][:] = np.nan
    save_file(head, run / "click_model/head.safetensors")
    with pytest.raises(ValueError, match="difference to torch is nan"):
        export_bundle(run, tmp_path / "bundle", precision="fp32", num_parity_requests=3)


def test_encoder_that_reads_padding_is_refused(
    run_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def maskless(model: Any) -> onnx.ModelProto:
        graph_model = build_encoder(model)
        graph = graph_model.graph
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == "attention_mask":
                    node.input[i] = "ones"
        everywhere = onnx.helper.make_node("Equal", ["input_ids", "input_ids"], ["everywhere"])
        graph.node.insert(0, onnx.helper.make_node("Cast", ["everywhere"], ["ones"], to=7))
        graph.node.insert(0, everywhere)
        return graph_model

    monkeypatch.setattr("export.bundle.build_encoder", maskless)
    with pytest.raises(ValueError, match="between a padded batch and its rows alone"):
        export_bundle(run_of("encoder"), tmp_path / "bundle", precision="fp32")


def test_only_files_of_an_index_are_copied(run_of: Callable[..., Path], tmp_path: Path) -> None:
    run = run_of("encoder", "index")
    (run / "index/hnsw.bin").write_bytes(b"of an older release")
    manifest = export_bundle(run, tmp_path / "bundle")
    assert "index/hnsw.faiss" in manifest.files
    assert "index/hnsw.bin" not in manifest.files
    assert load_bundle(tmp_path / "bundle", None).index is not None


def test_an_index_of_an_older_release_is_refused(
    run_of: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_of("encoder", "index")
    (run / "index/hnsw.faiss").rename(run / "index/hnsw.bin")
    with pytest.raises(ValueError, match=r"has no hnsw\.faiss; build it again .*train index"):
        export_bundle(run, tmp_path / "bundle")


def test_an_index_of_another_encoder_is_refused(
    run_of: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_of("encoder", "index")
    weights = load_file(run / "encoder/model.safetensors")
    scaled = {name: array * 2 for name, array in weights.items()}
    save_file(scaled, run / "encoder/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"embedded by another encoder.*train index"):
        export_bundle(run, tmp_path / "bundle")


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


@pytest.mark.parametrize("command", ["bundle", "sample", "triton"])
def test_a_place_that_takes_no_directory_ends_a_command_with_one_line(
    run_directory: Path, bundle: Path, tmp_path: Path, command: str
) -> None:
    options = {
        "bundle": ["--run", str(run_directory)],
        "sample": [],
        "triton": ["--bundle", str(bundle), "--backend", "python"],
    }
    (tmp_path / "file").touch()
    out = tmp_path / "file/out"
    done = CliRunner().invoke(app, [command, *options[command], "--out", str(out)])
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert line.startswith("error: ")
    assert "Not a directory" in line
