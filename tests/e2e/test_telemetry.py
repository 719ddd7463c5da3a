"""Nothing that queryrec runs tells its makers, or those of its libraries, that it runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPORT = """
import sys
import export.bundle
import onnxruntime as ort
ort.InferenceSession(sys.argv[1])
"""


COMMANDS = {
    "engine": ["-m", "engine", "serve", "--dry-run", "--bundle"],
    "export": ["-c", EXPORT],
}


def prepared(command: list[str], home: Path, **environment: str) -> list[Path]:
    """Returns what ONNX Runtime leaves for its reports.

    What it does before it reports: it names the machine and keeps events, both below HOME. It does
    neither where it sees that it is tested, so no other variables are handed on.
    """
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    subprocess.run(
        [sys.executable, "-P", *command],
        cwd=home,
        env={**kept, "HOME": str(home), **environment},
        check=True,
        capture_output=True,
    )
    return [p for p in home.rglob("*") if "onnxruntime" in str(p).lower()]


@pytest.mark.parametrize("of", ["engine", "export"])
def test_onnx_runtime_prepares_no_reports(of, tiny_bundle, tmp_path):
    told = tiny_bundle if of == "engine" else tiny_bundle / "encoder.onnx"
    command = [*COMMANDS[of], str(told)]
    (quiet := tmp_path / "quiet").mkdir()
    assert prepared(command, quiet) == []
    (talking := tmp_path / "talking").mkdir()
    if not prepared(command, talking, ORT_DISABLE_TELEMETRY="0"):
        pytest.skip("this ONNX Runtime reports nothing in any case")


def test_whoever_wants_reports_sent_may_have_them_sent():
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    code = "import os, engine; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == "0"
