"""Our generator graph as the engine runs it. Knows nothing of how the graph was built."""

import hashlib
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.peers.protocol import Lists, Task, serve
from engine.execution.runtime import Runtime


class Graph:
    """One run of the graph a call: prefill and decode loop are inside."""

    def __init__(self, task: Task) -> None:
        runtime = Runtime(num_threads=task.num_threads)
        path = task.model / f"ours_{task.options['precision']}.onnx"
        self._session = runtime.open(path, hashlib.sha256(path.read_bytes()).hexdigest())
        self._vocabulary = int((task.model / "vocabulary").read_text())
        self.settings = {"onnxruntime": ort.__version__}

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        feed = feed_of(prompts, starts, num_new, self._vocabulary)
        (sequences,) = self._session.run(["sequences"], feed)
        return np.asarray(sequences).tolist()

    greedy = generate


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
