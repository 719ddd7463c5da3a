"""Alignment by two processes that share the work, started by torchrun on the gloo backend."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.test_cli import config_file
from train.config import read_config
from train.pipeline import stages_of
from train.stages import StageRunner

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys
from pathlib import Path

import torch

from train.alignment.rounds import align
from train.settings import AlignmentConfig
from train.generation.generator import read_prompts

torch.set_num_threads(1)
run, output, num_rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
config = AlignmentConfig(
    num_rounds=num_rounds, num_prompts=192, num_valid_prompts=60, num_lists=6, num_kept=4,
    beta=0.1, anchor_weight=1.0, learning_rate=2e-3, batch_size=int(sys.argv[4]), cold_share=1.0,
)
align(run, config, read_prompts(run), max_edges=32, seed=0, output=output, report=lambda _: None)
"""


def _fingerprint(config: Path, run: Path) -> str:
    """What says that a partial output is of the present settings."""
    runner = StageRunner(run, stages_of(read_config(config), run, lambda _: None))
    return runner._fingerprint("align")  # pyright: ignore[reportPrivateUsage]


LAUNCHER = ["-m", "torch.distributed.run", "--standalone"]


def called(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT}/proto/gen:{ROOT}/clients/python",
            "OMP_NUM_THREADS": "1",
        },
    )


def aligned(run: Path, output: Path, num_processes: int, batch_size: int, num_rounds: int) -> dict:
    output.mkdir()
    script = output.with_suffix(".py")
    script.write_text(SCRIPT)
    launch = [*LAUNCHER, f"--nproc_per_node={num_processes}"] if num_processes > 1 else []
    done = called(*launch, script, run, output, num_rounds, batch_size)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((output / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_do_what_one_does_with_batches_twice_as_large(
    trained_run: Path, tmp_path: Path
) -> None:
    one = aligned(trained_run, tmp_path / "one", 1, 8, 1)["rounds"][0]
    two = aligned(trained_run, tmp_path / "two", 2, 4, 1)["rounds"][0]
    # Lists depend on their prompt's seed alone, so both saw the same ones.
    for name in ("num_prompts", "num_equal", "num_lists", "mean_reward", "gap"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert abs(two["num_steps"] - one["num_steps"]) <= 3  # the last batch of a scenario is short
    assert one["step"] > 0
    assert two["step"] > 0
    start = load_file(trained_run / "generator/model.safetensors")
    moved = [
        torch.cat(
            [
                (tensor - start[name]).flatten()
                for name, tensor in load_file(tmp_path / n / "model.safetensors").items()
            ]
        )
        for n in ("one", "two")
    ]
    assert torch.cosine_similarity(moved[0], moved[1], dim=0) > 0.5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_line_aligns_with_two_processes(simulated_logs: Any, tmp_path: Path) -> None:
    more = "[alignment]\nnum_rounds = 1\nnum_prompts = 24\nnum_valid_prompts = 9\nmax_kl = 1e6\n"
    config = config_file(tmp_path, simulated_logs.searches, simulated_logs.impressions, more)
    options = ("--config", config, "--run", tmp_path / "run")
    for stage in ("mine", "tokenizer", "sft", "click"):
        done = called("-m", "train", stage, *options)
        assert done.returncode == 0, done.stderr
    two = (*LAUNCHER, "--nproc_per_node=2", "-m", "--", "train")
    done = called(*two, "align", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("effective configuration") == 1
    metrics = json.loads((tmp_path / "run/aligned/metrics.json").read_text())
    assert metrics["rounds"][0]["num_prompts"] == 24
    assert load_file(tmp_path / "run/aligned/model.safetensors")
    assert not list((tmp_path / "run").glob("*.partial"))
    assert "skipped" in called(*two, "align", *options).stdout
    # A round more, from the checkpoint of two processes that were killed while they aligned.
    partial = tmp_path / "run/aligned.partial/checkpoints"
    partial.mkdir(parents=True)
    shutil.copytree(tmp_path / "run/aligned", partial / "finished_1")
    config.write_text(config.read_text().replace("num_rounds = 1", "num_rounds = 2"))
    started = tmp_path / "run/.stages/align.started"
    started.write_text(_fingerprint(config, tmp_path / "run"))
    done = called(*two, "align", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    again = json.loads((tmp_path / "run/aligned/metrics.json").read_text())
    assert again["rounds"][0] == metrics["rounds"][0]
    assert len(again["rounds"]) == 2
    refused = called(*two, "sft", "--force", *options)
    assert refused.returncode != 0
    assert "start it without torchrun, which is for align" in refused.stderr
