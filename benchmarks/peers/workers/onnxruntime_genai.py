"""ONNX Runtime GenAI. Knows nothing of the other peers.

Options: `precision` as its model builder names it; `sharing` none (every suggestion reads its
prompt anew, all in one batch), rewind (prompts one by one, each read once; after a suggestion
the generator is rewound to the end of the prompt) or search (one beam search a prompt, as wide as
the suggestions).
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.protocol import Lists, Task, serve

og: Any = importlib.import_module("onnxruntime_genai")  # only in the peer's environment

_MAX_BATCH = 32  # its own limit on the CPU
_EXTRA = {
    "fp32": [],
    # int8 arithmetic for 4-bit weights; else they are multiplied as floats
    "int4": ["int4_accuracy_level=4", "int4_block_size=32"],
    "int8": ["int4_algo_config=rtn", "int4_accuracy_level=4"],
}


def prepare(task: Task) -> Path:
    """Returns the directory that the model builder wrote."""
    precision = task.options["precision"]

    def convert(target: Path) -> None:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-m", str(task.model / "checkpoint"), "-o", str(target)]
        command += ["-p", precision, "-e", "cpu", "-c", str(target / "hub")]
        if _EXTRA[precision]:
            command += ["--extra_options", *_EXTRA[precision]]
        done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])

    return task.converted(precision, convert)


class Generator:
    """A GenAI model; a generator is made for each call, as its API wants."""

    def __init__(self, task: Task) -> None:
        self._sharing = task.options["sharing"]
        config = og.Config(str(prepare(task)))
        options = {"intra_op_num_threads": task.num_threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)
        self.settings = {"onnxruntime-genai": og.__version__}

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        if self._sharing == "search":
            return self._written(prompts, starts[:1], num_new, num_beams=len(starts))
        return self.greedy(prompts, starts, num_new)

    def greedy(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        if self._sharing == "rewind":
            return [self._rewound(prompt, starts, num_new) for prompt in prompts]
        return self._written(prompts, starts, num_new, num_beams=1)

    def _written(
        self, prompts: list[list[int]], starts: list[int], num_new: int, *, num_beams: int
    ) -> Lists:
        rows = np.asarray([[*p, s] for p in prompts for s in starts], np.int32)
        flat = list[list[int]]()
        num_rows, num_lists = max(1, _MAX_BATCH // num_beams), len(starts) * num_beams
        for start in range(0, len(rows), num_rows):
            batch = rows[start : start + num_rows]
            generator = self._generator(len(batch), batch.shape[1] + num_new, num_beams)
            generator.append_tokens(batch)
            for _ in range(num_new):
                generator.generate_next_token()
            num_sequences = len(batch) * num_beams
            flat += [generator.get_sequence(i)[-num_new:].tolist() for i in range(num_sequences)]
        return [flat[i : i + num_lists] for i in range(0, len(flat), num_lists)]

    def _rewound(self, prompt: list[int], starts: list[int], num_new: int) -> list[list[int]]:
        generator = self._generator(1, len(prompt) + 1 + num_new)
        generator.append_tokens(np.asarray([prompt], np.int32))
        sequences = []
        for start in starts:
            generator.append_tokens(np.asarray([[start]], np.int32))
            for _ in range(num_new):
                generator.generate_next_token()
            sequences.append(generator.get_sequence(0)[-num_new:].tolist())
            generator.rewind_to(len(prompt))
        return sequences

    def _generator(self, num_rows: int, length: int, num_beams: int = 1) -> Any:
        params = og.GeneratorParams(self._model)
        params.set_search_options(
            batch_size=num_rows,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_length=length,
            min_length=length,
            do_sample=False,
        )
        return og.Generator(self._model, params)


if __name__ == "__main__":
    serve(Generator, prepare)
