"""`python -m benchmarks.load`: puts a load on an engine, or compares two saved runs."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.arguments import parse
from benchmarks.load.comparison import compared
from benchmarks.load.figures import summary
from benchmarks.load.page import page
from benchmarks.load.record import read, record_of, write
from benchmarks.load.run import run


def measure(arguments: Sequence[str]) -> str:
    """Returns the last line of a load."""
    command = parse(arguments)
    done = asyncio.run(run(command.load))
    figures = summary(command.load, done.outcomes, done.elapsed_s)
    if command.out or command.html:
        record = record_of(command.load, done, figures)
        if command.out:
            write(record, command.out)
        if command.html:
            command.html.write_text(page(record), encoding="utf-8")
    return json.dumps(figures)


def compare(arguments: Sequence[str]) -> str:
    """Prints a table; returns the last line of a comparison."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load compare", description="Compares two runs of --out."
    )
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    args = parser.parse_args(arguments)
    ratios = compared(read(args.first), read(args.second))
    print(f"{'':14}{'first':>12}{'second':>12}{'ratio':>10}  95 % interval")
    for r in ratios:
        told = "undefined" if r.ratio is None else f"{r.ratio:.3f}  [{r.low:.3f}, {r.high:.3f}]"
        print(f"{r.name:14}{r.first:12.4g}{r.second:12.4g}{told:>10}")
    return json.dumps({r.name: {"ratio": r.ratio, "low": r.low, "high": r.high} for r in ratios})


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    try:
        is_comparison = arguments[:1] == ["compare"]
        print(compare(arguments[1:]) if is_comparison else measure(arguments))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
