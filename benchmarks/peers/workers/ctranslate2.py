"""CTranslate2. Knows nothing of the other peers.

Options: `precision` is a compute type; `sharing` is how the suggestions of a prompt share it:

    alternatives  the prompt's several best first tokens, each continued
    static        a static prompt for each call, continued from several first tokens
    sampling      several hypotheses sampled from each prompt
    search        one beam search a prompt, as wide as the suggestions
    none          every suggestion reads its prompt anew
"""

import importlib
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Lists, Task, serve

ctranslate2: Any = importlib.import_module("ctranslate2")  # only in the peer's environment


def prepare(task: Task) -> Path:
    """Returns the directory of the converted model; precision is chosen when loading."""

    def convert(target: Path) -> None:
        converters = importlib.import_module("ctranslate2.converters")
        converter = converters.TransformersConverter(str(task.model / "checkpoint"))
        converter.convert(str(target), force=True)

    return task.converted("fp32", convert)


class Generator:
    """A CTranslate2 generator with one worker."""

    def __init__(self, task: Task) -> None:
        self._sharing = task.options["sharing"]
        self._generator = ctranslate2.Generator(
            str(prepare(task)),
            device="cpu",
            compute_type=task.options["precision"],
            inter_threads=1,
            intra_threads=task.num_threads,
        )
        self.settings = {
            "ctranslate2": ctranslate2.__version__,
            "compute_type": self._generator.compute_type,
        }

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        if self._sharing in ("none", "static"):
            return self.greedy(prompts, starts, num_new)
        options: dict[str, Any] = {"num_hypotheses": len(starts)}
        if self._sharing == "alternatives":
            options["return_alternatives"] = True
            # Here, and only here, the limit counts the prompt, less its last token.
            num_new += len(prompts[0]) - 1
        elif self._sharing == "search":
            options["beam_size"] = len(starts)
        else:
            options["sampling_topk"] = 50
        results = self._run([_names(p) for p in prompts], num_new, **options)
        return [r.sequences_ids for r in results]

    def greedy(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        if self._sharing == "static":
            lists = []
            for prompt in prompts:
                results = self._run(
                    [_names([s]) for s in starts],
                    num_new,
                    static_prompt=_names(prompt),
                    cache_static_prompt=False,
                )
                lists.append([r.sequences_ids[0] for r in results])
            return lists
        rows = [_names([*p, s]) for p in prompts for s in starts]
        flat = [r.sequences_ids[0] for r in self._run(rows, num_new)]
        return [flat[i : i + len(starts)] for i in range(0, len(flat), len(starts))]

    def _run(self, rows: list[list[str]], num_new: int, **options: Any) -> list[Any]:
        return self._generator.generate_batch(
            rows,
            max_length=num_new,
            min_length=num_new,
            include_prompt_in_result=False,
            **options,
        )


def _names(ids: list[int]) -> list[str]:
    return [f"t{i}" for i in ids]


if __name__ == "__main__":
    serve(Generator, prepare)
