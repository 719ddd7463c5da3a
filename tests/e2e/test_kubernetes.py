"""What `deploy/kubernetes.yaml` asks of an engine, a real one does; the schema accepts the file."""

import base64
import re
import secrets
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate
import pytest
import yaml
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from tests.blocking import blocking_health_stub
from tests.ports import free_port

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
LEAST_VERSION = "1.30"


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """The objects of the file, by kind."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    return objects["StatefulSet"]["spec"]["template"]["spec"]


def served(target: str, probe: dict[str, Any]) -> HealthCheckResponse.ServingStatus:
    """What the engine answers to a probe."""
    with grpc.insecure_channel(target) as channel:
        request = HealthCheckRequest(service=probe["grpc"].get("service", ""))
        return blocking_health_stub(channel).Check(request, timeout=5).status


@pytest.mark.parametrize("version", [LEAST_VERSION, kubernetes_validate.latest_version()])
def test_every_object_has_the_fields_of_its_kind(objects: dict[str, Any], version: str) -> None:
    for document in objects.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_service_and_the_budget_select_the_pods(objects: dict[str, Any]) -> None:
    labels = objects["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"] == labels
    for kind in ("StatefulSet", "PodDisruptionBudget"):
        assert objects[kind]["spec"]["selector"]["matchLabels"] == labels
    assert objects["StatefulSet"]["spec"]["serviceName"] == objects["Service"]["metadata"]["name"]


def test_the_service_has_every_port_of_the_pods_and_the_name_of_the_job_that_alerts_expect(
    objects: dict[str, Any], pod: dict[str, Any]
) -> None:
    ports = {p["targetPort"]: p["port"] for p in objects["Service"]["spec"]["ports"]}
    assert ports == {p["name"]: p["containerPort"] for p in pod["containers"][0]["ports"]}
    alerts = (DEPLOY / "prometheus/alerts.yml").read_text()
    jobs = re.findall(r'job="(\w+)"', alerts)
    assert set(jobs) == {objects["Service"]["metadata"]["name"]}


def test_the_user_is_that_of_the_image(pod: dict[str, Any]) -> None:
    image = (DEPLOY / "Dockerfile").read_text()
    [user] = re.findall(r"^USER (\d+)$", image, re.MULTILINE)
    assert pod["securityContext"]["runAsUser"] == int(user)


def test_an_engine_takes_the_settings_answers_the_probes_and_ends_in_time(
    pod, tiny_bundle, tmp_path, start_engine
):
    [container] = pod["containers"]
    for mount in container["volumeMounts"]:
        (tmp_path / mount["mountPath"][1:]).mkdir(parents=True, exist_ok=True)
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    (tmp_path / "etc/queryrec/keys").write_text(f"2026-11 {key}\n")
    command, option, bundle = container["args"]
    assert (command, option) == ("serve", "--bundle")
    (tmp_path / bundle[1:]).symlink_to(tiny_bundle)
    metrics_port = free_port()
    environment = {
        e["name"]: f"{tmp_path}{e['value']}" if e["value"].startswith("/") else e["value"]
        for e in container["env"]
    }
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert environment["QUERYREC_METRICS_PORT"] == str(ports["metrics"])
    environment["QUERYREC_METRICS_PORT"] = str(metrics_port)  # that of the file may be taken here

    engine = start_engine(tmp_path / bundle[1:], tmp_path, environment=environment)
    try:
        probes = [container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
        assert {p["grpc"]["port"] for p in probes} == {ports["grpc"]}
        assert [served(engine.target, p) for p in probes] == [HealthCheckResponse.SERVING] * 3
        url = f"http://127.0.0.1:{metrics_port}/metrics"
        assert b"queryrec_" in urllib.request.urlopen(url, timeout=5).read()
        assert "keys_file is not set" not in (tmp_path / "stderr.txt").read_text()

        began_s = time.monotonic()
        engine.process.send_signal(signal.SIGTERM)
        readiness = container["readinessProbe"]
        while served(engine.target, readiness) != HealthCheckResponse.NOT_SERVING:
            assert engine.process.poll() is None
        assert engine.process.wait(pod["terminationGracePeriodSeconds"]) == 0
        lame_duck_s = float(environment["QUERYREC_SERVER_LAME_DUCK_S"])
        grace_s = float(environment["QUERYREC_SERVER_GRACE_S"])
        assert time.monotonic() - began_s >= lame_duck_s
        assert pod["terminationGracePeriodSeconds"] >= lame_duck_s + grace_s + 1
        assert (tmp_path / "var/lib/queryrec/feedback").is_dir()
    finally:
        engine.process.kill()
        engine.process.wait()
        engine.process.stdout.close()
