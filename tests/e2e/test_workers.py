"""Several processes behind one port: shared keys, feedback, restarts, swaps, and an orderly end."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from engine.feedback.segments import read_events, segments
from engine.formats.manifest import read_manifest
from queryrec.v1 import feedback_pb2
from queryrec.v1 import query_recommender_service_pb2 as pb
from tests.blocking import BlockingStub, blocking_stub

TIMEOUT_S = 120
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@contextlib.contextmanager
def connected(target: str) -> Iterator[BlockingStub]:
    """A stub with a connection of its own, which one of the workers gets."""
    with grpc.insecure_channel(target, options=OWN_CONNECTION) as channel:
        yield blocking_stub(channel)


def question(query: str) -> pb.RecommendRequest:
    return pb.RecommendRequest(scenario="suggestion", query=query)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: subprocess.Popen[str]) -> set[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return {int(pid) for pid in listed.split()}


def test_any_worker_takes_the_feedback_for_any_answer_and_all_of_it_is_read(
    tiny_bundle, tmp_path, start_engine, stop_engine
):
    engine = start_engine(tiny_bundle, tmp_path, "--workers", "2")
    try:
        assert len(children(engine.process)) == 2
        with connected(engine.target) as stub:
            token = stub.Recommend(question("a lamp"), timeout=TIMEOUT_S).attribution_token
        for i in range(24):  # all at the same worker once in eight million times
            event = feedback_pb2.FeedbackEvent(
                event_id=str(i),
                attribution_token=token,
                kind="FEEDBACK_KIND_CLICK",
                position=1,
            )
            event.time.GetCurrentTime()
            with connected(engine.target) as stub:
                receipt = stub.RecordFeedback(
                    pb.RecordFeedbackRequest(events=[event]), timeout=TIMEOUT_S
                )
            assert (receipt.num_accepted, list(receipt.refusals)) == (1, [])
    finally:
        assert stop_engine(engine) == 0
    written = segments(engine.feedback_directory)
    assert len(written) == 2
    assert {e.event_id for e in read_events(written)} == {str(i) for i in range(24)}
    assert len(list(read_events(written))) == 24


def test_a_worker_that_is_killed_starts_again_while_the_other_answers(
    tiny_bundle, tmp_path, following
):
    engine, next_line = following(tiny_bundle, tmp_path, "--workers", "2")
    before = children(engine.process)
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    with connected(engine.target) as stub:
        # Waits for a connection, should the first one still have gone to the dead.
        answer = stub.Recommend(question("a lamp"), timeout=TIMEOUT_S, wait_for_ready=True)
    assert answer.suggestions
    identity = read_manifest(tiny_bundle).bundle_id
    assert f": serving {identity} again" in next_line()
    after = children(engine.process)
    assert len(after) == 2
    assert before - after == {killed}
    assert "ended with SIGKILL; starts again in 0.5 s" in (tmp_path / "stderr.txt").read_text()


@pytest.mark.slow
def test_a_worker_that_stands_still_is_killed_and_starts_again(tiny_bundle, tmp_path, following):
    engine, next_line = following(tiny_bundle, tmp_path, "--workers", "2")
    stopped = min(children(engine.process))
    os.kill(stopped, signal.SIGSTOP)
    assert next_line().endswith(f": serving {read_manifest(tiny_bundle).bundle_id} again")
    assert stopped not in children(engine.process)
    assert "gave no sign of life for 10 s; killed" in (tmp_path / "stderr.txt").read_text()


def test_a_link_that_leads_elsewhere_is_followed_by_all_workers_on_sighup(
    tiny_bundle, other_bundle, tmp_path, following
):
    link = tmp_path / "current"
    link.symlink_to(tiny_bundle)
    engine, next_line = following(link, tmp_path, "--workers", "2")
    link.unlink()
    link.symlink_to(other_bundle)
    engine.process.send_signal(signal.SIGHUP)
    old, new = read_manifest(tiny_bundle).bundle_id, read_manifest(other_bundle).bundle_id
    for number in (1, 2):
        expected = f"queryrec-engine: worker {number}: bundle {new} takes over from {old} after"
        assert next_line().startswith(expected)
    for _ in range(8):
        with connected(engine.target) as stub:
            assert stub.ListScenarios(pb.ListScenariosRequest(), timeout=TIMEOUT_S).bundle_id == new
    os.kill(min(children(engine.process)), signal.SIGKILL)
    assert next_line().endswith(f"serving {new} again")


def test_a_canary_that_is_refused_keeps_no_worker_from_the_main_bundle(
    tiny_bundle, other_bundle, tmp_path, following
):
    link, canary = tmp_path / "current", tmp_path / "canary"
    for each in (link, canary):
        each.symlink_to(tiny_bundle)
    engine, next_line = following(link, tmp_path, "--canary", str(canary), "--workers", "2")
    for each, directory in ((link, other_bundle), (canary, tmp_path / "nosuch")):
        each.unlink()
        each.symlink_to(directory)
    engine.process.send_signal(signal.SIGHUP)
    old, new = (read_manifest(d).bundle_id for d in (tiny_bundle, other_bundle))
    for number in (1, 2):
        assert f"worker {number}: bundle {new} takes over from {old} after" in next_line()
    wait_until(lambda: f"canary refused, {old} goes on" in (tmp_path / "stderr.txt").read_text())
    os.kill(min(children(engine.process)), signal.SIGKILL)
    assert next_line().endswith(f"serving {new} again")


def test_a_worker_for_which_there_is_no_room_is_started_later(tiny_bundle, tmp_path, following):
    engine, next_line = following(tiny_bundle, tmp_path, "--workers", "2")
    pid, log = engine.process.pid, tmp_path / "stderr.txt"
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))  # no pipe can be opened
    os.kill(min(children(engine.process)), signal.SIGKILL)
    wait_until(lambda: "could not start: [Errno 24]" in log.read_text())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert next_line().endswith("again")
    assert len(children(engine.process)) == 2


def test_a_bundle_that_a_worker_refuses_is_complained_of_once_and_the_old_one_serves(
    tiny_bundle, tmp_path, following
):
    link = tmp_path / "current"
    link.symlink_to(tiny_bundle)
    engine, next_line = following(link, tmp_path, "--workers", "2")
    link.unlink()
    link.symlink_to(tmp_path / "nosuch")
    engine.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "is this a bundle?" in (tmp_path / "stderr.txt").read_text())
    link.unlink()
    link.symlink_to(tiny_bundle)
    engine.process.send_signal(signal.SIGHUP)
    identity = read_manifest(tiny_bundle).bundle_id
    for number in (1, 2):
        assert next_line().endswith(f"worker {number}: bundle {identity} is served already")
    complaint = f"bundle refused, {identity} goes on serving: {tmp_path / 'nosuch'}"
    lines = map(json.loads, (tmp_path / "stderr.txt").read_text().splitlines())
    (line,) = [line for line in lines if "refused" in line["event"]]
    assert line["event"].startswith(complaint)
    assert line["worker"] == 1


def test_sigterm_under_load_fails_no_call_that_had_arrived(
    tiny_bundle, tmp_path, start_engine, stop_engine
):
    ample = {  # no call is shed, and all that were begun have long arrived when others are refused
        "QUERYREC_SERVER_DEFAULT_BUDGET_MS": "10000",
        "QUERYREC_SERVER_LAME_DUCK_S": "3",
    }
    engine = start_engine(tiny_bundle, tmp_path, "--workers", "2", environment=ample)
    outcomes: list[tuple[bool, grpc.StatusCode]] = []  # was it begun before the signal, and status

    def hammer(caller: int) -> None:
        with connected(engine.target) as stub:
            stub.Recommend(question(f"first {caller}"), timeout=TIMEOUT_S, wait_for_ready=True)
            arrived = [
                stub.Recommend.future(question(f"thing {caller} {i}"), timeout=TIMEOUT_S)
                for i in range(20)
            ]
            ready.wait(TIMEOUT_S)
            while True:
                late = stub.Recommend.future(question(f"late {caller}"), timeout=TIMEOUT_S)
                if late.code() is not grpc.StatusCode.OK:
                    break
            outcomes.append((False, late.code()))
            outcomes.extend((True, call.code()) for call in arrived)

    ready = threading.Barrier(5)
    with ThreadPoolExecutor(4) as callers:
        done = [callers.submit(hammer, i) for i in range(4)]
        ready.wait(TIMEOUT_S)
        status = stop_engine(engine)
        for future in done:
            future.result(TIMEOUT_S)
    assert status == 0
    assert {code for was_before, code in outcomes if was_before} == {grpc.StatusCode.OK}
    # gRPC cancels what arrives in the moment in which it stops.
    assert {code for was_before, code in outcomes if not was_before} <= {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
    }
    log = (tmp_path / "stderr.txt").read_text()
    assert "Traceback" not in log
    assert '"level":"error"' not in log


def test_workers_end_if_their_supervisor_is_killed(tiny_bundle, tmp_path, start_engine):
    engine = start_engine(tiny_bundle, tmp_path, "--workers", "2")
    host, port = engine.target.split(":")
    engine.process.kill()
    engine.process.wait(TIMEOUT_S)
    engine.process.stdout.close()

    def is_closed() -> bool:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except ConnectionRefusedError:
            return True
        return False

    wait_until(is_closed)


def test_a_bundle_that_cannot_be_used_ends_it_with_one_message(tiny_bundle, tmp_path):
    run = subprocess.run(
        [
            *(sys.executable, "-m", "engine", "serve", "--port", "0", "--workers", "3"),
            *("--bundle", str(tmp_path / "nosuch")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "QUERYREC_FEEDBACK_DIRECTORY": str(tmp_path / "feedback")},
    )
    assert run.returncode == 1
    assert run.stderr.count("is this a bundle?") == 1
    assert "Traceback" not in run.stderr
