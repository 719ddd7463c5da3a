"""The load generator against a real gRPC server that answers in known ways."""

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from benchmarks.load.arrivals import due_s
from benchmarks.load.caller import Caller
from benchmarks.load.figures import summary
from benchmarks.load.record import read
from benchmarks.load.run import _open_loop, run
from benchmarks.load.settings import Load
from queryrec.v1 import query_recommender_service_pb2 as service_pb2
from tests.benchmarks.known_answers import STALL_S, Servicer, serving

LOAD = (sys.executable, "-m", "benchmarks.load")
LINES = "refused\ndegraded\ncached\nplain\n\n"


async def started(
    tmp_path: Path, target: str, *arguments: str, lines: str = LINES
) -> asyncio.subprocess.Process:
    queries = tmp_path / "queries.txt"
    queries.write_text(lines)
    return await asyncio.create_subprocess_exec(
        *LOAD,
        f"--target={target}",
        f"--queries={queries}",
        "--deadline-ms=30000",  # the machine may be busy
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell has what it starts in the background ignore it, and so what that starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


async def measure(
    tmp_path: Path, *arguments: str, lines: str = LINES
) -> tuple[dict[str, Any], Servicer]:
    async with serving() as (target, servicer):
        load = await started(tmp_path, target, *arguments, lines=lines)
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
    assert done.elapsed_s >= load.duration_s, "the quiet end of a run counts"


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
    cached = sum(r.query == "cached" for r in servicer.requests)
    assert figures["cached"] == round(cached / (num - refused), 4)
    assert (figures["mix"], figures["asked_rps"]) == ({"suggestion": 1.0}, 200.0)
    assert figures["offered_rps"] == num


async def figures_of(**changes: Any) -> dict[str, Any]:
    """Returns the figures of ten requests in half a second, or of what is changed."""
    plain = {"queries": ("plain",), "arrivals": "constant", "rate_rps": 20.0, "duration_s": 0.5}
    asked = {"mix": {"suggestion": 1.0}, "deadline_ms": 30_000.0} | plain | changes
    async with serving() as (target, _):
        load = Load(target=target, **asked)
        return summary(load, await run(load))


async def test_what_only_newer_engines_know_counts_as_a_failure_of_a_stage():
    figures = await figures_of(queries=("from a newer engine",))
    assert figures["omissions"] == {"paint degraded failure": 1.0}
    assert (figures["errors"], figures["efforts"]) == (0, {"reduced": 10})


async def test_an_answer_that_is_no_message_is_an_error():
    method = grpc.unary_unary_rpc_method_handler(unreadable)
    known = grpc.unary_unary_rpc_method_handler(
        Servicer().ListScenarios,
        response_serializer=service_pb2.ListScenariosResponse.SerializeToString,
    )
    server = aio.server()
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler(
                "queryrec.v1.QueryRecommenderService",
                {"Recommend": method, "ListScenarios": known},
            )
        ]
    )
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        done = await run(
            Load(
                target=target,
                queries=("shoes",),
                mix={"suggestion": 1.0},
                arrivals="constant",
                rate_rps=20.0,
                duration_s=0.5,
                deadline_ms=30_000.0,
            )
        )
    finally:
        await server.stop(grace=None)
    assert [o.error for o in done.outcomes] == ["UNREADABLE_ANSWER"] * 10


async def test_what_goes_wrong_in_a_call_ends_the_run():
    async with serving() as (target, _):
        caller = Caller(Load(target=target, queries=("plain",), mix={"suggestion": 1.0}))
        no_request: Any = None
        with pytest.raises(ExceptionGroup):
            await _open_loop([(0.0, no_request), (60.0, no_request)], caller, time.perf_counter())
        await caller.close()


async def unreadable(request: bytes, context: object) -> bytes:
    return b"\xff\xff\xff"


async def test_ctrl_c_keeps_what_was_answered(tmp_path):
    out = tmp_path / "run.json"
    async with serving() as (target, servicer):
        load = await started(tmp_path, target, "--rate=100", "--duration=600", f"--out={out}")
        await servicer.has_50.wait()
        load.send_signal(signal.SIGINT)
        printed, err = await load.communicate()
    assert load.returncode == 130
    assert b"cut short after" in err
    assert b"Traceback" not in err
    figures = json.loads(printed.splitlines()[-1])
    assert figures["cut_short"] is True
    assert 0 < figures["num_requests"] <= len(servicer.requests)
    assert figures["duration_s"] < 600
    assert read(out).figures["num_requests"] == figures["num_requests"]


async def test_figures_are_printed_also_where_they_cannot_be_written(tmp_path):
    async with serving() as (target, _):
        load = await started(tmp_path, target, "--rate=40", "--duration=0.5", "--out=/dev/full")
        printed, err = await load.communicate()
    assert (load.returncode, b"No space left" in err) == (1, True)
    assert json.loads(printed.splitlines()[-1])["num_requests"] > 0


async def test_a_run_without_a_request_is_refused(tmp_path):
    async with serving() as (target, _):
        load = await started(tmp_path, target, "--rate=0.01", "--duration=0.5")
        printed, err = await load.communicate()
    assert (load.returncode, printed) == (1, b"")
    assert err.startswith(b"no request in 0.5 s; give a higher --rate")


async def test_what_is_offered_on_a_ramp_is_what_it_adds_up_to():
    figures = await figures_of(rate_rps=10.0, ramp_to_rps=190.0)
    assert (figures["asked_rps"], figures["offered_rps"]) == (10, 100)


async def test_a_server_that_refuses_at_once_is_not_asked_without_a_pause():
    figures = await figures_of(queries=("refused",), is_idle=True)
    assert 0 < figures["errors"] <= 5


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns the files of a key and of the certificate that it signed itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", key, "-out", pem, "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return key, pem


async def test_a_proxy_with_tls_gets_the_metadata_that_it_wants(tmp_path, certificate):
    key, pem = certificate
    tls = grpc.ssl_server_credentials([(key.read_bytes(), pem.read_bytes())])
    arguments = ("--rate=40", "--duration=0.5", "--metadata=Authorization=Bearer a=b")
    async with serving(tls) as (target, servicer):
        load = await started(tmp_path, target, f"--tls={pem}", *arguments)
        printed, err = await load.communicate()
    assert load.returncode == 0, err.decode()
    figures = json.loads(printed.splitlines()[-1])
    assert figures["statuses"]["OK"] > 0
    assert len(servicer.requests) == figures["num_requests"]
    assert servicer.authorizations == ["Bearer a=b"] * figures["num_requests"]
    assert b"Bearer" not in printed


async def test_the_same_seed_sends_the_same_requests(tmp_path):
    runs = []
    for _ in range(2):
        _, servicer = await measure(
            tmp_path,
            "--rate=50",
            "--duration=0.5",
            "--seed=5",
            "--scenarios=completion,suggestion=2",
        )
        runs.append(servicer.requests)

    first, second = (sorted(r.SerializeToString(deterministic=True) for r in run) for run in runs)
    assert first == second
    assert {r.scenario for r in runs[-1]} == {"completion", "suggestion"}
    assert all(
        any(q.startswith(r.query) for q in ("refused", "degraded", "cached", "plain"))
        for r in runs[-1]
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


async def test_a_replay_says_which_lines_its_duration_leaves_out(tmp_path):
    async with serving() as (target, _):
        arguments = ("--replay", "--duration=1")
        lines = "100.0\tplain\n100.2\tplain\n190\tplain\n"
        load = await started(tmp_path, target, *arguments, lines=lines)
        printed, err = await load.communicate()
    assert load.returncode == 0, err.decode()
    assert err.startswith(b"lines of --queries left out, as later than --duration of 1 s: 1\n")
    assert json.loads(printed.splitlines()[-1])["num_requests"] == 2


async def test_a_saved_run_becomes_a_page_and_can_be_compared(tmp_path):
    out, html = tmp_path / "run.json", tmp_path / "run.html"
    await measure(tmp_path, "--rate=100", "--duration=1", f"--out={out}", f"--html={html}")

    text = html.read_text()
    assert text.count("<svg") == 2
    assert "errors a second" in text
    assert "requests a second" in text
    assert not re.search(r"(?:src|href)=\"http", text), "nothing is fetched"
    compare = await asyncio.create_subprocess_exec(
        *LOAD, "compare", out, out, stdout=subprocess.PIPE
    )
    printed, _ = await compare.communicate()
    assert compare.returncode == 0
    changes = json.loads(printed.splitlines()[-1])
    assert changes["p50_ms"]["ratio"] == 1
    assert changes["p50_ms"]["low"] <= 1 <= changes["p50_ms"]["high"]
    assert changes["errors_share"]["difference"] == 0


async def test_idle_sends_one_request_at_a_time(tmp_path):
    figures, servicer = await measure(tmp_path, "--idle", "--duration=2")

    assert figures["mode"] == "idle"
    assert figures["num_requests"] == len(servicer.requests) > 0
    assert servicer.most_under_way == 1


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
