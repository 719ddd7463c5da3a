"""How long an engine takes to start, and to be free again for others when a caller gives up.

    python -m benchmarks.lifecycle --bundle DIR --queries FILE [--starts 7] [--cancels 300]

Starts are timed from creating the process to SERVING; the first one, which fills the page cache,
is left out. For cancelling, an engine takes one call at a time: a call is cancelled 2 to 8 ms after
it was sent, while it is worked on, and at the same moment another caller asks, again and again
until it is let in.

The last line of stdout is one JSON object:
  start_p50_s, start_max_s
  num_cancelled    calls that were still under way when they were cancelled
  let_in_at_once   share of the next calls that were let in at their first try
  next_p50_ms      from their first try to their answer: a run of a model that has begun goes on
  idle_p50_ms      the same for calls that nobody was in the way of
"""

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import grpc
import numpy as np

from benchmarks.load.arguments import read_lines
from benchmarks.served import served
from queryrec.client import QueryRecClient, QueryRecError

_SCENARIO, _TIMEOUT_S = "suggestion", 5.0
_LEAST_S, _MOST_S = 0.002, 0.008


def start_times_s(bundle: Path, num_starts: int) -> list[float]:
    """Returns how long each start took, but the first."""
    took_s: list[float] = []
    for _ in range(num_starts + 1):
        begun_s = time.perf_counter()
        with served(bundle, {}):
            took_s.append(time.perf_counter() - begun_s)
    return took_s[1:]


class Followed(NamedTuple):
    """A call on an engine that takes one at a time."""

    num_refused: int  # tries before it was let in
    answered_s: float  # from its first try to its answer


async def after_cancelling(
    target: str, queries: Sequence[str], num_calls: int
) -> tuple[list[Followed], list[Followed]]:
    """Returns calls of one caller right after another one gave up, and the same without that."""
    randomness = random.Random(0)
    after: list[Followed] = []
    alone: list[Followed] = []
    async with QueryRecClient(target) as caller, QueryRecClient(target) as other:
        for number in range(num_calls):
            given_up, query, again = (queries[(3 * number + i) % len(queries)] for i in range(3))
            call = asyncio.create_task(
                caller.recommend(_SCENARIO, given_up, latency_budget_s=1.0, timeout_s=_TIMEOUT_S)
            )
            await asyncio.sleep(randomness.uniform(_LEAST_S, _MOST_S))
            if call.done():
                call.result()  # raises what it failed with
                continue
            call.cancel()
            after.append(await _until_answered(other, query))
            with contextlib.suppress(asyncio.CancelledError):
                await call
            alone.append(await _until_answered(other, again))
    return after, alone


async def _until_answered(client: QueryRecClient, query: str) -> Followed:
    """Asks until it is let in."""
    begun_s, num_refused = time.perf_counter(), 0
    while True:
        try:
            await client.recommend(_SCENARIO, query, latency_budget_s=1.0, timeout_s=_TIMEOUT_S)
        except QueryRecError as error:
            if error.code != grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            num_refused += 1
        else:
            return Followed(num_refused, time.perf_counter() - begun_s)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lifecycle", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--bundle", type=Path, required=True, help="directory of a bundle")
    parser.add_argument("--queries", type=Path, required=True, help="text file, one query a line")
    parser.add_argument("--starts", type=int, default=7, help="(7)")
    parser.add_argument("--cancels", type=int, default=300, help="calls to cancel (300)")
    args = parser.parse_args()
    if min(args.starts, args.cancels) < 1:
        parser.error("--starts and --cancels must be at least 1")
    try:
        queries = read_lines(args.queries)
        start_s = np.array(start_times_s(args.bundle, args.starts))
        alone = {"QUERYREC_SERVER_MAX_CONCURRENT_CALLS": "1", "QUERYREC_CACHE_MAX_BYTES": "0"}
        with served(args.bundle, alone) as engine:
            after, idle = asyncio.run(after_cancelling(engine.target, queries, args.cancels))
        if not after:
            raise ValueError("every call was answered before it could be cancelled")
    except (ValueError, OSError, QueryRecError) as error:
        print(error, file=sys.stderr)
        return 1
    print(
        json.dumps(
            {
                "start_p50_s": round(float(np.median(start_s)), 3),
                "start_max_s": round(float(start_s.max()), 3),
                "num_cancelled": len(after),
                "let_in_at_once": round(float(np.mean([c.num_refused == 0 for c in after])), 4),
                "next_p50_ms": round(1e3 * float(np.median([c.answered_s for c in after])), 2),
                "idle_p50_ms": round(1e3 * float(np.median([c.answered_s for c in idle])), 2),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
