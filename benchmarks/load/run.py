"""Puts a load on an engine: at the times that are due, or one request at a time."""

import asyncio
import gc
import itertools
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.load.arrivals import due_s
from benchmarks.load.caller import Caller, Outcome, credentials
from benchmarks.load.percentiles import percentile
from benchmarks.load.settings import Load
from benchmarks.load.traffic import Request, serialised
from queryrec.client import QueryRecClient, QueryRecError

_LEAD_S = 0.05  # from when all is ready until the first second
_PAUSE_S = 0.1  # after an error

Plan = Sequence[tuple[float, Request]]  # seconds from the start


class Run(NamedTuple):
    """What became of a load."""

    outcomes: list[Outcome]
    started_s: float  # of `time.perf_counter`; the first second's, once all requests are made
    elapsed_s: float  # from then to the last answer, or the whole duration if that is longer
    is_cut_short: bool = False  # requests that were under way then are not among the outcomes


async def run(load: Load, *, may_be_cut_short: bool = False) -> Run:
    """Puts the load on the engine; returns when all requests are answered or failed.

    Args:
        load: What to send.
        may_be_cut_short: Whether cancelling it returns what was answered until then instead of
            raising, once it sends.

    Raises:
        ValueError: The engine cannot be reached or lacks a scenario of the mix, or the queries do
            not suffice.
    """
    caller = Caller(load)
    is_cut_short = False
    try:
        await _connect(load, caller)
        plan = (
            [] if load.is_idle else list(zip(due_s(load).tolist(), serialised(load), strict=False))
        )
        progress = asyncio.create_task(_progress(load, caller))
        gc.collect()
        gc.disable()  # outcomes pile up: looking through them would send requests late
        started_s = time.perf_counter() + _LEAD_S
        try:
            if load.is_idle:
                await _closed_loop(load, caller, started_s)
            else:
                await _open_loop(plan, caller, started_s)
        except asyncio.CancelledError:
            if not may_be_cut_short:
                raise
            is_cut_short = True
        finally:
            gc.enable()
            progress.cancel()
        elapsed_s = time.perf_counter() - started_s
    finally:
        await caller.close()
    if not is_cut_short:
        assert caller.num_sent == len(caller.outcomes), "every request has an outcome"
        elapsed_s = max(elapsed_s, load.duration_s)
    return Run(caller.outcomes, started_s, elapsed_s, is_cut_short)


async def _connect(load: Load, caller: Caller) -> None:
    try:
        async with QueryRecClient(
            load.target, timeout_s=10, credentials=credentials(load)
        ) as client:
            known = [s.name for s in await client.list_scenarios(metadata=load.metadata)]
        await caller.connect()
    except (TimeoutError, QueryRecError) as error:
        raise ValueError(
            f"no engine answers at {load.target}: {error or 'no connection'}"
        ) from error
    if unknown := sorted(load.mix.keys() - set(known)):
        raise ValueError(f"the engine has no scenario {unknown}; it has {known}")


async def _open_loop(plan: Plan, caller: Caller, start_s: float) -> None:
    """Sends requests when they are due."""
    loop = asyncio.get_running_loop()
    all_sent, is_over = asyncio.Event(), threading.Event()

    async with asyncio.TaskGroup() as calls:

        def send(request: Request, at_s: float) -> None:
            if not is_over.is_set():
                calls.create_task(caller.call(request, at_s))

        def pace() -> None:
            # A thread of its own: asyncio rounds timers up to whole milliseconds.
            for after_s, request in plan:
                at_s = start_s + after_s
                if is_over.wait(max(0.0, at_s - time.perf_counter())):
                    return
                loop.call_soon_threadsafe(send, request, at_s)
            loop.call_soon_threadsafe(all_sent.set)

        pacing = threading.Thread(target=pace, name="pace", daemon=True)
        pacing.start()
        try:
            await all_sent.wait()
        finally:
            is_over.set()
            pacing.join()


async def _closed_loop(load: Load, caller: Caller, start_s: float) -> None:
    """Sends the next request as soon as the last is answered, until the time is over."""
    await asyncio.sleep(start_s - time.perf_counter())
    for request in serialised(load):
        now_s = time.perf_counter()
        if now_s >= start_s + load.duration_s:
            break
        outcome = await caller.call(request, now_s)
        if outcome.error:  # else a server that refuses at once would outweigh all answers
            await asyncio.sleep(_PAUSE_S)


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
