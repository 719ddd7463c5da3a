"""Contenders against one another: each a process, asked in turn, the others stopped meanwhile.

Knows nothing of what contenders are, beyond that they answer `protocol`. A contender that fails
is left out with its reason; the others go on.
"""

import contextlib
import json
import os
import select
import signal
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.catalogue import SEARCH, Peer, Variant
from benchmarks.peers.models import NEW_TOKENS, prompts_of, starts_of

Report = Callable[[str], None]

ROOT = Path(__file__).parents[2]
PREPARE_TIMEOUT_S, RUN_TIMEOUT_S = 900.0, 180.0
_CLOSE = 1.2  # variants this close to the best of a trial, which is noisy, are measured in full
_HOPELESS = 2.0  # variants so much slower are not tried with more prompts
_SLOW = 4.0  # contenders so much slower than the fastest are measured in fewer rounds


class WorkerError(RuntimeError):
    """A worker died, was too slow, or answered with an error or with the wrong sequences."""


class Worker:
    """A process that holds one variant of a contender; stopped unless it is asked something."""

    def __init__(self, python: Path, peer: Peer, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONSAFEPATH": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [str(python), *peer.worker],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                cwd=ROOT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, timeout_s: float, **request: object) -> dict[str, Any]:
        """Lets the process run until it has answered.

        Raises:
            WorkerError: it did not answer, or with an error.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.send_signal(signal.SIGCONT)
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], timeout_s)[0]:
                raise WorkerError(f"no answer within {timeout_s:.0f} s")
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise WorkerError(f"ended with status {process.wait()}: {self._last_words()}")
        process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            # What was written to a process that has died is still in the pipe's buffer.
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """A model and what all contenders are given."""

    model: Path
    cache: Path  # of converted models and logs
    num_threads: int

    @property
    def vocabulary(self) -> int:
        return int((self.model / "vocabulary").read_text())

    def task(self, peer: Peer, variant: Variant) -> dict[str, object]:
        name = peer.name.removesuffix(SEARCH)
        cache = self.cache / name.replace("-", "_").replace(" ", "_")
        return {
            "model": str(self.model),
            "cache": str(cache),
            "options": dict(variant.options),
            "threads": self.num_threads,
        }

    def open(self, python: Path, peer: Peer, purpose: str) -> Worker:
        name = f"{peer.name} {purpose}".replace(" ", "-")
        return Worker(python, peer, self.cache / "logs" / f"{self.model.name}-{name}.log")


@dataclass(slots=True)
class Entry:
    """A loaded variant of a contender."""

    peer: Peer
    variant: Variant
    worker: Worker
    settings: dict[str, str]
    trial_ms: dict[int, float] = field(default_factory=dict)  # by number of prompts
    num_runs: int = 0

    def run(self, arena: Arena, num_prompts: int) -> float:
        """Returns the milliseconds of one generation for prompts not seen before.

        Raises:
            WorkerError: the worker failed, or gave other sequences than asked for.
        """
        self.num_runs += 1
        prompts = prompts_of(arena.vocabulary, num_prompts, seed=100 + self.num_runs)
        starts = starts_of(arena.vocabulary)
        answer = self.worker.ask(
            RUN_TIMEOUT_S, do="generate", prompts=prompts, starts=starts, new=NEW_TOKENS
        )
        if not self.peer.name.startswith("floor"):
            check_lists(answer["lists"], num_prompts, len(starts), NEW_TOKENS)
        return float(answer["ms"])

    def turn(self, arena: Arena, num_prompts: int) -> float:
        """Returns the median of up to three runs within half a second.

        One more goes before to warm up, but where a run takes over a second only the first time.
        """
        if self.trial_ms.get(num_prompts, 0.0) < 1000:
            self.run(arena, num_prompts)
        times = [self.run(arena, num_prompts)]
        while len(times) < 3 and sum(times) < 500:
            times.append(self.run(arena, num_prompts))
        return statistics.median(times)


def check_lists(lists: Any, num_prompts: int, num_sequences: int, num_new: int) -> None:
    """Checks that a generation has the number and length of sequences that were asked for.

    Raises:
        WorkerError: it has not.
    """
    got = [sorted({len(s) for s in sequences}) for sequences in lists]
    if [len(sequences) for sequences in lists] != [num_sequences] * num_prompts or any(
        lengths != [num_new] for lengths in got
    ):
        raise WorkerError(
            f"gave {len(lists)} lists of {sorted({len(s) for s in lists})} sequences of "
            f"{sorted({n for lengths in got for n in lengths})} tokens, not {num_prompts} of "
            f"{num_sequences} of {num_new}"
        )


def prepare(arena: Arena, python: Path, peer: Peer) -> dict[str, str]:
    """Converts the model in each precision; returns the reasons of those that failed."""
    failures = dict[str, str]()
    by_precision = {dict(v.options)["precision"]: v for v in (*peer.variants, peer.reference)}
    for variant in by_precision.values():
        worker = arena.open(python, peer, "prepare")
        try:
            worker.ask(PREPARE_TIMEOUT_S, do="prepare", **arena.task(peer, variant))
        except WorkerError as error:
            failures[variant.name] = str(error)
        finally:
            worker.close()
    return failures


def greedy(arena: Arena, worker: Worker, num_prompts: int = 4) -> list[int]:
    """Returns the greedy tokens that a loaded worker gives, first sequence of each prompt.

    Raises:
        WorkerError: the worker failed.
    """
    prompts = prompts_of(arena.vocabulary, num_prompts, seed=0)
    starts = starts_of(arena.vocabulary)[:1]
    answer = worker.ask(RUN_TIMEOUT_S, do="greedy", prompts=prompts, starts=starts, new=NEW_TOKENS)
    check_lists(answer["lists"], num_prompts, 1, NEW_TOKENS)
    return [token for sequences in answer["lists"] for token in sequences[0]]


def reference(arena: Arena, python: Path, peer: Peer) -> list[int]:
    """Returns the greedy tokens of a contender's fp32 reference.

    Raises:
        WorkerError: the worker failed.
    """
    worker = arena.open(python, peer, "reference")
    try:
        worker.ask(PREPARE_TIMEOUT_S, do="load", **arena.task(peer, peer.reference))
        return greedy(arena, worker)
    finally:
        worker.close()


def trial(
    arena: Arena, python: Path, peer: Peer, counts: Sequence[int], report: Report
) -> tuple[list[Entry], dict[str, str]]:
    """Tries each variant of a contender briefly, one after another in one process.

    Returns:
        The variants that are the best, or close to it, for some number of prompts, each loaded
        in a process of its own; and why others failed.
    """
    tried, failures = list[Entry](), dict[str, str]()
    best = dict[int, float]()
    worker: Worker | None = None
    for variant in peer.variants:
        worker = worker or arena.open(python, peer, "trial")
        try:
            answer = worker.ask(PREPARE_TIMEOUT_S, do="load", **arena.task(peer, variant))
            entry = Entry(peer, variant, worker, answer["settings"])
            for count in sorted(counts):
                entry.trial_ms[count] = entry.turn(arena, count)
                best[count] = min(best.get(count, entry.trial_ms[count]), entry.trial_ms[count])
                if entry.trial_ms[count] > _HOPELESS * best[count]:
                    break
        except WorkerError as error:
            failures[variant.name] = str(error)
            worker.close()
            worker = None
        else:
            tried.append(entry)
            times = ", ".join(f"{ms:.1f} ms for {n}" for n, ms in entry.trial_ms.items())
            report(f"{peer.name} {variant.name}: {times}")
    if worker is not None:
        worker.close()
    entries = list[Entry]()
    for entry in tried:
        if _chosen(entry, best):
            entry.worker = arena.open(python, peer, entry.variant.name)
            entries.append(entry)
            try:
                task = arena.task(peer, entry.variant)
                entry.worker.ask(PREPARE_TIMEOUT_S, do="load", **task)
                for count in entry.trial_ms:
                    entry.run(arena, count)
            except WorkerError as error:
                failures[entry.variant.name] = str(error)
                entries.remove(entry)
                entry.worker.close()
    return entries, failures


def rounds(
    arena: Arena, entries: Sequence[Entry], num_prompts: int, num_rounds: int
) -> tuple[list[dict[tuple[str, str], float]], dict[str, str]]:
    """Asks the contenders in turn, again and again.

    Returns:
        Milliseconds by peer and variant for each round, slow ones not in all rounds; and why
        contenders failed.
    """
    playing = [e for e in entries if _chosen(e, {num_prompts: _best(e, entries, num_prompts)})]
    fastest = min((e.trial_ms[num_prompts] for e in playing), default=0.0)
    failures = dict[str, str]()
    results = list[dict[tuple[str, str], float]]()
    for number in range(num_rounds):
        result = dict[tuple[str, str], float]()
        start = number % max(1, len(playing))
        for entry in playing[start:] + playing[:start]:
            is_slow = entry.trial_ms[num_prompts] > _SLOW * fastest
            if entry.peer.name in failures or (is_slow and number >= max(3, num_rounds // 3)):
                continue
            try:
                result[entry.peer.name, entry.variant.name] = entry.turn(arena, num_prompts)
            except WorkerError as error:
                failures[entry.peer.name] = f"{entry.variant.name}: {error}"
        results.append(result)
    return results, failures


def _chosen(entry: Entry, best: dict[int, float]) -> bool:
    return any(entry.trial_ms.get(count, float("inf")) <= _CLOSE * ms for count, ms in best.items())


def _best(entry: Entry, entries: Sequence[Entry], num_prompts: int) -> float:
    return min(
        e.trial_ms.get(num_prompts, float("inf")) for e in entries if e.peer.name == entry.peer.name
    )
