"""Loads a running engine over gRPC and measures what its callers see.

Knows nothing of the engine's inside beyond the timings in its responses.

Open loop (the default): requests are due at the times of a Poisson process and are sent then,
whether or not earlier ones were answered. Latency counts from the time a request was due, so a
stall of the engine, or of this program, shows in every request it delays. With --idle: closed loop,
one request at a time, for the latency of an engine with nothing else to do.

Each call carries the budget as its latency_budget and a longer deadline, so that late answers are
measured rather than cut off. Queries repeat only after the whole file has been sent (a cache would
flatter the engine); the completion scenario gets a prefix of each.

Progress goes to stderr. The last line of stdout is one JSON object:
  rate_rps            answers a second; offered_rps is what was asked for
  p50_ms .. p999_ms   latency of answers (nearest rank, upwards); failed calls have none
  in_budget           share of all requests that were answered within the budget
  degraded            share of answers that left something out (cached results do not count)
  errors              number of failed requests; errors_by_reason says which
  overhead_p50_ms     server time outside the models: total - encode - generate - score, waiting
                      included; overhead_without_queue_p50_ms leaves the waiting out
  send_lag_p99_ms     how late this program sent; above 1 ms, it is the bottleneck
  stages, scenarios   the same by stage of the server and by scenario

    python benchmarks/load.py --target localhost:50051 --queries queries.txt --rate 50 --duration 30
"""

import argparse
import asyncio
import collections
import gzip
import itertools
import json
import math
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from google.protobuf import duration_pb2
from grpc import aio

from queryrec.client import QueryRecClient, QueryRecError
from queryrec.v1 import query_recommender_service_pb2 as service_pb2
from queryrec.v1 import stage_pb2
from queryrec.v1.query_recommender_service_pb2_grpc import QueryRecommenderServiceStub

MODEL_STAGES = ("encode", "generate", "score")
MAX_REQUESTS = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send; see the options of the command line."""

    target: str
    rate_rps: float
    duration_s: float
    budget_ms: float
    deadline_ms: float
    queries: tuple[str, ...]
    mix: dict[str, float]
    seed: int
    num_connections: int
    is_idle: bool

    def __post_init__(self) -> None:
        for name, value, unit, most in (
            ("rate", self.rate_rps, "requests a second", 100_000),
            ("duration", self.duration_s, "seconds", 86_400),
            ("budget-ms", self.budget_ms, "milliseconds", 60_000),
            ("deadline-ms", self.deadline_ms, "milliseconds", 600_000),
        ):
            if not (math.isfinite(value) and 0 < value <= most):
                raise ValueError(
                    f"--{name} is {value}; it must be above 0 and at most {most} {unit}"
                )
        if self.deadline_ms < self.budget_ms:
            raise ValueError(
                f"--deadline-ms is {self.deadline_ms}, below --budget-ms of {self.budget_ms}: "
                "late answers would be cut off instead of measured"
            )
        if self.rate_rps * self.duration_s > MAX_REQUESTS:
            raise ValueError(
                f"--rate {self.rate_rps} for --duration {self.duration_s} are "
                f"{self.rate_rps * self.duration_s:.0f} requests; at most {MAX_REQUESTS} are sent"
            )
        if not 1 <= self.num_connections <= 256:
            raise ValueError(f"--connections is {self.num_connections}; it must be from 1 to 256")
        if not self.queries:
            raise ValueError("--queries has no query; it needs one a line")


@dataclass(slots=True)
class Outcome:
    """What became of one request. Times are in seconds."""

    scenario: str
    lag_s: float
    latency_s: float = math.nan  # of an answer
    error: str = ""
    omissions: tuple[str, ...] = ()
    is_degraded: bool = False
    num_suggestions: int = 0
    stage_us: dict[str, int] | None = None


class Caller:
    """Sends requests over several connections in turn and keeps the outcomes."""

    def __init__(self, load: Load) -> None:
        self._deadline_s = load.deadline_ms / 1000
        # Channels to one target share a connection unless told otherwise.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [
            aio.insecure_channel(load.target, options=options) for _ in range(load.num_connections)
        ]
        self._stubs = itertools.cycle([QueryRecommenderServiceStub(c) for c in self._channels])
        self.outcomes: list[Outcome] = []
        self.num_sent = 0

    async def connect(self, timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def call(self, request: service_pb2.RecommendRequest, due_s: float) -> None:
        """Sends one request now and records it against ``due_s`` of ``time.perf_counter``."""
        self.num_sent += 1
        outcome = Outcome(scenario=request.scenario, lag_s=time.perf_counter() - due_s)
        try:
            response = await next(self._stubs).Recommend(request, timeout=self._deadline_s)
        except aio.AioRpcError as error:
            outcome.error = _reason(error)
        else:
            outcome.latency_s = time.perf_counter() - due_s
            _read(response, outcome)
        self.outcomes.append(outcome)


def requests(load: Load) -> Iterator[service_pb2.RecommendRequest]:
    """Yields requests without end: scenarios by the mix, queries in a random order."""
    rng = random.Random(load.seed)
    queries = list(load.queries)
    rng.shuffle(queries)
    names, weights = list(load.mix), list(load.mix.values())
    budget = duration_pb2.Duration()
    budget.FromMicroseconds(round(load.budget_ms * 1000))
    for number, query in enumerate(itertools.cycle(queries)):
        (scenario,) = rng.choices(names, weights)
        if scenario == "completion":
            query = query[: rng.randint(max(1, len(query) // 2), len(query))].rstrip() or query
        yield service_pb2.RecommendRequest(
            scenario=scenario,
            query=query,
            session_id=f"load-{load.seed}-{number}",
            latency_budget=budget,
        )


async def open_loop(load: Load, caller: Caller) -> None:
    """Sends at the times of a Poisson process; returns when all are answered or failed."""
    rng = np.random.default_rng(load.seed)
    gaps_s = rng.exponential(
        1 / load.rate_rps, size=math.ceil(load.rate_rps * load.duration_s * 2) + 64
    )
    due_s = np.cumsum(gaps_s)
    due_s = due_s[due_s <= load.duration_s]
    plan = list(zip(due_s.tolist(), requests(load), strict=False))
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    all_sent = asyncio.Event()
    start_s = time.perf_counter() + 0.05

    def send(request: service_pb2.RecommendRequest, at_s: float) -> None:
        task = loop.create_task(caller.call(request, at_s))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def pace() -> None:
        # A thread of its own: asyncio rounds timers up to whole milliseconds.
        for after_s, request in plan:
            at_s = start_s + after_s
            if (wait_s := at_s - time.perf_counter()) > 0:
                time.sleep(wait_s)
            loop.call_soon_threadsafe(send, request, at_s)
        loop.call_soon_threadsafe(all_sent.set)

    threading.Thread(target=pace, name="pace", daemon=True).start()
    await all_sent.wait()
    while tasks:
        await asyncio.wait(tasks)


async def closed_loop(load: Load, caller: Caller) -> None:
    """Sends the next request as soon as the last one is answered, until the time is over."""
    end_s = time.perf_counter() + load.duration_s
    for request in requests(load):
        now_s = time.perf_counter()
        if now_s >= end_s:
            return
        await caller.call(request, now_s)


def summary(load: Load, outcomes: Sequence[Outcome], elapsed_s: float) -> dict[str, object]:
    """Returns the figures of the last line; see the module's docstring."""
    answers = [o for o in outcomes if not o.error]
    num_answers = len(answers)
    omissions = collections.Counter(name for o in answers for name in o.omissions)
    stage_ms: dict[str, list[float]] = {}
    overhead_ms: list[float] = []
    without_queue_ms: list[float] = []
    for outcome in answers:
        stage_us = outcome.stage_us or {}
        for stage, duration_us in stage_us.items():
            stage_ms.setdefault(stage, []).append(duration_us / 1000)
        if "total" in stage_us:
            outside_us = stage_us["total"] - sum(stage_us.get(s, 0) for s in MODEL_STAGES)
            overhead_ms.append(outside_us / 1000)
            without_queue_ms.append((outside_us - stage_us.get("queue", 0)) / 1000)
    return {
        "mode": "idle" if load.is_idle else "open-loop",
        "rate_rps": _rounded(num_answers / elapsed_s),
        "offered_rps": None if load.is_idle else load.rate_rps,
        "duration_s": _rounded(elapsed_s),
        "budget_ms": load.budget_ms,
        **_figures(load, outcomes),
        "mean_suggestions": _rounded(
            sum(o.num_suggestions for o in answers) / num_answers if num_answers else math.nan
        ),
        "overhead_p50_ms": _percentile(overhead_ms, 50),
        "overhead_without_queue_p50_ms": _percentile(without_queue_ms, 50),
        "send_lag_p99_ms": _percentile([o.lag_s * 1000 for o in outcomes], 99),
        "errors_by_reason": dict(collections.Counter(o.error for o in outcomes if o.error)),
        "omissions": {name: _rounded(n / num_answers) for name, n in sorted(omissions.items())},
        "stages": {
            stage: {"num": len(ms), "p50_ms": _percentile(ms, 50), "p99_ms": _percentile(ms, 99)}
            for stage, ms in stage_ms.items()
        },
        "scenarios": {
            name: _figures(load, [o for o in outcomes if o.scenario == name]) for name in load.mix
        },
        "seed": load.seed,
        "num_queries": len(load.queries),
        "connections": load.num_connections,
    }


def _figures(load: Load, outcomes: Sequence[Outcome]) -> dict[str, object]:
    answers = [o for o in outcomes if not o.error]
    latencies_ms = [o.latency_s * 1000 for o in answers]
    num_in_budget = sum(ms <= load.budget_ms for ms in latencies_ms)
    num_degraded = sum(o.is_degraded for o in answers)
    return {
        "num_requests": len(outcomes),
        "p50_ms": _percentile(latencies_ms, 50),
        "p95_ms": _percentile(latencies_ms, 95),
        "p99_ms": _percentile(latencies_ms, 99),
        "p999_ms": _percentile(latencies_ms, 99.9),
        "in_budget": _rounded(num_in_budget / len(outcomes)) if outcomes else None,
        "degraded": _rounded(num_degraded / len(answers)) if answers else None,
        "errors": len(outcomes) - len(answers),
    }


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return _rounded(float(np.percentile(values, percent, method="higher"))) if values else None


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _reason(error: aio.AioRpcError) -> str:
    return QueryRecError.from_rpc_error(error).reason or error.code().name


def _read(response: service_pb2.RecommendResponse, outcome: Outcome) -> None:
    outcome.num_suggestions = len(response.suggestions)
    outcome.stage_us = {t.stage: t.duration_us for t in response.stage_timings}
    outcome.omissions = tuple(
        f"{o.stage} {stage_pb2.OmissionKind.Name(o.kind).removeprefix('OMISSION_KIND_')} "
        f"{stage_pb2.OmissionReason.Name(o.reason).removeprefix('OMISSION_REASON_')}".lower()
        for o in response.omissions
    )
    outcome.is_degraded = any(
        o.reason != stage_pb2.OMISSION_REASON_CACHED for o in response.omissions
    )


async def _progress(load: Load, caller: Caller) -> None:
    """Prints one line a second to stderr until cancelled."""
    last = 0
    for second in itertools.count(1):
        await asyncio.sleep(1)
        recent = caller.outcomes[last:]
        last += len(recent)
        p50 = _percentile([o.latency_s * 1000 for o in recent if not o.error], 50)
        print(
            f"{second:4d} s of {load.duration_s:g}: {caller.num_sent} sent, "
            f"{caller.num_sent - len(caller.outcomes)} under way, last second "
            f"{len(recent)} done, p50 {p50} ms, {sum(bool(o.error) for o in recent)} errors",
            file=sys.stderr,
            flush=True,
        )


async def run(load: Load) -> dict[str, object]:
    """Puts the load on the engine and returns the figures.

    Raises:
        ValueError: The engine cannot be reached or lacks a scenario of the mix.
    """
    caller = Caller(load)
    try:
        try:
            async with QueryRecClient(load.target, timeout_s=10) as client:
                known = [s.name for s in await client.list_scenarios()]
            await caller.connect()
        except (TimeoutError, QueryRecError) as error:
            raise ValueError(
                f"no engine answers at {load.target}: {error or 'no connection'}"
            ) from error
        if unknown := sorted(load.mix.keys() - set(known)):
            raise ValueError(f"the engine has no scenario {unknown}; it has {known}")
        progress = asyncio.create_task(_progress(load, caller))
        start_s = time.perf_counter()
        loop: Callable[[Load, Caller], Awaitable[None]] = closed_loop if load.is_idle else open_loop
        await loop(load, caller)
        elapsed_s = time.perf_counter() - start_s
        progress.cancel()
    finally:
        await caller.close()
    return summary(load, caller.outcomes, elapsed_s)


def parse(arguments: Sequence[str] | None = None) -> Load:
    """Returns the load that the command line asks for; exits with status 2 if it is nonsense."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", default="localhost:50051", help="HOST:PORT of the engine")
    parser.add_argument("--queries", type=Path, required=True, help="text file, one query a line")
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second (default 50)")
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
    args = parser.parse_args(arguments)
    try:
        content = args.queries.read_bytes()
        if args.queries.suffix == ".gz":
            content = gzip.decompress(content)
        lines = content.decode("utf-8").splitlines()
        budget_ms: float = args.budget_ms
        return Load(
            target=args.target,
            rate_rps=args.rate,
            duration_s=args.duration,
            budget_ms=budget_ms,
            deadline_ms=(
                max(1000.0, 4 * budget_ms) if args.deadline_ms is None else args.deadline_ms
            ),
            queries=tuple(dict.fromkeys(line.strip() for line in lines if line.strip())),
            mix=_mix(args.scenarios),
            seed=args.seed,
            num_connections=1 if args.idle else args.connections,
            is_idle=args.idle,
        )
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--queries cannot be read: {error}")
    except ValueError as error:
        parser.error(str(error))


def _mix(text: str) -> dict[str, float]:
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


def main() -> int:
    load = parse()
    try:
        figures = asyncio.run(run(load))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
