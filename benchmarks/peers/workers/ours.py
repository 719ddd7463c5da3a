"""Our generator graph as the engine runs it. Knows nothing of how the graph was built."""

import numpy as np
import onnxruntime as ort

from benchmarks.peers.protocol import Lists, Task, serve
from engine.runtime import Runtime


class Graph:
    """One run of the graph a call: prefill and decode loop are inside."""

    def __init__(self, task: Task) -> None:
        runtime = Runtime(num_threads=task.num_threads)
        self._session = runtime.open(task.model / f"ours_{task.options['precision']}.onnx")
        self._vocabulary = int((task.model / "vocabulary").read_text())
        self.settings = {"onnxruntime": ort.__version__}

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        num_prompts, num_starts = len(prompts), len(starts)
        ids = np.asarray(prompts)
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "slots": np.tile(np.asarray(starts), (num_prompts, 1)),
            "max_new_tokens": np.full((num_prompts, num_starts), num_new),
            "first_token_range": np.tile([128, self._vocabulary], (num_prompts, 1)),
        }
        (sequences,) = self._session.run(["sequences"], feed)
        return np.asarray(sequences).tolist()

    greedy = generate


if __name__ == "__main__":
    serve(Graph, lambda task: None)
