"""The Node client, installed from its lock file, against a live engine."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

NODE_CLIENT = Path(__file__).parents[2] / "clients" / "node"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js and npm"),
]


@pytest.fixture(scope="module")
def installed() -> Path:
    install = subprocess.run(["npm", "ci"], cwd=NODE_CLIENT, capture_output=True, text=True)
    assert install.returncode == 0, install.stderr
    return NODE_CLIENT


def ask(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", "ask.js", "--target", target, "--timeout-ms", "10000", *arguments],
        cwd=NODE_CLIENT,
        capture_output=True,
        text=True,
    )


@pytest.mark.usefixtures("installed")
def test_the_client_passes_its_own_tests():
    run = subprocess.run(["npm", "test"], cwd=NODE_CLIENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.usefixtures("installed")
def test_suggestions_arrive_and_a_click_is_stored(live_engine):
    run = ask(live_engine.target, "--json", "--click", "1", "wireless earbuds")

    assert run.returncode == 0, run.stderr
    printed = json.loads(run.stdout)
    suggestions = printed["answer"]["suggestions"]
    assert [s["position"] for s in suggestions] == list(range(1, len(suggestions) + 1))
    assert suggestions
    assert "wireless earbuds" not in {s["text"] for s in suggestions}
    assert all(0 <= s["clickProbability"] <= 1 for s in suggestions)
    assert printed["receipt"] == {"numAccepted": len(suggestions) + 1, "refusals": []}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["--scenario", "no such panel", "shoes"], "NOT_FOUND", "SCENARIO_UNKNOWN"),
        (["  "], "INVALID_ARGUMENT", "QUERY_EMPTY"),
        (["a" * 257], "INVALID_ARGUMENT", "QUERY_TOO_LONG"),
        (["a\x01b"], "INVALID_ARGUMENT", "TEXT_INVALID"),
        (["--max=-1", "shoes"], "INVALID_ARGUMENT", "MAX_SUGGESTIONS_OUT_OF_RANGE"),
    ],
)
def test_bad_input_prints_status_and_reason(live_engine, arguments, status, reason):
    run = ask(live_engine.target, *arguments)

    assert run.returncode == 1
    assert f"{status} ERROR_REASON_{reason}:" in run.stderr


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("option", ["--click=0", "--timeout-ms=0"])
def test_options_that_would_do_nothing_are_refused(live_engine, option):
    run = ask(live_engine.target, option, "shoes")

    assert run.returncode == 2
    assert f"{option[:-2]} is 0, must be at least 1" in run.stderr
