"""`python -m benchmarks.load compare`: a table of two saved runs, and its last line as JSON."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.load.comparison import Change, compared
from benchmarks.load.record import read


def compare(arguments: Sequence[str]) -> int:
    """Prints a table and the last line of a comparison; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load compare", description="Compares two runs of --out."
    )
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    args = parser.parse_args(arguments)
    found = compared(read(args.first), read(args.second))
    for title, changes in (("ratio", found.ratios), ("difference", found.differences)):
        print(f"{'':12} {'first':>10} {'second':>10} {title:>10}  95 % interval")
        for c in changes:
            change, low, high = f"{c.change:.3f}", f"{c.low:.3f}", f"{c.high:.3f}"
            print(f"{c.name:12} {c.first:10.4g} {c.second:10.4g} {change:>10}  [{low}, {high}]")
    for warning in found.warnings:
        print(warning, file=sys.stderr)
    line = _by_name("ratio", found.ratios) | _by_name("difference", found.differences)
    print(json.dumps(line | {"warnings": found.warnings}))
    return 0


def _by_name(kind: str, changes: Sequence[Change]) -> dict[str, object]:
    return {
        c.name: {"first": c.first, "second": c.second, kind: c.change, "low": c.low, "high": c.high}
        for c in changes
    }
