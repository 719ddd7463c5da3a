"""What a training says and keeps as time passes, on a clock that the steps drive."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer

from train.models.callbacks import CHECKPOINT_S
from train.models.pace import PacedTrainer, last_checkpoint, trainer_arguments

# Trainer warns where checkpoints follow one another within a second.
pytestmark = pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning")


class Clock:
    """Stands still but where a step is said to take time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Line(nn.Module):
    """Learns one weight; each step takes as long as it is told."""

    def __init__(self, clock: Clock, step_s: float, stop_at: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self._clock, self._step_s, self._left = clock, step_s, stop_at

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self._clock.now_s += self._step_s
        self._left -= 1
        if self._left == 0:
            raise InterruptedError
        return {"loss": ((self.weight - x) ** 2).mean()}


class Precision(nn.Module):
    """Says whether what it is given is in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(float(x.dtype == torch.bfloat16))


class Ones(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 240

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.ones(1)}


def trainer(
    checkpoints: Path,
    step_s: float,
    *,
    report: Callable[[str], None] | None = None,
    stop_at: int = 0,
    max_train_s: float = 0,
) -> PacedTrainer:
    clock = Clock()
    more: dict[str, Any] = {} if report is None else {"report": report}
    arguments = trainer_arguments(
        checkpoints, batch_size=2, learning_rate=0.01, weight_decay=0.0, bf16=False, seed=0
    )
    return PacedTrainer(
        model=Line(clock, step_s, stop_at),
        args=arguments,
        train_dataset=Ones(),
        max_train_s=max_train_s,
        warmup_share=0.1,
        clock=clock,
        **more,
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_one_process_trains_on_one_gpu_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Trainer would split each batch among them, as many times as large."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    arguments = trainer_arguments(
        tmp_path, batch_size=4, learning_rate=0.01, weight_decay=0.0, bf16=False, seed=0
    )
    assert arguments.device == torch.device("cuda:0")
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 4


def test_each_training_of_a_process_has_the_precision_that_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.models.pace.has_fast_bf16", lambda: True)
    for bf16 in (True, False, True):
        arguments = trainer_arguments(
            tmp_path, batch_size=1, learning_rate=0.01, weight_decay=0.0, bf16=bf16, seed=0
        )
        made = Trainer(model=nn.Linear(2, 2), args=arguments)
        output = made.accelerator.prepare_model(nn.Sequential(nn.Linear(2, 2), Precision()))
        assert bool(output(torch.ones(1, 2, device=arguments.device)).item()) == bf16


def test_a_slow_training_says_each_minute_how_far_it_is(tmp_path: Path) -> None:
    lines: list[str] = []
    trainer(tmp_path, 6, report=lines.append).train_resumable()
    assert lines[0] == "step 10 of 120, 11 min left"
    assert lines[3] == "step 40 of 120, 8 min left"
    assert lines[4].startswith("step 50 of 120: loss 0.")
    assert lines[4].endswith(", 7 min left")
    assert len(lines) == 12


def test_a_fast_training_says_nothing_twice_in_ten_seconds(tmp_path: Path) -> None:
    lines: list[str] = []
    trainer(tmp_path, 0.15, report=lines.append).train_resumable()
    assert [line.partition(":")[0] for line in lines] == ["step 100 of 120"]


def test_what_a_time_limit_leaves_is_what_is_left(tmp_path: Path) -> None:
    lines: list[str] = []
    trainer(tmp_path, 60, report=lines.append, max_train_s=300).train_resumable()
    assert lines[0] == "step 1 of 120, 4 min left"
    assert lines[-2:] == ["step 4 of 120, 60 s left", "step 5 of 120, 0 s left"]


def test_nothing_but_readable_lines_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, 6).train_resumable()
    said = capfd.readouterr()
    assert said.out.splitlines()[0] == "  step 10 of 120, 11 min left"
    assert all(line.startswith("  step ") for line in said.out.splitlines())
    assert "\r" not in said.err
    assert "%|" not in said.err


def test_a_training_of_slow_steps_goes_on_from_a_checkpoint_of_the_last_ten_minutes(
    tmp_path: Path,
) -> None:
    """500 steps, after which there is one in any case, may take the better part of an hour."""
    with pytest.raises(InterruptedError):
        trainer(tmp_path, CHECKPOINT_S / 10, stop_at=36).train_resumable()
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-30"
    lines: list[str] = []
    again = trainer(tmp_path, 60, report=lines.append)
    again.train_resumable()
    assert lines[0] == "step 31 of 120, 1.5 h left" or lines[0] == "step 31 of 120, 89 min left"
    assert again.state.global_step == 120


def test_a_training_of_fast_steps_has_no_checkpoint_but_by_steps(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        trainer(tmp_path, 1, stop_at=100).train_resumable()
    assert last_checkpoint(tmp_path) is None


def by_two(script: Path, *arguments: object) -> None:
    """Runs a script by two processes of one group."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launch, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_go_on_from_what_they_left(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "from contextlib import suppress\n"
        "from pathlib import Path\n"
        "from tests.train.models.test_pace import CHECKPOINT_S, trainer\n"
        "lines = []\n"
        "directory, stop_at = Path(sys.argv[1]), int(sys.argv[2])\n"
        "made = trainer(directory, CHECKPOINT_S / 10, stop_at=stop_at, report=lines.append)\n"
        "with suppress(InterruptedError):\n"
        "    made.train_resumable()\n"
        "if os.environ['RANK'] == '0':\n"
        "    with directory.with_suffix('.txt').open('a') as told:\n"
        "        print(made.state.global_step, lines[0], file=told)\n"
        "torch.distributed.destroy_process_group()\n"
    )
    by_two(script, tmp_path / "checkpoints", 36)
    by_two(script, tmp_path / "checkpoints", 99)
    first, second = (tmp_path / "checkpoints.txt").read_text().splitlines()
    assert first.startswith("35 step 1 of 60")
    assert second.startswith("60 step 31 of 60")


@pytest.mark.slow
def test_processes_with_clocks_of_their_own_write_checkpoints_at_the_same_steps(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "from pathlib import Path\n"
        "from tests.train.models.test_pace import trainer\n"
        "rank = int(os.environ['RANK'])\n"
        "made = trainer(Path(sys.argv[1]), 100 * (1 + 3 * rank))\n"
        "save = made._save_checkpoint\n"
        "def saving(*arguments):\n"
        "    with open(f'{sys.argv[1]}.{rank}', 'a') as stream:\n"
        "        print(made.state.global_step, file=stream)\n"
        "    save(*arguments)\n"
        "made._save_checkpoint = saving\n"
        "made.train_resumable()\n"
        "torch.distributed.destroy_process_group()\n"
    )
    # What one process left is of other batches, and is not what two go on from.
    with pytest.raises(InterruptedError):
        trainer(tmp_path / "checkpoints", CHECKPOINT_S / 10, stop_at=36).train_resumable()
    assert last_checkpoint(tmp_path / "checkpoints") is not None
    by_two(script, tmp_path / "checkpoints")
    for rank in (0, 1):
        steps = (tmp_path / f"checkpoints.{rank}").read_text().split()
        assert steps == [str(step) for step in range(6, 61, 6)]
