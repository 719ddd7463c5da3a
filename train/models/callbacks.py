"""What happens by the clock while transformers' Trainer trains: stopping, checkpoints, reports.

Knows nothing of what is trained.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

CHECKPOINT_S = 600.0  # no checkpoint is much older
SILENCE_S, LEAST_SILENCE_S = 60.0, 10.0  # between two lines on how far a training is


class TimeLimit(TrainerCallback):
    """Stops training cleanly when its time is over; counts from the start or resumption."""

    def __init__(self, max_train_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes the limit; 0 means none."""
        self._max_train_s = max_train_s
        self._clock = clock
        self._started_s: float | None = None

    @property
    def progress(self) -> float:
        """Returns the share of the time that has passed, in [0, 1]; 0 without a limit."""
        if not self._max_train_s or self._started_s is None:
            return 0.0
        return min(1.0, (self._clock() - self._started_s) / self._max_train_s)

    @property
    def left_s(self) -> float:
        """Returns what is left of the time; infinite without a limit."""
        return (1 - self.progress) * self._max_train_s if self._max_train_s else math.inf

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self._started_s = self._clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks the trainer to stop once the time is over."""
        if self.progress >= 1:
            control.should_training_stop = True


class TimedCheckpoints(TrainerCallback):
    """Has checkpoints written by time, too, so that slow steps are not lost by the hundred.

    Several processes write one at the same step: the first one's clock counts.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Takes the clock, in seconds."""
        self._clock = clock
        self._written_s = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self._written_s = self._clock()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks for a checkpoint where the last one is too old."""
        is_due = self._clock() - self._written_s >= CHECKPOINT_S
        if args.world_size > 1:
            agreed = torch.tensor([is_due], dtype=torch.uint8, device=args.device)
            distributed.broadcast(agreed, src=0)
            is_due = bool(agreed.item())
        if is_due:
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes that there is one."""
        self._written_s = self._clock()


class Progress(TrainerCallback):
    """Says every so often how far a training is, with its mean loss since the last time."""

    def __init__(
        self, limit: TimeLimit, report: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        """Takes the limit of the training, what is called with a line, and the clock in seconds."""
        self._limit = limit
        self._report = report
        self._clock = clock
        self._begun_s = self._said_s = 0.0
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self._begun_s = self._said_s = self._clock()
        self._first_step = state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Says how far the training is where nothing was said for a while."""
        if self._clock() - self._said_s >= SILENCE_S and not control.should_log:
            self._say(state, "")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Says the loss, unless something was said a moment ago."""
        if logs and "loss" in logs and self._clock() - self._said_s >= LEAST_SILENCE_S:
            self._say(state, f": loss {logs['loss']:.3f}")

    def _say(self, state: TrainerState, loss: str) -> None:
        if not state.is_world_process_zero:
            return
        self._said_s = self._clock()
        passed_s = self._said_s - self._begun_s
        steps = state.global_step - self._first_step
        left_s = passed_s / steps * (state.max_steps - state.global_step)
        left = _duration(min(left_s, self._limit.left_s))
        self._report(f"step {state.global_step} of {state.max_steps}{loss}, {left} left")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
