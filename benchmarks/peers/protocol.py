"""What a contest and its worker processes say to one another: JSON lines over stdin and stdout.

Runs in every peer's environment, so it needs nothing but the standard library, and it knows
nothing of models. Requests and what they are answered with:

    {"do": "prepare", "model": DIR, "cache": DIR, "options": {...}}     {}
    {"do": "load", ... the same ..., "threads": N}                      {"settings": {...}}
    {"do": "generate", "prompts": [[id]], "starts": [id], "new": N}     {"ms": x, "lists": [[[id]]]}
    {"do": "greedy", "prompts": [[id]], "starts": [id], "new": N}       {"lists": [[[id]]]}

An answer of {"error": "..."} says why a request could not be met; the worker lives on.
"""

import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_PR_SET_PDEATHSIG = 1

Lists = list[list[list[int]]]  # per prompt, per sequence, new token ids


@dataclass(frozen=True)
class Task:
    """A model to convert or load."""

    model: Path  # what `benchmarks.peers.models` wrote
    cache: Path  # where conversions of this peer may be kept
    options: dict[str, str]  # of a variant
    num_threads: int

    def converted(self, name: str, convert: Callable[[Path], None]) -> Path:
        """Returns a directory of the cache, made by `convert` unless it exists already.

        Its name carries the model's fingerprint: other weights are converted anew.
        """
        fingerprint = (self.model / "fingerprint").read_text().strip()
        target = self.cache / f"{self.model.name}-{fingerprint}-{name}"
        if not target.exists():
            partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
            partial.mkdir(parents=True)
            convert(partial)
            partial.rename(target)
        return target


class Contender(Protocol):
    """A loaded model. It may be asked for other numbers of prompts at each call."""

    settings: dict[str, str]  # versions and whatever else was decided while loading

    def generate(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        """Returns len(starts) sequences of exactly `num_new` tokens per prompt, as fast as it can.

        Sequences are told apart by their first tokens `starts`, or by sampling.
        """
        ...

    def greedy(self, prompts: list[list[int]], starts: list[int], num_new: int) -> Lists:
        """Returns the greedy continuation of each prompt followed by each of `starts`."""
        ...


def serve(load: Callable[[Task], Contender], prepare: Callable[[Task], object]) -> None:
    """Answers requests until stdin ends, or until the process that started this one does."""
    # A stopped process would never see that stdin has ended.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries print: their stdout becomes stderr, and only answers go where ours went.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contender: Contender | None = None
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        answer: dict[str, Any]
        try:
            if request["do"] in ("prepare", "load"):
                task = Task(
                    Path(request["model"]),
                    Path(request["cache"]),
                    request["options"],
                    request["threads"],
                )
                answer = {}
                if request["do"] == "prepare":
                    prepare(task)
                else:
                    contender = None  # frees the one before
                    gc.collect()
                    contender = load(task)
                    answer = {"settings": contender.settings}
            else:
                assert contender is not None, "asked before it was loaded"
                arguments = request["prompts"], request["starts"], request["new"]
                start_s = time.perf_counter()
                lists = getattr(contender, request["do"])(*arguments)
                elapsed_ms = (time.perf_counter() - start_s) * 1000
                # A contender may say what it measured, if that is not how long it took.
                answer = {"ms": getattr(contender, "measured_ms", elapsed_ms), "lists": lists}
        except Exception as error:  # whatever a peer raises is reported as its result
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:600]}
        answers.write(json.dumps(answer) + "\n")
