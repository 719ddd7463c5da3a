"""The engine as a process: refusals at start, dry run, orderly exit."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from engine.formats.manifest import read_manifest
from queryrec.client import QueryRecClient, QueryRecError
from queryrec.v1 import query_recommender_service_pb2 as pb
from tests.blocking import blocking_stub

SERVE = (sys.executable, "-m", "engine", "serve")


def serve(*arguments: str, feedback: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SERVE, "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PYTHONSAFEPATH": "1",
            "QUERYREC_FEEDBACK_DIRECTORY": str(feedback),
            "QUERYREC_MODELS_MAX_BATCH_SIZE": "2",
            **environment,
        },
    )


def test_a_bundle_with_a_changed_byte_is_refused_at_start_by_name(tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    content = bytearray((bundle / "encoder.onnx").read_bytes())
    content[-1] ^= 1
    (bundle / "encoder.onnx").write_bytes(content)
    run = serve("--bundle", str(bundle), feedback=tmp_path / "feedback")
    assert run.returncode == 1
    assert "encoder.onnx: content differs" in run.stderr
    assert "Traceback" not in run.stderr
    assert "queryrec-engine: serving" not in run.stdout


def test_a_wrong_setting_is_refused_at_start_by_name(tiny_bundle, tmp_path):
    run = serve(
        *("--bundle", str(tiny_bundle)), feedback=tmp_path / "f", QUERYREC_CACHE_TTL_S="never"
    )
    assert run.returncode == 1
    assert "cache.ttl_s" in run.stderr


def test_a_share_for_no_canary_is_refused(tiny_bundle, tmp_path):
    flags = ("--bundle", str(tiny_bundle), "--canary-share", "0.5")
    run = serve(*flags, feedback=tmp_path / "f")
    assert run.returncode == 1
    assert "--canary-share needs --canary" in run.stderr


def test_a_dry_run_prints_costs_and_answers_for_every_scenario(tiny_bundle, tmp_path):
    run = serve("--bundle", str(tiny_bundle), "--dry-run", feedback=tmp_path / "feedback")
    assert run.returncode == 0, run.stderr
    for scenario in ("suggestion", "completion", "clarification"):
        assert f"{scenario}: " in run.stdout
    assert "predicted cost" in run.stdout


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_in_order(tiny_bundle, tmp_path, number, start_engine, stop_engine):
    engine = start_engine(tiny_bundle, tmp_path)
    assert stop_engine(engine, number) == 0
    log = (tmp_path / "stderr.txt").read_text()
    assert "Traceback" not in log
    assert '"level":"error"' not in log


def begin(
    tmp_path: Path, *flags: str, inside: Sequence[str] = ()
) -> tuple[subprocess.Popen[str], Path]:
    """Starts an engine for a bundle that is not there. It waits to be given settings in a file."""
    config = tmp_path / "engine.toml"
    os.mkfifo(config)  # whoever reads it waits until somebody writes to it
    engine = subprocess.Popen(
        [*inside, *SERVE, "--bundle", tmp_path / "nosuch", "--config", config, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONSAFEPATH": "1",
            "QUERYREC_FEEDBACK_DIRECTORY": str(tmp_path / "feedback"),
        },
    )
    return engine, config


def test_sighup_does_not_end_an_engine_that_is_starting(tmp_path):
    engine, config = begin(tmp_path)
    with config.open("w"):  # it has come to the reading of its settings
        engine.send_signal(signal.SIGHUP)
    _, complaints = engine.communicate(timeout=120)
    assert engine.returncode == 1
    assert "is this a bundle?" in complaints


@pytest.mark.parametrize(("flags", "status"), [((), 0), (("--dry-run",), 143)])
def test_sigterm_ends_an_engine_that_is_starting(tmp_path, flags, status):
    engine, config = begin(tmp_path, *flags)
    with config.open("w"):
        engine.send_signal(signal.SIGTERM)
        _, complaints = engine.communicate(timeout=120)
    assert (engine.returncode, complaints) == (status, "")


CONTAINED = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def can_contain() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*CONTAINED, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_contain(), reason="this user may make no namespace of processes")
def test_sigterm_reaches_the_first_process_of_a_container_that_is_starting(tmp_path):
    unshare, config = begin(tmp_path, inside=CONTAINED)
    with config.open("w"):
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        _, complaints = unshare.communicate(timeout=120)
    assert (unshare.returncode, complaints) == (0, "")


def test_no_query_text_is_logged(tiny_bundle, tmp_path, start_engine, stop_engine):
    verbose = {"QUERYREC_LOG_LEVEL": "debug"}
    engine = start_engine(tiny_bundle, tmp_path, environment=verbose)
    asked = subprocess.run(
        [
            *(sys.executable, "-m", "engine", "ask", "my very secret query"),
            *("--target", engine.target, "--timeout-ms", "10000", "--clicks", "1"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert asked.returncode == 0, asked.stderr
    engine.process.terminate()
    printed = "".join(engine.lines) + engine.process.stdout.read()
    assert stop_engine(engine) == 0
    logged = (tmp_path / "stderr.txt").read_text()
    assert "Recommend" in logged
    assert "secret" not in logged + printed


async def test_a_full_disk_refuses_feedback_and_nothing_else_until_there_is_room(
    tiny_bundle, tmp_path, start_engine, stop_engine
):
    engine = start_engine(tiny_bundle, tmp_path)
    try:
        async with QueryRecClient(engine.target, timeout_s=20) as client:
            answer = await client.recommend("suggestion", "wireless mouse")
            events = [answer.event("impression", s.position) for s in answer.suggestions]
            # No file of the process may grow beyond 100 bytes: a write fails as on a full disk.
            limits = resource.prlimit(engine.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(engine.process.pid, resource.RLIMIT_FSIZE, (100, limits[1]))
            for _ in range(2):
                with pytest.raises(QueryRecError) as refusal:
                    await client.record_feedback(events)
                assert refusal.value.code is grpc.StatusCode.UNAVAILABLE
                assert refusal.value.reason == "ERROR_REASON_FEEDBACK_NOT_STORED"
                assert (await client.recommend("suggestion", "garden chair")).suggestions
            resource.prlimit(engine.process.pid, resource.RLIMIT_FSIZE, limits)
            assert (await client.record_feedback(events)).num_accepted == len(events)
    finally:
        assert stop_engine(engine) == 0
    assert list(engine.feedback_directory.glob("*.jsonl")), "what was accepted is there"


@pytest.mark.parametrize("watch_s", ["0", "0.1"])
def test_a_link_that_leads_elsewhere_is_followed_on_sighup_or_unasked(
    tiny_bundle, other_bundle, tmp_path, following, watch_s
):
    link = tmp_path / "current"
    link.symlink_to(tiny_bundle)
    engine, next_line = following(link, tmp_path, environment={"QUERYREC_SERVER_WATCH_S": watch_s})
    (tmp_path / "new").symlink_to(other_bundle)
    (tmp_path / "new").rename(link)
    if watch_s == "0":
        engine.process.send_signal(signal.SIGHUP)
    old, new = (read_manifest(d).bundle_id for d in (tiny_bundle, other_bundle))
    assert next_line().startswith(f"queryrec-engine: bundle {new} takes over from {old} after ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_engine_whose_lines_nobody_can_read_goes_on_following_the_link(
    tiny_bundle, other_bundle, tmp_path, start_engine, stop_engine, workers
):
    link = tmp_path / "current"
    link.symlink_to(tiny_bundle)
    engine = start_engine(link, tmp_path, "--workers", workers)
    engine.process.stdout.close()
    try:
        for directory in (other_bundle, tiny_bundle, other_bundle):
            (tmp_path / "new").symlink_to(directory)
            (tmp_path / "new").rename(link)
            engine.process.send_signal(signal.SIGHUP)
            wait_until_all_serve(engine.target, read_manifest(directory).bundle_id)
    finally:
        assert stop_engine(engine) == 0
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_engine_of_which_nobody_reads_a_line_answers_swaps_and_ends_in_order(
    tiny_bundle, other_bundle, tmp_path, start_engine, stop_engine, workers
):
    link, log = tmp_path / "current", tmp_path / "stderr.txt"
    link.symlink_to(tiny_bundle)
    os.mkfifo(log)
    unread = [os.open(log, os.O_RDWR | os.O_NONBLOCK)]
    fill(unread[0])
    environment = {"QUERYREC_LOG_LEVEL": "debug"}
    engine = start_engine(link, tmp_path, "--workers", workers, environment=environment)
    # Its lines were read until it served.
    unread.append(os.open(f"/proc/{engine.process.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK))
    fill(unread[1])
    try:
        for directory in (other_bundle, tiny_bundle):
            (tmp_path / "new").symlink_to(directory)
            (tmp_path / "new").rename(link)
            engine.process.send_signal(signal.SIGHUP)
            wait_until_all_serve(engine.target, read_manifest(directory).bundle_id)
        with grpc.insecure_channel(engine.target) as channel:
            request = pb.RecommendRequest(scenario="suggestion", query="a lamp")
            assert blocking_stub(channel).Recommend(request, timeout=30).suggestions
    finally:
        assert stop_engine(engine) == 0
        for descriptor in unread:
            os.close(descriptor)


def test_an_engine_whose_complaint_nobody_reads_ends_nevertheless(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    fill(writing)
    os.set_blocking(writing, True)
    command = [*SERVE, "--bundle", tmp_path / "nosuch", "--port", "0"]
    environment = {**os.environ, "QUERYREC_FEEDBACK_DIRECTORY": str(tmp_path / "feedback")}
    ended = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=writing, timeout=120, env=environment
    )
    assert ended.returncode == 1
    for descriptor in (reading, writing):
        os.close(descriptor)


def fill(descriptor: int) -> None:
    """Writes to a pipe until there is no room for a single byte."""
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(descriptor, bytes(size))


def wait_until_all_serve(target: str, bundle_id: str) -> None:
    """Returns once eight connections in a row are answered with a bundle: all workers', that is."""
    num_left, deadline_s = 8, time.monotonic() + 120
    while num_left:
        assert time.monotonic() < deadline_s
        with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = blocking_stub(channel)
            listed = stub.ListScenarios(pb.ListScenariosRequest(), timeout=30)
        num_left = num_left - 1 if listed.bundle_id == bundle_id else 8


def test_a_canary_shares_the_sessions(
    tiny_bundle, other_bundle, tmp_path, start_engine, stop_engine
):
    flags = ("--canary", str(other_bundle), "--canary-share", "1")
    engine = start_engine(tiny_bundle, tmp_path, *flags)
    try:
        with grpc.insecure_channel(engine.target) as channel:
            stub = blocking_stub(channel)
            listed = stub.ListScenarios(pb.ListScenariosRequest(), timeout=30)
            request = pb.RecommendRequest(scenario="suggestion", query="a lamp", session_id="s")
            answer = stub.Recommend(request, timeout=30)
    finally:
        assert stop_engine(engine) == 0
    assert listed.bundle_id == read_manifest(tiny_bundle).bundle_id
    assert answer.bundle_id == read_manifest(other_bundle).bundle_id
