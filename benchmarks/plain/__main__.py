"""`python -m benchmarks.plain`: serves a run with the plain stack, or compares what it says."""

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.arguments import read_lines
from benchmarks.plain.check import agreement
from benchmarks.plain.questions import questions_of
from benchmarks.plain.recommender import Recommender
from benchmarks.plain.server import Batching, serve
from benchmarks.plain.tuning import fastest, settings
from benchmarks.served import mismatch
from export.checkpoint import Run

_NUM_SAMPLES = 60  # questions that settings are tried on


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns what the command line asks for; exits with status 2 if it is nonsense."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plain", description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("command", choices=("serve", "check"))
    parser.add_argument("--run", type=Path, required=True, help="run directory of queryrec-train")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: what is faster")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: what is faster")
    serving = parser.add_argument_group("serve")
    serving.add_argument("--port", type=int, default=0, help="0 picks a free one and prints it")
    serving.add_argument("--wait-ms", type=float, default=10.0, help="a batch waits so long (10)")
    serving.add_argument("--max-batch", type=int, default=8, help="requests of a batch (8)")
    checking = parser.add_argument_group("check")
    checking.add_argument("--bundle", type=Path, help="of the run (default RUN/bundle)")
    checking.add_argument("--queries", type=Path, help="text file, one query a line")
    checking.add_argument("--num", type=int, default=300, help="queries compared (300)")
    args = parser.parse_args(arguments)
    for name in ("threads", "wait_ms"):
        if getattr(args, name) < 0:
            parser.error(
                f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 0"
            )
    if args.max_batch < 1 or args.num < 1:
        parser.error("--max-batch and --num must be at least 1")
    if args.command == "check" and args.queries is None:
        parser.error("check needs --queries")
    return args


def _recommender(args: argparse.Namespace) -> Recommender:
    run = Run(args.run)
    sample = random.Random(0).sample(run.queries, min(_NUM_SAMPLES, len(run.queries)))
    questions = questions_of(sample, {s.name: s for s in run.scenarios})
    recommender = fastest(run, settings(args.precision, args.threads), questions, report=_report)
    _report(f"{recommender.setting.precision} on {recommender.setting.num_threads} threads")
    return recommender


def _check(args: argparse.Namespace) -> str:
    """Returns the last line of a check."""
    bundle = args.bundle or args.run / "bundle"
    if why := mismatch(args.run, bundle):
        raise ValueError(why)
    queries = read_lines(args.queries)
    chosen = random.Random(1).sample(queries, min(args.num, len(queries)))
    recommender = _recommender(args)
    found = agreement(recommender, bundle, questions_of(chosen, recommender.scenarios))
    figures = {k: round(v, 4) for k, v in found._asdict().items()}
    return json.dumps({**figures, **recommender.setting._asdict()})


def _report(line: str) -> None:
    print(f"plain: {line}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    args = parse(arguments)
    try:
        if args.command == "check":
            print(_check(args))
        else:
            batching = Batching(wait_s=args.wait_ms / 1000, max_size=args.max_batch)
            asyncio.run(serve(_recommender(args), batching, args.port))
    except (ValueError, OSError) as error:  # BundleError is one
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
