"""Legal but odd requests over real gRPC, and a signal at an awkward moment."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import grpc
import pytest

from queryrec.v1 import query_recommender_service_pb2 as pb
from tests.blocking import blocking_stub

TIMEOUT_S = 10


@pytest.mark.parametrize(
    "prefix",
    [
        "x" * 200 + " wi",
        "x" * 250 + " wi",
        "a " * 127 + "w",
        "\U0001f600" * 63 + " w",
        "\u092d " * 63 + "le",
    ],
)
def test_the_longest_prefixes_are_completed_within_the_limit_of_a_suggestion(live_engine, prefix):
    with grpc.insecure_channel(live_engine.target) as channel:
        response = blocking_stub(channel).Recommend(
            pb.RecommendRequest(scenario="completion", query=prefix, max_suggestions=32),
            timeout=TIMEOUT_S,
        )
    assert response.suggestions or len(prefix.encode()) > 250, "there is room"
    assert all(len(s.text.encode()) <= 256 for s in response.suggestions)
    assert all(s.text.startswith(prefix) for s in response.suggestions)
    assert len(response.attribution_token) <= 2048


def test_a_signal_while_it_loads_ends_it_before_it_serves(tiny_bundle, tmp_path):
    command = [sys.executable, "-m", "engine", "serve", "--bundle", str(tiny_bundle), "--port", "0"]
    blocklist = tmp_path / "blocklist"
    os.mkfifo(blocklist)  # loading waits until somebody writes to it
    environment = {
        **os.environ,
        "QUERYREC_RANKING_BLOCKLIST": str(blocklist),
        "QUERYREC_FEEDBACK_DIRECTORY": str(tmp_path / "feedback"),
        "PYTHONSAFEPATH": "1",
    }
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stdout:
                if line.startswith("queryrec-engine: listening"):
                    process.send_signal(signal.SIGTERM)
                    break
            while process.poll() is None:
                with suppress(OSError):  # nobody is reading
                    os.close(os.open(blocklist, os.O_WRONLY | os.O_NONBLOCK))
                time.sleep(0.05)
            rest = process.stdout.read()
            errors = process.stderr.read()
        finally:
            process.kill()
        assert process.returncode == 0
    assert "serving" not in rest
    assert "Traceback" not in errors
