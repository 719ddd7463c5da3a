"""What tritonserver adds: the engine's answers with models in this process and on a server.

    python -m benchmarks.triton [--size small --precision int8 --instances 1 --threads 0]

Writes a bundle with random weights and its repository for Triton's Python backend, starts the
tritonserver of `make triton` on the same cores, and asks both, in turns: one model call at a time,
then whole questions from 1, 4 and 16 askers who each wait for their answer. Nothing is cached and
nothing is left out for want of time. The last line of stdout is JSON: milliseconds are medians of
all calls, rates are medians of the rounds.
"""

import argparse
import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc  # pyright: ignore

from engine.answering.answer import Question
from engine.answering.pipeline import Pipeline
from engine.config import CacheConfig, Config, TritonConfig
from engine.execution.bundle import load_bundle
from engine.execution.cpu import num_usable_cpus
from engine.execution.runtime import Runtime
from engine.execution.triton import connect
from engine.execution.warmup import kinds_of_work
from engine.scheduling.deadline import Deadline, MonotonicClock
from engine.scheduling.stages import Probe, Stage
from export.sample import write_sample_bundle
from export.triton import write_repository

CLOCK = MonotonicClock()
ASKERS = (1, 4, 16)
AMPLE_S = 60.0
_CALM_S = 0.05  # threads of the call before spin for a while, on the cores of the next one
SIDES = ("in_process", "triton")


@contextmanager
def running_server(repository: Path) -> Iterator[str]:
    """Runs tritonserver and gives its address once models are loaded."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parent.parent / "examples/tritonserver.sh"
    options = ["--allow-http=false", "--allow-metrics=false", "--grpc-address=127.0.0.1"]
    process = subprocess.Popen(
        ["bash", str(script), f"--model-repository={repository}", f"--grpc-port={port}", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = service_pb2.ServerReadyRequest()
            until = time.monotonic() + AMPLE_S
            while not stub.ServerReady(request, timeout=AMPLE_S, wait_for_ready=True).ready:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("tritonserver did not start")
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@asynccontextmanager
async def pipelines(directory: Path, url: str) -> AsyncIterator[dict[str, Pipeline]]:
    threads = num_usable_cpus()
    here = Config(cache=CacheConfig(max_bytes=0))
    there = Config(cache=here.cache, triton=TritonConfig(url=url))
    runtime = Runtime(num_threads=threads)
    bundle = load_bundle(directory, runtime)
    remote = await connect(url, directory, bundle.manifest, CLOCK)
    try:
        yield {
            "in_process": Pipeline(bundle, runtime, here, CLOCK),
            "triton": Pipeline(bundle, runtime, there, CLOCK, remote=remote),
        }
    finally:
        await remote.close()
        runtime.close()


async def call_times(both: dict[str, Pipeline], num_calls: int) -> dict[str, dict[str, float]]:
    """Returns milliseconds by "stage variant" and side; the largest model run of each stage."""
    found: dict[str, dict[str, float]] = {}
    seen: set[Stage] = set()
    for work, make_row in kinds_of_work(both["triton"].bundle):
        if work.stage in seen:
            continue
        seen.add(work.stage)
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(num_calls + 1):
            row = make_row()
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                await asyncio.sleep(_CALM_S)
                started_s = CLOCK.now_s()
                await both[side].worker.models.run(work, [row])
                if number:  # the first run is slow
                    times[side].append((CLOCK.now_s() - started_s) * 1000)
        name = " ".join([work.stage.value, *map(str, work.variant)])
        found[name] = {side: round(statistics.median(t), 2) for side, t in times.items()}
    return found


async def ask(pipeline: Pipeline, number: int) -> float:
    """Returns the milliseconds of an answer; every third question is of the same scenario."""
    scenarios = list(pipeline.bundle.scenarios.values())
    scenario = scenarios[number % len(scenarios)]
    query = f"things {number}"
    started_s = CLOCK.now_s()
    answer = await pipeline.recommend(
        Question(
            scenario=scenario,
            query=query[: len(query) // 2] if scenario.completes_prefix else query,
            num_suggestions=scenario.num_suggestions,
            deadline=Deadline.after(AMPLE_S, CLOCK),
        ),
        Probe(CLOCK),
    )
    assert not answer.omissions, answer.omissions
    return (CLOCK.now_s() - started_s) * 1000


async def one_round(pipeline: Pipeline, num_askers: int, num_questions: int) -> list[float]:
    numbers = iter(range(num_questions))

    async def asker() -> list[float]:
        return [await ask(pipeline, number) for number in numbers]

    times = await asyncio.gather(*(asker() for _ in range(num_askers)))
    return [t for some in times for t in some]


async def measure(both: dict[str, Pipeline], rounds: int, num_questions: int) -> dict[str, object]:
    figures: dict[str, object] = {}
    for num_askers in ASKERS:
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        rates: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(rounds):
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                started_s = CLOCK.now_s()
                times[side] += await one_round(both[side], num_askers, num_questions)
                rates[side].append(num_questions / (CLOCK.now_s() - started_s))
        figures[str(num_askers)] = {
            f"{side}_{unit}": round(statistics.median(values[side]), 2)
            for unit, values in (("ms", times), ("rps", rates))
            for side in SIDES
        }
        print(f"{num_askers} askers: {figures[str(num_askers)]}", flush=True)
    return figures


async def run(arguments: argparse.Namespace, bundle: Path, url: str) -> dict[str, object]:
    async with pipelines(bundle, url) as both:
        calls = await call_times(both, arguments.calls)
        for name, figures in calls.items():
            print(f"{name}: {figures}", flush=True)
        askers = await measure(both, arguments.rounds, arguments.questions)
    return {"calls_ms": calls, "askers": askers}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", default="small", choices=["tiny", "small"])
    parser.add_argument("--precision", default="int8", choices=["int8", "fp32"])
    parser.add_argument("--bundle", type=Path, help="in place of random weights")
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of each instance; 0: shared out")
    parser.add_argument("--calls", type=int, default=30, help="of each kind of model run")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--questions", type=int, default=48, help="of each round")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server ends with this process
    threads = arguments.threads or max(1, num_usable_cpus() // arguments.instances)
    with tempfile.TemporaryDirectory() as temporary:
        bundle, repository = arguments.bundle, Path(temporary) / "repository"
        if bundle is None:
            bundle = Path(temporary) / "bundle"
            write_sample_bundle(bundle, size=arguments.size, precision=arguments.precision)
        write_repository(
            bundle, repository, backend="python", num_instances=arguments.instances,
            num_threads=threads,
        )  # fmt: skip
        with running_server(repository) as url:
            figures = asyncio.run(run(arguments, bundle, url))
    told = {"cores": num_usable_cpus(), "instances": arguments.instances, "threads": threads}
    print(json.dumps({**told, **figures}))


if __name__ == "__main__":
    main()
