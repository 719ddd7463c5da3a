"""The command line of a load. Knows nothing of how it is sent."""

import argparse
import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import benchmarks.load
from benchmarks.load.settings import Burst, Load

_DURATION_S = 30.0
_SYSTEM_ROOTS = Path()  # --tls without a file


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
        "--tls",
        nargs="?",
        type=Path,
        const=_SYSTEM_ROOTS,
        metavar="CA_FILE",
        help="TLS; with a file of PEM certificates to trust instead of the usual ones",
    )
    parser.add_argument(
        "--metadata",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="metadata of every call, such as authorization=...; may be repeated",
    )
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
    parser.add_argument(
        "--duration", type=float, help="seconds (default 30; a replay goes to the file's end)"
    )
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
    for option, path in (("--out", args.out), ("--html", args.html)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            parser.error(f"{option} {path} cannot be written: no file in a folder that exists")
    times_s: list[float] = []
    try:
        if args.replay:
            times_s, queries = _timed(numbered_lines(args.queries), args.speed)
        elif args.prompts == "order":
            queries = read_lines(args.queries)
        else:
            queries = list(dict.fromkeys(read_lines(args.queries)))
        load = Load(
            target=args.target,
            queries=tuple(queries),
            times_s=tuple(times_s),
            arrivals="replay" if args.replay else args.arrivals,
            rate_rps=args.rate,
            ramp_to_rps=args.ramp_to,
            burst=_burst(args.burst),
            duration_s=_duration_s(args.duration, times_s),
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
            is_tls=args.tls is not None,
            root_certificates=_root_certificates(args.tls),
            metadata=tuple(map(_pair, args.metadata)),
        )
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--queries cannot be read: {error}")
    except ValueError as error:
        parser.error(str(error))
    return Command(load=load, out=args.out, html=args.html)


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file that hold something; the file may be gzipped.

    Raises:
        OSError: It cannot be read, or is no whole gzip file.
        UnicodeDecodeError: It is no UTF-8.
    """
    return [line for _, line in numbered_lines(path)]


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """Returns what `read_lines` does, each with its number in the file, from 1 on."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error) as error:
            raise gzip.BadGzipFile(f"{path} is no whole gzip file: {error}") from None
    lines = enumerate(content.decode("utf-8-sig").split("\n"), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


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


def _timed(lines: Sequence[tuple[int, str]], speed: float) -> tuple[list[float], list[str]]:
    """Returns the times, from 0 on, and the queries of SECONDS<tab>QUERY lines.

    Raises:
        ValueError: A numbered line is something else, its time is below the one before, or the
            speed is not above 0.
    """
    if not (math.isfinite(speed) and speed > 0):
        raise ValueError(f"--speed is {speed}; it must be above 0")
    times_s: list[float] = []
    queries: list[str] = []
    for number, line in lines:
        where = f"--queries line {number}: --replay needs SECONDS<tab>QUERY"
        time, _, query = line.partition("\t")
        try:
            time_s = float(time)
        except ValueError:
            time_s = math.nan
        if not math.isfinite(time_s):
            raise ValueError(f"{where}, and {time!r} is no number of seconds")
        if not query.strip():
            raise ValueError(f"{where}, and no query follows the time")
        if times_s and time_s < times_s[-1]:
            raise ValueError(f"{where} by rising time, and {time} comes after {times_s[-1]:.15g}")
        times_s.append(time_s)
        queries.append(query.strip())
    return [(t - times_s[0]) / speed for t in times_s], queries


def _duration_s(asked_s: float | None, times_s: Sequence[float]) -> float:
    """Returns how long to send: a replay no longer than there are lines, but a second at least."""
    if not times_s:
        return _DURATION_S if asked_s is None else asked_s
    end_s = max(1.0, times_s[-1])
    return end_s if asked_s is None else min(asked_s, end_s)


def _root_certificates(path: Path | None) -> bytes | None:
    if path is None or path == _SYSTEM_ROOTS:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"--tls cannot be read: {error}") from None


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise ValueError(f"--metadata is {text!r}; write KEY=VALUE")
    return key.lower(), value
