"""What becomes of calls when more come than an engine can look at.

    python -m benchmarks.flood --bundle DIR --queries FILE [--rates 1000,2000,3000] [--callers 2]

Starts an engine on the bundle without its models, so that nothing but looking up bounds it, and has
each rate sent by several load generators together. A second after each flood, 100 calls a second
show whether it is over. The machine's cores are shared with the callers, which need more of them
than the engine: with two cores, `answered_rps` is far below what the engine can do alone.

The last line of stdout is a JSON list with an object for each rate:
  rate_rps, answered_rps, answered_p50_ms, answered_p99_ms
  send_lag_p99_ms     how late the worst of the callers sent; latencies contain it
  refused, lost       shares of calls: refused at once, and ended by their deadline or otherwise
  after_errors        calls without an answer among those of a second later
  max_rss_mib         the engine's resident memory, at most
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.load.arguments import read_lines
from benchmarks.served import Served, served, write_lookup_bundle

_FLOOD_S, _AFTER_S = 6.0, 3.0
_AFTER_RPS = 100.0
_DEADLINE_MS = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flood", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--bundle", type=Path, required=True, help="directory of a bundle")
    parser.add_argument("--queries", type=Path, required=True, help="text file, one query a line")
    parser.add_argument("--rates", default="1000,2000,3000", help="calls a second")
    parser.add_argument("--callers", type=int, default=2, help="load generators (2)")
    args = parser.parse_args(arguments)
    try:
        rates = [float(rate) for rate in args.rates.split(",")]
    except ValueError:
        parser.error(f"--rates is {args.rates!r}; it must be numbers, such as 1000,2000")
    if not (args.callers > 0 and all(math.isfinite(r) and r > 0 for r in rates)):
        parser.error("--rates and --callers must be above 0")
    try:
        read_lines(args.queries)
    except (OSError, ValueError) as error:
        parser.error(f"--queries cannot be read: {error}")
    try:
        figures = measure(args.bundle, args.queries, rates, args.callers)
    except ValueError as error:  # BundleError is one
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


def measure(
    bundle: Path, queries: Path, rates_rps: Sequence[float], num_callers: int
) -> list[dict[str, Any]]:
    """Returns the figures of each rate.

    Raises:
        ValueError: the bundle has no index or cannot be served, or a load generator failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_lookup_bundle(bundle, Path(folder))
        with served(Path(folder), {"QUERYREC_CACHE_MAX_BYTES": "0"}) as engine:
            _load(engine, queries, [_AFTER_RPS], _AFTER_S)  # everything has run once
            return [_flood(engine, queries, rate_rps, num_callers) for rate_rps in rates_rps]


def _flood(engine: Served, queries: Path, rate_rps: float, num_callers: int) -> dict[str, Any]:
    """Returns the figures of one rate."""
    peak_bytes, is_over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak_bytes
        while not is_over.wait(0.1):
            peak_bytes = max(peak_bytes, engine.resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        runs = _load(engine, queries, [rate_rps / num_callers] * num_callers, _FLOOD_S)
    finally:
        is_over.set()
        watcher.join()
    time.sleep(1)
    (after,) = _load(engine, queries, [_AFTER_RPS], _AFTER_S)
    statuses: Counter[str] = Counter()
    for run in runs:
        statuses.update(run["statuses"])
    num = statuses.total()
    found = {
        "rate_rps": rate_rps,
        "answered_rps": round(statuses["OK"] / _FLOOD_S, 1),
        # Of the callers that saw the worst.
        "answered_p50_ms": max((r["p50_ms"] for r in runs if r["p50_ms"]), default=None),
        "answered_p99_ms": max((r["p99_ms"] for r in runs if r["p99_ms"]), default=None),
        "send_lag_p99_ms": max((r["send_lag_p99_ms"] or 0.0 for r in runs), default=None),
        "refused": round(statuses["RESOURCE_EXHAUSTED"] / num, 4),
        "lost": round(1 - (statuses["OK"] + statuses["RESOURCE_EXHAUSTED"]) / num, 4),
        "after_errors": sum(after["statuses"].values()) - after["statuses"].get("OK", 0),
        "max_rss_mib": round(peak_bytes / 2**20, 1),
    }
    print(found, file=sys.stderr)
    return found


def _load(
    engine: Served, queries: Path, rates_rps: list[float], duration_s: float
) -> list[dict[str, Any]]:
    """Returns the figures of load generators that run at the same time."""
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.load", "--target", engine.target),
                *("--queries", str(queries), "--prompts", "distinct", "--seed", str(seed)),
                *("--rate", str(rate_rps), "--duration", str(duration_s)),
                *("--deadline-ms", str(_DEADLINE_MS)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, rate_rps in enumerate(rates_rps)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise ValueError("a load generator failed")  # it has said why
    return [json.loads(output.strip().splitlines()[-1]) for output in outputs]


if __name__ == "__main__":
    sys.exit(main())
