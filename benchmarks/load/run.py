"""Puts a load on an engine: at the times that are due, or one request at a time."""

import asyncio
import gc
import itertools
import sys
import threading
import time
from typing import NamedTuple

from benchmarks.load.arrivals import due_s
from benchmarks.load.caller import Caller, Outcome
from benchmarks.load.figures import percentile
from benchmarks.load.settings import Load
from benchmarks.load.traffic import requests
from queryrec.client import QueryRecClient, QueryRecError
from queryrec.v1 import query_recommender_service_pb2 as service_pb2


class Run(NamedTuple):
    """What became of a load."""

    outcomes: list[Outcome]
    started_s: float  # of `time.perf_counter`; the first second's, once all requests are made
    elapsed_s: float  # from then to the last answer


async def run(load: Load) -> Run:
    """Puts the load on the engine; returns when all requests are answered or failed.

    Raises:
        ValueError: The engine cannot be reached or lacks a scenario of the mix, or the queries do
            not suffice.
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
        gc.collect()
        gc.disable()  # outcomes pile up: looking through them would send requests late
        try:
            started_s = await (_closed_loop if load.is_idle else _open_loop)(load, caller)
        finally:
            gc.enable()
            progress.cancel()
        elapsed_s = time.perf_counter() - started_s
    finally:
        await caller.close()
    return Run(caller.outcomes, started_s, elapsed_s)


async def _open_loop(load: Load, caller: Caller) -> float:
    """Sends requests when they are due; returns when the first second began."""
    plan = list(zip(due_s(load).tolist(), requests(load), strict=False))
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
    return start_s


async def _closed_loop(load: Load, caller: Caller) -> float:
    """Sends the next request as soon as the last is answered, until the time is over.

    Returns when it began.
    """
    start_s = time.perf_counter()
    end_s = start_s + load.duration_s
    for request in requests(load):
        now_s = time.perf_counter()
        if now_s >= end_s:
            break
        await caller.call(request, now_s)
    return start_s


async def _progress(load: Load, caller: Caller) -> None:
    """Prints one line a second to stderr until cancelled."""
    last = 0
    for second in itertools.count(1):
        await asyncio.sleep(1)
        recent = caller.outcomes[last:]
        last += len(recent)
        p50 = percentile([o.latency_s * 1000 for o in recent if not o.error], 50)
        print(
            f"{second:4d} s of {load.duration_s:g}: {caller.num_sent} sent, "
            f"{caller.num_sent - len(caller.outcomes)} under way, last second "
            f"{len(recent)} done, p50 {p50} ms, {sum(bool(o.error) for o in recent)} errors",
            file=sys.stderr,
            flush=True,
        )
