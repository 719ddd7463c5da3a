"""transformers' Trainer in a fixed order of examples, paced by data or by time.

The learning rate warms up, then falls on a cosine to zero at the end of the data or of the time
allowed, whichever comes first: a run that is cut short by its time is still annealed. Knows
nothing of what is trained.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from train.models.backbone import has_fast_bf16
from train.models.callbacks import Progress, TimedCheckpoints, TimeLimit
from train.models.optimizer import make_optimizer

# In bfloat16, oneDNN keeps the kernels of the last 1,024 shapes that it met. Batches have lengths
# of their own, so nearly all are new: gigabytes for a model of megabytes, and no step faster.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def learning_rate_factor(progress: float, warmup_share: float) -> float:
    """Returns the factor on the peak learning rate at `progress` in [0, 1] of the training."""
    if progress < warmup_share:
        return progress / warmup_share
    rest = min(1.0, (progress - warmup_share) / max(1e-9, 1 - warmup_share))
    return 0.5 * (1 + math.cos(math.pi * rest))


def _print(line: str) -> None:
    print(f"  {line}", flush=True)


class PacedTrainer(Trainer):
    """A Trainer that takes examples in the order of its data set, once.

    Epochs and shuffling are the data set's own matter, so that the order depends on the seed
    alone and a resumed run goes on exactly where it was.
    """

    def __init__(
        self,
        *,
        max_train_s: float,
        warmup_share: float,
        matrix_learning_rate: float = 0.0,
        report: Callable[[str], None] = _print,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        """Takes Trainer's arguments, the pace, and Muon's learning rate (see `optimizer`).

        `report` is called with a line every so often, in the first process; `clock` is in seconds.

        Raises:
            ValueError: a time limit with several processes, which would not stop together.
        """
        self._limit = TimeLimit(max_train_s, clock)
        self._warmup_share = warmup_share
        self._matrix_learning_rate = matrix_learning_rate
        progress = Progress(self._limit, report, clock)
        super().__init__(**kwargs, callbacks=[self._limit, TimedCheckpoints(clock), progress])
        self.remove_callback(PrinterCallback)  # what Trainer has in place of a bar: raw figures
        if max_train_s and self.args.world_size > 1:
            raise ValueError(
                f"max_train_s is {max_train_s:g} with {self.args.world_size} processes: "
                "set it to 0 and limit num_epochs"
            )

    def train_resumable(self) -> None:
        """Trains, going on from the last checkpoint in the output directory if there is one."""
        last = last_checkpoint(self._checkpoints)
        self.train(resume_from_checkpoint=None if last is None else str(last))

    def remove_checkpoints(self) -> None:
        """Removes what only resuming needs; call it when the stage's results are written."""
        if self.is_world_process_zero():
            shutil.rmtree(self._checkpoints, ignore_errors=True)

    @property
    def _checkpoints(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def create_optimizer(self) -> Optimizer:
        """Returns (and keeps) the optimiser of train.models.optimizer."""
        if self.optimizer is None:
            assert isinstance(self.model, nn.Module)
            self.optimizer = make_optimizer(
                self.model,
                learning_rate=self.args.learning_rate,
                matrix_learning_rate=self._matrix_learning_rate,
                weight_decay=self.args.weight_decay,
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: Optimizer | None = None
    ) -> LambdaLR:
        """Returns (and keeps) the schedule described above."""
        if self.lr_scheduler is None:

            def factor(step: int) -> float:
                progress = max((step + 1) / (num_training_steps + 1), self._limit.progress)
                return learning_rate_factor(progress, self._warmup_share)

            optimizer = optimizer or self.optimizer  # type: ignore[assignment]
            assert isinstance(optimizer, Optimizer)
            self.lr_scheduler = LambdaLR(optimizer, factor)
            self._created_lr_scheduler = True
        assert isinstance(self.lr_scheduler, LambdaLR)
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        assert isinstance(self.train_dataset, Sized)
        return SequentialSampler(self.train_dataset)


def last_checkpoint(checkpoints: Path) -> Path | None:
    """Returns the last one in a directory that was written whole; None without any."""
    # What transformers writes last.
    whole = [p.parent for p in checkpoints.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda p: int(p.name.removeprefix("checkpoint-")), default=None)


class _Arguments(TrainingArguments):
    """TrainingArguments whose CPU has no number: torch loads no checkpoint to "cpu:1"."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device


def trainer_arguments(
    checkpoints: Path,
    *,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    bf16: bool,
    seed: int,
    checkpoint_steps: int = 500,
) -> TrainingArguments:
    """Returns TrainingArguments for one pass over an ordered data set, on GPU where there is one.

    A process uses one GPU, of several the first.

    Args:
        checkpoints: directory of the checkpoints; the last one is kept. Several processes keep
            theirs in a directory of their number in it: a step of theirs is of other batches.
        batch_size: examples per device and step.
        learning_rate: at its peak.
        weight_decay: decoupled (AdamW).
        bf16: compute in bfloat16 under autocast where the hardware does that fast; weights stay
            float32.
        seed: of dropout and initial weights.
        checkpoint_steps: a checkpoint is written every so many steps, and every ten minutes.
    """
    has_gpu = torch.cuda.is_available()
    # TrainingArguments leaves its precision here, and takes it from here where it has none.
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    arguments = _Arguments(
        output_dir=str(checkpoints),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        bf16=bf16 and has_fast_bf16(),
        use_cpu=not has_gpu,
        dataloader_pin_memory=has_gpu,
        remove_unused_columns=False,
        save_strategy="steps",
        save_steps=checkpoint_steps,
        save_total_limit=1,
        logging_steps=50,
        disable_tqdm=True,  # a log keeps every state of a bar; see `Progress`
        report_to=[],
        seed=seed,
    )
    # Trainer would split each batch among all GPUs, n times as large, by nn.DataParallel.
    arguments._n_gpu = min(1, arguments.n_gpu)
    if arguments.world_size > 1:
        arguments.output_dir = str(checkpoints / f"{arguments.world_size}_processes")
    return arguments
