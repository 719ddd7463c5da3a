"""The command line of a load. Knows nothing of how it is sent."""

import argparse
import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import benchmarks.load
from benchmarks.load.settings import Burst, Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A load, and where its figures go."""

    load: Load
    out: Path | None = None  # JSON, to compare
    html: Path | None = None


def parse(arguments: Sequence[str] | None = None) -> Command:
    """Returns what the command line asks for; exits with status 2 if it is nonsense."""
    description = (benchmarks.load.__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=description)
    parser.add_argument("--target", default="localhost:50051", help="HOST:PORT of the engine")
    parser.add_argument(
        "--queries",
        type=Path,
        required=True,
        help="text file, one query a line; with --replay SECONDS<tab>QUERY, by rising time",
    )
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second (default 50)")
    parser.add_argument("--ramp-to", type=float, help="rate at the end; it changes evenly")
    parser.add_argument(
        "--burst", help="RATE:EVERY:LENGTH, such as 200:10:1: every 10 s, 200 a second for 1 s"
    )
    parser.add_argument(
        "--arrivals",
        choices=("poisson", "constant"),
        default="poisson",
        help="at random or at even distances (default poisson)",
    )
    parser.add_argument(
        "--replay", action="store_true", help="send at the file's own times, in its order"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="of a replay (default 1)")
    parser.add_argument(
        "--prompts",
        choices=("cycle", "order", "distinct", "zipf"),
        default="cycle",
        help="cycle: shuffled, again and again; order: as in the file; distinct: no prompt twice; "
        "zipf: few queries often (default cycle)",
    )
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of --prompts zipf (1)")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds (default 30)")
    parser.add_argument("--budget-ms", type=float, default=50.0, help="budget of an answer (50)")
    parser.add_argument(
        "--deadline-ms", type=float, help="deadline of a call (default 1000 or 4 budgets)"
    )
    parser.add_argument(
        "--scenarios",
        default="suggestion",
        help="the mix, such as suggestion=6,completion=3,clarification=1 (default suggestion)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--connections", type=int, default=4, help="TCP connections (default 4)")
    parser.add_argument(
        "--idle", action="store_true", help="one request at a time, ignoring --rate"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write, for compare")
    parser.add_argument("--html", type=Path, help="page with plots to write")
    args = parser.parse_args(arguments)
    budget_ms: float = args.budget_ms
    try:
        lines = read_lines(args.queries)
        times_s: list[float] = []
        if args.replay:
            times_s, lines = _timed(lines, args.speed)
        else:
            lines = list(dict.fromkeys(lines))
        load = Load(
            target=args.target,
            queries=tuple(lines),
            times_s=tuple(times_s),
            arrivals="replay" if args.replay else args.arrivals,
            rate_rps=args.rate,
            ramp_to_rps=args.ramp_to,
            burst=_burst(args.burst),
            duration_s=args.duration,
            budget_ms=budget_ms,
            deadline_ms=(
                max(1000.0, 4 * budget_ms) if args.deadline_ms is None else args.deadline_ms
            ),
            mix=mix_of(args.scenarios),
            prompts="order" if args.replay else args.prompts,
            zipf_exponent=args.zipf,
            seed=args.seed,
            num_connections=1 if args.idle else args.connections,
            is_idle=args.idle,
        )
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--queries cannot be read: {error}")
    except ValueError as error:
        parser.error(str(error))
    return Command(load=load, out=args.out, html=args.html)


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file that hold something; the file may be gzipped."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    return [line.strip() for line in content.decode("utf-8").splitlines() if line.strip()]


def mix_of(text: str) -> dict[str, float]:
    """Returns the weights of scenarios.

    Raises:
        ValueError: a part is not NAME or NAME=WEIGHT.
    """
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            mix[name] = float(weight or 1)
        except ValueError:
            mix[name] = math.nan
        if not name or not (math.isfinite(mix[name]) and mix[name] > 0):
            raise ValueError(f"--scenarios has {part!r}; write NAME or NAME=WEIGHT, above 0")
    return mix


def _burst(text: str | None) -> Burst | None:
    if text is None:
        return None
    try:
        rate_rps, every_s, length_s = map(float, text.split(":"))
    except ValueError:
        raise ValueError(f"--burst is {text!r}; write RATE:EVERY:LENGTH, as 200:10:1") from None
    return Burst(rate_rps, every_s, length_s)


def _timed(lines: Sequence[str], speed: float) -> tuple[list[float], list[str]]:
    """Returns the times, from 0 on, and the queries of SECONDS<tab>QUERY lines."""
    if not (math.isfinite(speed) and speed > 0):
        raise ValueError(f"--speed is {speed}; it must be above 0")
    times_s: list[float] = []
    queries: list[str] = []
    for number, line in enumerate(lines, 1):
        time, _, query = line.partition("\t")
        try:
            times_s.append(float(time))
        except ValueError:
            times_s.append(math.nan)
        queries.append(query.strip())
        is_rising = math.isfinite(times_s[-1]) and times_s[-1] >= times_s[max(0, len(times_s) - 2)]
        if not (is_rising and queries[-1]):
            raise ValueError(f"--queries line {number}: --replay needs SECONDS<tab>QUERY, rising")
    return [(t - times_s[0]) / speed for t in times_s], queries
