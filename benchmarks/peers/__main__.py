"""Command line of the contest: sets up, tries, measures, prints."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.peers import catalogue, contest, machine, models, report
from benchmarks.peers.environments import python_of
from benchmarks.peers.options import prompt_counts
from engine.execution.cpu import cpu_features, num_usable_cpus

_QUIET = 0.05  # of the machine; with more taken by others, times say little
_PEERS = [*dict.fromkeys(p.name.removesuffix(catalogue.SEARCH) for p in catalogue.peers([]))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to compare."""

    models: tuple[str, ...]
    prompts: tuple[int, ...]
    peers: tuple[str, ...]
    num_rounds: int
    num_threads: int
    root: Path
    is_setup_only: bool


def parse(arguments: Sequence[str] | None = None) -> Settings:
    """Returns what the command line asks for; exits with status 2 if it is nonsense."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--models", default="small,base", help="of small, base (both)")
    parser.add_argument("--prompts", default="1,4,16", help="numbers of prompts (1,4,16)")
    parser.add_argument("--peers", default=",".join(_PEERS), help=f"of {', '.join(_PEERS)} (all)")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (9)")
    parser.add_argument("--threads", type=int, default=num_usable_cpus(), help="(usable CPUs)")
    parser.add_argument("--root", type=Path, default=contest.ROOT / "runs/peers",
                        help="where environments and models are kept (runs/peers)")  # fmt: skip
    parser.add_argument("--setup-only", action="store_true", help="install and convert, then stop")
    args = parser.parse_args(arguments)

    def names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        unknown = [c for c in chosen if c not in known]
        if unknown or not chosen:
            parser.error(f"--{option} has {unknown or 'nothing'}; choose of {', '.join(known)}")
        return chosen

    counts = prompt_counts(parser, args.prompts)
    if not 1 <= args.rounds <= 1000:
        parser.error(f"--rounds is {args.rounds}; it must be from 1 to 1000")
    if not 1 <= args.threads <= 512:
        parser.error(f"--threads is {args.threads}; it must be from 1 to 512")
    return Settings(
        models=names("models", args.models, models.MODELS),
        prompts=counts,
        peers=names("peers", args.peers, _PEERS),
        num_rounds=args.rounds,
        num_threads=args.threads,
        root=args.root.resolve(),
        is_setup_only=args.setup_only,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _pythons(
    contenders: Sequence[catalogue.Peer], settings: Settings, failures: dict[str, str]
) -> dict[str, Path]:
    """Sets up all environments; returns interpreters by contender."""
    pythons = dict[str, Path]()
    for peer in contenders:
        try:
            pythons[peer.name] = python_of(peer.environment, settings.root, _say)
        except OSError as error:
            failures[peer.name] = f"set-up: {error}"
    return pythons


def compare(
    arena: contest.Arena, contenders: Sequence[catalogue.Peer], pythons: dict[str, Path],
    settings: Settings, outcome: report.Outcome,
) -> None:  # fmt: skip
    """Measures all contenders on one model and puts the results into `outcome`."""
    # The others' tokens are compared with those of transformers, whether or not it is measured.
    (transformers,) = (p for p in catalogue.peers([]) if p.name == "transformers")
    expected = contest.reference(arena, Path(sys.executable), transformers)
    entries = list[contest.Entry]()
    try:
        for peer in contenders:
            if peer.name not in pythons:
                continue
            python = pythons[peer.name]
            if not peer.name.startswith("floor"):
                try:
                    tokens = contest.reference(arena, python, peer)
                    outcome.equal_tokens[peer.name] = _equal_share(tokens, expected)
                except contest.WorkerError as error:
                    outcome.failures[f"{peer.name} {peer.reference.name} (greedy)"] = str(error)
            tried, failures = contest.trial(arena, python, peer, settings.prompts, _say)
            entries += tried
            outcome.failures |= {f"{peer.name} {name}": why for name, why in failures.items()}
        for entry in entries:
            name = f"{entry.peer.name} {entry.variant.name}"
            outcome.settings[name] = entry.settings
            if not entry.peer.name.startswith("floor"):
                tokens = contest.greedy(arena, entry.worker)
                outcome.equal_tokens[name] = _equal_share(tokens, expected)
        for count in settings.prompts:
            _say(f"{outcome.model}: {settings.num_rounds} rounds of {count}")
            neighbours = machine.Neighbours([os.getpid(), *(e.worker.pid for e in entries)])
            results, failures = contest.rounds(arena, entries, count, settings.num_rounds)
            outcome.rounds[count] = results
            outcome.others[count] = share = neighbours.share()
            if share is not None and share > _QUIET:
                _say(f"other processes took {share:.0%} of the machine: do not trust these times")
            outcome.failures |= {f"{name}, {count}": why for name, why in failures.items()}
    finally:
        for entry in entries:
            entry.worker.close()


def _equal_share(tokens: Sequence[int], expected: Sequence[int]) -> float:
    same = sum(a == b for a, b in zip(tokens, expected, strict=True))
    return round(same / len(expected), 3)


def run(settings: Settings) -> dict[str, object]:
    """Returns the figures of all models."""
    contenders = [
        *catalogue.ours(),
        *(
            p
            for p in catalogue.peers(cpu_features())
            if p.name.removesuffix(catalogue.SEARCH) in settings.peers
        ),
        *catalogue.floors(),
    ]
    missing = dict[str, str]()
    pythons = _pythons(contenders, settings, missing)
    result: dict[str, object] = {}
    console = Console(width=160)
    for name in settings.models:
        directory = models.prepare(name, settings.root, _say)
        arena = contest.Arena(
            model=directory, cache=settings.root, num_threads=settings.num_threads
        )
        outcome = report.Outcome(name, failures=dict(missing))
        for peer in contenders:
            if peer.name in pythons and report.is_peer(peer.name):
                _say(f"{name}: converting for {peer.name}, unless done before")
                failures = contest.prepare(arena, pythons[peer.name], peer)
                outcome.failures |= {f"{peer.name} {v}": why for v, why in failures.items()}
        if settings.is_setup_only:
            result[name] = {"failures": outcome.failures}
            continue
        compare(arena, contenders, pythons, settings, outcome)
        console.print(report.table(outcome))
        result[name] = report.figures(outcome)
    return {
        **result,
        "cpu": machine.cpu_model(),
        "cpu_features": machine.features(),
        "threads": settings.num_threads,
        "rounds": settings.num_rounds,
        "prompt_tokens": models.PROMPT_TOKENS,
        "suggestions": models.NUM_SUGGESTIONS,
        "new_tokens": models.NEW_TOKENS,
        "python": platform.python_version(),
    }


def main() -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settings = parse()
    print(json.dumps(run(settings)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
