"""The engine's command line with models on a real tritonserver."""

import os
import subprocess
import sys

import grpc
import pytest

from queryrec.v1.query_recommender_service_pb2 import RecommendRequest
from tests.blocking import blocking_stub

pytestmark = pytest.mark.triton


def serve(*arguments: str, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "QUERYREC_TRITON_URL": url, "PYTHONSAFEPATH": "1"},
    )


def test_a_dry_run_prints_costs_and_answers_for_every_scenario(triton, bundle_directory):
    run = serve("--bundle", str(bundle_directory), "--dry-run", url=triton.url)
    assert run.returncode == 0, run.stderr
    assert "predicted cost" in run.stdout
    for scenario in ("suggestion", "completion", "clarification"):
        assert f"{scenario}: " in run.stdout


def test_without_a_server_it_ends_with_one_message(bundle_directory):
    run = serve("--bundle", str(bundle_directory), "--dry-run", url="127.0.0.1:1")
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert 'triton.url is "127.0.0.1:1"' in run.stderr


def test_it_serves_and_stops_in_order(
    triton, bundle_directory, tmp_path, start_engine, stop_engine
):
    engine = start_engine(
        bundle_directory, tmp_path, environment={"QUERYREC_TRITON_URL": triton.url}
    )
    with grpc.insecure_channel(engine.target) as channel:
        stub = blocking_stub(channel)
        request = RecommendRequest(scenario="suggestion", query="never searched before")
        answer = stub.Recommend(request, timeout=20)
    assert len(answer.suggestions) == 6
    assert not answer.omissions
    assert stop_engine(engine) == 0
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()
