"""Our generator graph as the engine runs it. Knows nothing of how the graph was built.

Options: `mode` beam (one search a prompt, with log-probabilities, as a bundle has by default) or
slots (greedy, a starting token a sequence); `precision`.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.peers.protocol import Lists, Task, serve
from engine.execution.runtime import Runtime


class Graph:
    """One run of the graph a call: prefill and decode loop are inside."""

    def __init__(self, task: Task) -> None:
        runtime = Runtime(num_threads=task.num_threads)
        self._mode, precision = task.options["mode"], task.options["precision"]
        path = graph_of(task.model, self._mode, precision)
        self._session = runtime.open(path, hashlib.sha256(path.read_bytes()).hexdigest())
        self._vocabulary = int((task.model / "vocabulary").read_text())
        self.settings = {"onnxruntime": ort.__version__}

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        return self.greedy(prompts, starts_in(self._mode, starts), num_new)

    def greedy(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        feed = feed_of(prompts, starts, num_new, self._vocabulary)
        sequences, *_ = self._session.run(None, feed)
        return np.asarray(sequences).tolist()


def graph_of(directory: Path, mode: str, precision: str) -> Path:
    """Returns where a prepared model's graph of ours is."""
    return directory / f"ours_{mode}_{precision}.onnx"


def starts_in(mode: str, starts: list[int]) -> list[int]:
    """Returns the starting tokens of as many sequences: those of one search share theirs."""
    return starts[:1] * len(starts) if mode == "beam" else starts


def feed_of(
    prompts: list[list[int]], starts: list[int], num_new: int, vocabulary: int
) -> dict[str, Any]:
    """Returns the graph's inputs for prompts of one length."""
    ids = np.asarray(prompts)
    slots = np.tile(np.asarray(starts), (len(prompts), 1))
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "slots": slots,
        "max_new_tokens": np.full_like(slots, num_new),
        "first_token_range": np.tile([128, vocabulary], (len(prompts), 1)),
    }


if __name__ == "__main__":
    serve(Graph, lambda task: None)
