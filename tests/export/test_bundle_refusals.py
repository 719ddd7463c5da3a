"""Runs of which no bundle is made, with an error that says why."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from export import linear
from export.bundle import export_bundle
from export.checkpoint import Run
from export.cli import app
from export.encoder import build_encoder
from train.stages import Stage, StageRunner


def test_unfinished_run_is_refused_by_the_missing_part(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mined/scenarios\.json"):
        Run(tmp_path)


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
        ("generator", r"int8 generator's mean gap .* is [\d.]+, must be at most 0\.1: .*fp32"),
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
def test_weights_too_small_for_half_precision_are_refused(
    run_of: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    message: str,
) -> None:
    # The activations are too large, too, and would be refused first.
    monkeypatch.setattr("export.bundle.within_range", lambda *_: nullcontext())
    run = run_of(part)
    scale_projections(run / part, up=2**18, down=2**-18)  # the same function, in float32
    with pytest.raises(ValueError, match=message):
        export_bundle(run, tmp_path / "bundle", precision="fp16", num_parity_requests=3)


@pytest.mark.parametrize("part", ["generator", "click_model"])
def test_activations_too_large_for_half_precision_are_refused(
    run_of: Callable[..., Path], tmp_path: Path, part: str
) -> None:
    run = run_of(part)
    scale_projections(run / part, up=2**17, down=2**-9)  # all weights are well within fp16
    with pytest.raises(ValueError, match=r"the layer .*up_proj has .*, too large for fp16.*fp32"):
        export_bundle(run, tmp_path / "bundle", precision="fp16", num_parity_requests=3)


def scale_projections(directory: Path, *, up: float, down: float) -> None:
    weights = load_file(directory / "model.safetensors")
    for name in weights:
        if "up_proj" in name:
            weights[name] *= np.float32(up)
        if "down_proj" in name:
            weights[name] *= np.float32(down)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


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
