"""`python -m benchmarks.load`: puts a load on an engine, or compares two saved runs."""

import asyncio
import json
import sys
from collections.abc import Sequence

from benchmarks.load.arguments import parse
from benchmarks.load.arrivals import due_s
from benchmarks.load.figures import summary
from benchmarks.load.record import record_of, write
from benchmarks.load.run import run

_INTERRUPTED = 130  # exit status, as a shell has it for Ctrl-C


def measure(arguments: Sequence[str]) -> int:
    """Prints the figures of a load, then writes its files; returns the exit status."""
    command = parse(arguments)
    load = command.load
    if load.arrivals == "replay" and (num_left_out := len(load.times_s) - len(due_s(load))):
        _tell(
            f"lines of --queries left out, as later than --duration of {load.duration_s:g} s: "
            f"{num_left_out}"
        )
    done = asyncio.run(run(load, may_be_cut_short=True))
    if done.is_cut_short:
        _tell(f"cut short after {done.elapsed_s:.1f} s; what was under way is not counted")
    if done.is_cut_short and not done.outcomes:
        return _INTERRUPTED
    if not done.outcomes:
        raise ValueError(
            f"no request in {done.elapsed_s:.1f} s; give a higher --rate or --duration"
        )
    figures = summary(load, done)
    print(json.dumps(figures), flush=True)
    if command.out or command.html:
        record = record_of(load, done, figures)
        if command.out:
            write(record, command.out)
        if command.html:
            from benchmarks.load.page import page  # matplotlib takes a second to load

            command.html.write_text(page(record), encoding="utf-8")
    return _INTERRUPTED if done.is_cut_short else 0


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    try:
        if arguments[:1] == ["compare"]:
            from benchmarks.load.compare import compare  # so does scipy

            return compare(arguments[1:])
        return measure(arguments)
    except (ValueError, OSError) as error:
        _tell(str(error))
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
