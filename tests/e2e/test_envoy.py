"""Engines behind a real Envoy, set up as `deploy/envoy.yaml` says. Needs `make envoy`."""

import json
import signal
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from engine.formats.manifest import read_manifest
from queryrec.v1 import query_recommender_service_pb2 as pb
from tests.blocking import blocking_stub
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent
ENVOY = ROOT / ".venv-envoy/bin/envoy"
TIMEOUT_S = 10
NUM_CALLERS = 4


def configured(targets: list[str], port: int, admin_port: int) -> dict[str, object]:
    """The shipped configuration, with addresses of this machine."""
    config = yaml.safe_load((ROOT / "deploy/envoy.yaml").read_text())
    config["admin"]["address"]["socket_address"]["port_value"] = admin_port
    resources = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {
        "address": "127.0.0.1",
        "port_value": port,
    }
    endpoints = []
    for target in targets:
        host, number = target.split(":")
        address = {"socket_address": {"address": host, "port_value": int(number)}}
        endpoints.append({"endpoint": {"address": address}})
    resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"] = endpoints
    return config


@pytest.fixture
def engines(request, tiny_bundle, other_bundle, tmp_path, start_engine, stop_engine):
    """Two engines that answers tell apart: they serve different bundles. Or as many as are asked.

    All further ones serve the second bundle.
    """
    running = []
    for i in range(getattr(request, "param", 2)):
        bundle = tiny_bundle if i == 0 else other_bundle
        (tmp_path / str(i)).mkdir()
        environment = {
            "QUERYREC_MODELS_NUM_THREADS": "1",  # idle threads spin, and take the other's CPU
            # Longer than Envoy's health checks take to find out that an engine drains.
            "QUERYREC_SERVER_LAME_DUCK_S": "2",
            "QUERYREC_SERVER_DEFAULT_BUDGET_MS": "10000",  # calls are not shed on a busy machine
        }
        running.append(start_engine(bundle, tmp_path / str(i), environment=environment))
    yield running
    for engine in running:
        stop_engine(engine)


@pytest.fixture
def admin_port() -> int:
    return free_port()


@pytest.fixture
def envoy(request, engines, admin_port, tmp_path) -> Iterator[str]:
    """The address of an Envoy in front of all engines.

    It may be given another timeout of health checks: on a busy machine those of the file run out.
    """
    if not ENVOY.exists():
        pytest.skip("no Envoy here: run `make envoy`")
    port = free_port()
    path = tmp_path / "envoy.json"
    config: Any = configured([e.target for e in engines], port, admin_port)
    if hasattr(request, "param"):
        cluster = config["static_resources"]["clusters"][0]
        cluster["health_checks"][0]["timeout"] = request.param
    path.write_text(json.dumps(config))
    with (tmp_path / "envoy.txt").open("w") as log:
        process = subprocess.Popen(
            [ENVOY, "-c", path, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"],
            stdout=log,
            stderr=log,
        )
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                grpc.channel_ready_future(channel).result(30)
            except grpc.FutureTimeoutError:
                pytest.fail((tmp_path / "envoy.txt").read_text())
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def counted(admin_port: int, name: str) -> int:
    """Returns what Envoy has counted of the engines."""
    url = f"http://127.0.0.1:{admin_port}/stats?filter=cluster.engines.{name}$"
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as page:
        return int(page.read().decode().rpartition(":")[2])


def wait_until_healthy(admin_port: int, num_engines: int) -> None:
    """Returns once Envoy believes that so many engines are well."""
    until_s = time.monotonic() + 30
    while counted(admin_port, "membership_healthy") != num_engines:
        assert time.monotonic() < until_s
        time.sleep(0.1)


class Callers:
    """Call through Envoy, over and over, until they are stopped."""

    def __init__(self, target: str) -> None:
        self.answered: Counter[str] = Counter()  # by bundle
        self.failed: list[grpc.StatusCode] = []
        self._target = target
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(NUM_CALLERS)

    def __enter__(self) -> "Callers":
        self._done = [self._pool.submit(self._call, i) for i in range(NUM_CALLERS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for future in self._done:
            future.result(30)
        self._pool.shutdown()

    def wait_for(self, bundle_id: str, num_more: int) -> None:
        """Returns once this many further calls were answered with a bundle."""
        with self._changed:
            goal = self.answered[bundle_id] + num_more
            assert self._changed.wait_for(lambda: self.answered[bundle_id] >= goal, 80)

    def _call(self, caller: int) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(self._target, options=options) as channel:
            stub = blocking_stub(channel)
            while not self._stop.is_set():
                query = f"thing {caller} {time.monotonic_ns()}"
                request = pb.RecommendRequest(scenario="suggestion", query=query)
                try:
                    answer = stub.Recommend(request, timeout=TIMEOUT_S)
                except grpc.RpcError as error:
                    with self._changed:
                        self.failed.append(error.code())
                else:
                    with self._changed:
                        self.answered[answer.bundle_id] += 1
                        self._changed.notify_all()


def test_calls_go_on_succeeding_after_an_engine_is_killed(
    envoy, engines, tiny_bundle, other_bundle
):
    killed, left = (read_manifest(d).bundle_id for d in (tiny_bundle, other_bundle))
    with Callers(envoy) as callers:
        callers.wait_for(killed, 8)
        callers.wait_for(left, 8)  # both are used
        engines[0].process.send_signal(signal.SIGKILL)
        engines[0].process.wait(20)
        callers.wait_for(left, 60)
    # Those in flight on it are repeated on the other one: a call that breaks may be repeated.
    assert callers.failed == []


@pytest.mark.parametrize(("engines", "envoy"), [(3, "10s")], indirect=True)
def test_no_call_is_tried_on_dead_engines_once_one_of_three_is_left(
    envoy, admin_port, engines, other_bundle
):
    wait_until_healthy(admin_port, 3)
    for engine in engines[:2]:
        engine.process.send_signal(signal.SIGKILL)
        engine.process.wait(20)
    wait_until_healthy(admin_port, 1)
    with Callers(envoy) as callers:
        num_tried = [-1]
        for _ in range(10):  # Envoy tells its threads of news within a second
            num_tried.append(counted(admin_port, "upstream_cx_connect_fail"))
            if num_tried[-1] == num_tried[-2]:
                break
            callers.wait_for(read_manifest(other_bundle).bundle_id, 60)
    assert num_tried[-1] == num_tried[-2], num_tried
    assert callers.failed == []


def test_calls_go_on_succeeding_while_an_engine_hangs(envoy, engines, tiny_bundle, other_bundle):
    hanging, left = (read_manifest(d).bundle_id for d in (tiny_bundle, other_bundle))
    with Callers(envoy) as callers:
        callers.wait_for(hanging, 8)
        engines[0].process.send_signal(signal.SIGSTOP)
        try:
            callers.wait_for(left, 60)
        finally:
            engines[0].process.send_signal(signal.SIGCONT)
        callers.wait_for(hanging, 8)  # taken back once its health is right
    assert callers.failed == []


def test_errors_that_engines_answer_with_take_none_of_them_out(
    envoy, admin_port, engines, tiny_bundle, other_bundle
):
    hasty = pb.RecommendRequest(scenario="suggestion", query="a lamp")
    hasty.latency_budget.nanos = 1
    with grpc.insecure_channel(envoy) as channel:
        stub = blocking_stub(channel)
        for _ in range(40):
            with pytest.raises(grpc.RpcError) as failure:
                stub.Recommend(hasty, timeout=TIMEOUT_S)
            assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert counted(admin_port, "outlier_detection.ejections_enforced_total") == 0
    with Callers(envoy) as callers:
        for directory in (tiny_bundle, other_bundle):
            callers.wait_for(read_manifest(directory).bundle_id, 8)
    assert callers.failed == []


def test_no_call_fails_while_an_engine_drains(envoy, engines, tiny_bundle, other_bundle):
    drained, left = (read_manifest(d).bundle_id for d in (tiny_bundle, other_bundle))
    with Callers(envoy) as callers:
        callers.wait_for(drained, 8)
        callers.wait_for(left, 8)
        engines[0].process.send_signal(signal.SIGTERM)
        assert engines[0].process.wait(30) == 0
        callers.wait_for(left, 60)
    assert callers.failed == []
