"""The load generator against a real gRPC server that answers in known ways."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from grpc import aio

from benchmarks.load.arguments import parse
from benchmarks.load.arrivals import due_s
from benchmarks.load.record import read
from benchmarks.load.run import run
from benchmarks.load.settings import Load
from engine import errors
from queryrec.v1 import query_recommender_service_pb2 as service_pb2
from queryrec.v1 import scenario_pb2, stage_pb2, suggestion_pb2
from queryrec.v1.query_recommender_service_pb2_grpc import (
    QueryRecommenderServiceServicer,
    add_QueryRecommenderServiceServicer_to_server,
)

STAGE_US = {"total": 9000, "queue": 500, "encode": 1000, "generate": 5000}
STALL_S = 0.5
LOAD = (sys.executable, "-m", "benchmarks.load")


class Servicer(QueryRecommenderServiceServicer):
    def __init__(self) -> None:
        self.requests: list[service_pb2.RecommendRequest] = []
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def ListScenarios(self, request, context):
        return service_pb2.ListScenariosResponse(
            scenarios=[scenario_pb2.Scenario(name=n) for n in ("completion", "suggestion")]
        )

    async def Recommend(self, request, context):
        self.requests.append(request)
        if request.query == "stall":
            self.is_open.clear()
            asyncio.get_running_loop().call_later(STALL_S, self.is_open.set)
        await self.is_open.wait()
        if request.query == "refused":
            await errors.abort(context, errors.QueueFull("recommend"))
        response = service_pb2.RecommendResponse(
            suggestions=[suggestion_pb2.Suggestion(text="x", position=1)],
            stage_timings=[
                stage_pb2.StageTiming(stage=stage, duration_us=us) for stage, us in STAGE_US.items()
            ],
        )
        if request.query == "degraded":
            response.omissions.add(
                stage="score",
                kind=stage_pb2.OMISSION_KIND_SKIPPED,
                reason=stage_pb2.OMISSION_REASON_BUDGET,
            )
        if request.query == "cached":
            response.omissions.add(
                stage="generate",
                kind=stage_pb2.OMISSION_KIND_SKIPPED,
                reason=stage_pb2.OMISSION_REASON_CACHED,
            )
        return response


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, Servicer]]:
    """Serves in this process and gives the address."""
    server, servicer = aio.server(), Servicer()
    add_QueryRecommenderServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        await server.stop(grace=None)


async def measure(
    tmp_path: Path, *arguments: str, lines: str = "refused\ndegraded\ncached\nplain\n\n"
) -> tuple[dict, Servicer]:
    queries = tmp_path / "queries.txt"
    queries.write_text(lines)
    async with serving() as (target, servicer):
        load = await asyncio.create_subprocess_exec(
            *LOAD,
            f"--target={target}",
            f"--queries={queries}",
            "--deadline-ms=30000",  # the machine may be busy
            *arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await load.communicate()
    assert load.returncode == 0, err.decode()
    return json.loads(out.splitlines()[-1]), servicer


async def test_the_time_of_a_run_begins_once_its_requests_are_made():
    queries = tuple(f"query {i}" for i in range(400))
    async with serving() as (target, _):
        load = Load(
            target=target, queries=queries, mix={"suggestion": 1.0}, rate_rps=100.0, duration_s=0.5
        )
        done = await run(load)
    after_s = sorted(outcome.due_s - done.started_s for outcome in done.outcomes)
    assert after_s == pytest.approx(due_s(load).tolist())
    assert done.elapsed_s >= after_s[-1]


async def test_open_loop_sends_the_rate_asked_for_and_counts_every_kind_of_answer(tmp_path):
    figures, servicer = await measure(
        tmp_path, "--rate=200", "--duration=1", "--budget-ms=1000", "--seed=3"
    )

    num = figures["num_requests"]
    assert len(servicer.requests) == num
    assert 140 <= num <= 260, "Poisson with mean 200"
    refused = sum(r.query == "refused" for r in servicer.requests)
    degraded = sum(r.query == "degraded" for r in servicer.requests)
    assert abs(refused - num / 4) <= 1, "queries are sent in turn"
    assert figures["errors"] == refused
    assert figures["errors_by_reason"] == {"ERROR_REASON_QUEUE_FULL": refused}
    assert figures["degraded"] == round(degraded / (num - refused), 4)
    assert figures["in_budget"] <= round((num - refused) / num, 4)
    assert figures["overhead_p50_ms"] == 3.0
    assert figures["overhead_without_queue_p50_ms"] == 2.5
    assert figures["stages"]["generate"] == {"num": num - refused, "p50_ms": 5.0, "p99_ms": 5.0}
    assert figures["efforts"] == {"full": num - refused - degraded, "reduced": degraded}
    assert figures["statuses"] == {"OK": num - refused, "RESOURCE_EXHAUSTED": refused}
    assert set(figures["omissions"]) == {"generate skipped cached", "score skipped budget"}
    assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"] <= figures["p999_ms"]
    assert all(r.latency_budget.ToMilliseconds() == 1000 for r in servicer.requests)


async def test_the_same_seed_sends_the_same_requests(tmp_path):
    sent = []
    for _ in range(2):
        _, servicer = await measure(
            tmp_path,
            "--rate=50",
            "--duration=0.5",
            "--seed=5",
            "--scenarios=completion,suggestion=2",
        )
        sent.append(sorted(r.SerializeToString(deterministic=True) for r in servicer.requests))

    assert sent[0] == sent[1]
    assert {r.scenario for r in servicer.requests} == {"completion", "suggestion"}
    assert all(
        any(q.startswith(r.query) for q in ("refused", "degraded", "cached", "plain"))
        for r in servicer.requests
    )


async def test_a_stall_shows_in_every_request_that_was_due_meanwhile(tmp_path):
    lines = "stall\n" + "\n".join(f"plain {i}" for i in range(400))
    arguments = ("--prompts=order", "--arrivals=constant", "--rate=100", "--duration=1")
    out = tmp_path / "run.json"
    figures, servicer = await measure(tmp_path, *arguments, f"--out={out}", lines=lines)

    assert len(servicer.requests) == figures["num_requests"] == 100
    latencies = read(out).latencies()
    # Half of the requests were due while the server stood still; waiting for answers before sending
    # would have measured one slow request.
    late = latencies.counts[latencies.value_ms > 1000 * STALL_S / 5].sum()
    assert late >= 100 * STALL_S * 0.7


async def test_a_replay_sends_the_files_queries_at_its_times(tmp_path):
    out = tmp_path / "run.json"
    lines = "100.0\tplain\n100.2\tplain\n101.2\tcached\n190\tnever sent\n"
    arguments = ("--replay", "--speed=2", "--duration=5", f"--out={out}")
    figures, servicer = await measure(tmp_path, *arguments, lines=lines)

    assert [r.query for r in servicer.requests] == ["plain", "plain", "cached"]
    assert figures["arrivals"] == "replay"
    assert sum(second.num_due for second in read(out).seconds) == 3


async def test_a_saved_run_becomes_a_page_and_can_be_compared(tmp_path):
    out, html = tmp_path / "run.json", tmp_path / "run.html"
    await measure(tmp_path, "--rate=100", "--duration=1", f"--out={out}", f"--html={html}")

    text = html.read_text()
    assert text.count("<svg") == 2
    assert not re.search(r"(?:src|href)=\"http", text), "nothing is fetched"
    compare = await asyncio.create_subprocess_exec(
        *LOAD, "compare", out, out, stdout=subprocess.PIPE
    )
    printed, _ = await compare.communicate()
    assert compare.returncode == 0
    ratios = json.loads(printed.splitlines()[-1])
    assert ratios["p50_ms"]["ratio"] == 1
    assert ratios["p50_ms"]["low"] <= 1 <= ratios["p50_ms"]["high"]


async def test_idle_sends_one_request_at_a_time(tmp_path):
    figures, servicer = await measure(tmp_path, "--idle", "--duration=2")

    assert figures["mode"] == "idle"
    assert figures["num_requests"] == len(servicer.requests) > 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate=0"], "--rate is 0.0; it must be above 0"),
        (["--rate=nan"], "--rate is nan"),
        (["--rate=-5"], "--rate is -5.0"),
        (["--rate=1e9"], "at most 100000 requests a second"),
        (["--rate=100000", "--duration=3600"], "are 360000000 requests"),
        (["--duration=0"], "--duration is 0.0"),
        (["--duration=inf"], "--duration is inf"),
        (["--budget-ms=-1"], "--budget-ms is -1.0"),
        (["--deadline-ms=10"], "--deadline-ms is 10.0, below --budget-ms"),
        (["--connections=0"], "--connections is 0"),
        (["--scenarios=suggestion=-1"], "--scenarios has 'suggestion=-1'"),
        (["--scenarios="], "--scenarios has ''"),
        (["--ramp-to=0"], "--ramp-to is 0.0"),
        (["--burst=5"], "--burst is '5'; write RATE:EVERY:LENGTH"),
        (["--burst=5:1:2"], "--burst has a length that is 2.0"),
        (["--zipf=0"], "--zipf is 0.0"),
        (["--replay"], "--queries line 1: --replay needs SECONDS<tab>QUERY"),
        (["--replay", "--speed=0"], "--speed is 0.0"),
        (["--queries=nowhere.txt"], "--queries cannot be read"),
        (["--queries=/dev/null"], "--queries has no query"),
    ],
)
def test_a_load_of_nonsense_is_refused_with_what_would_be_right(
    tmp_path, capsys, arguments, message
):
    queries = tmp_path / "queries.txt"
    queries.write_text("shoes\n")

    with pytest.raises(SystemExit) as refusal:
        parse([f"--queries={queries}", *arguments])

    assert refusal.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_missing_engine_is_named_and_prints_no_figures(tmp_path):
    queries = tmp_path / "queries.txt"
    queries.write_text("shoes\n")

    run = subprocess.run(
        [*LOAD, "--target=127.0.0.1:1", f"--queries={queries}"],
        capture_output=True,
        text=True,
    )

    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("no engine answers at 127.0.0.1:1: UNAVAILABLE")
