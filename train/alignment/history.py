"""What rounds of alignment came to: figures, and the last one that was finished, on disk.

Knows nothing of how a round is made.
"""

import shutil
from pathlib import Path
from typing import Any

import msgspec

from train.alignment.quality import PolicyQuality
from train.generation.generator import METRICS

_FINISHED = "finished_"  # and the number of rounds: a checkpoint


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """How a round went; qualities by scenario."""

    num_prompts: int
    num_equal: int  # prompts without lists that differ in reward: left out
    num_lists: int
    draw_s: float
    judge_s: float
    update_s: float
    num_steps: int
    mean_reward: dict[str, float]  # of drawn lists
    gap: dict[str, float]  # between the best and the worst list that was learnt from
    before: dict[str, PolicyQuality]
    after: dict[str, PolicyQuality]
    step: float  # part of the way to the new weights that was taken; 0: the round was refused

    def describe(self) -> str:
        """Returns one line for people."""
        return "expected clicks on held-out prompts' lists: " + _gains(self.before, self.after)


class AlignmentMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """How an alignment went; the first field is that of the generator it started from."""

    mode: str
    objective: str
    rounds: list[Round]

    def describe(self) -> str:
        """Returns one line for people."""
        first, last = self.rounds[0], self.rounds[-1]
        refused = sum(r.step == 0 for r in self.rounds)
        return (
            f"{len(self.rounds)} rounds, {refused} refused; by the click model, expected clicks on "
            f"held-out prompts' lists: {_gains(first.before, last.after)}"
        )


def save(model: Any, metrics: AlignmentMetrics, checkpoints: Path) -> None:
    """Writes what the last round came to, whole or not at all, in place of the one before."""
    before = last_round(checkpoints)
    directory = checkpoints / f"{_FINISHED}{len(metrics.rounds)}"
    partial = directory.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    (partial / METRICS).write_bytes(msgspec.json.format(msgspec.json.encode(metrics)))
    partial.rename(directory)
    if before is not None:
        shutil.rmtree(before)


def last_round(checkpoints: Path) -> Path | None:
    """Returns where the last round is that was finished, also by an interrupted call."""
    finished = [p for p in checkpoints.glob(f"{_FINISHED}*") if not p.suffix]
    return max(finished, key=lambda p: int(p.name.removeprefix(_FINISHED)), default=None)


def rounds_of(directory: Path) -> list[Round]:
    """Returns the rounds of what `save` wrote."""
    return msgspec.json.decode((directory / METRICS).read_bytes(), type=AlignmentMetrics).rounds


def _gains(before: dict[str, PolicyQuality], after: dict[str, PolicyQuality]) -> str:
    return ", ".join(
        f"{name} {quality.reward:.4f} to {after[name].reward:.4f}"
        for name, quality in before.items()
    )
