"""Nothing that queryrec runs tells its makers, or those of its libraries, that it runs."""

import os
import subprocess
import sys

import pytest

EXPORT = """
import sys
import export.bundle
import onnxruntime as ort
ort.InferenceSession(sys.argv[1])
"""


@pytest.mark.parametrize("of", ["engine", "export"])
def test_onnx_runtime_prepares_no_reports(of, tiny_bundle, tmp_path):
    # What it does before it reports: it names the machine and keeps events, both below HOME. It
    # does neither where it sees that it is tested, so no other variables are handed on.
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    command = {
        "engine": ["-m", "engine", "serve", "--dry-run", "--bundle", str(tiny_bundle)],
        "export": ["-c", EXPORT, str(tiny_bundle / "encoder.onnx")],
    }[of]

    subprocess.run(
        [sys.executable, "-P", *command],
        cwd=tmp_path,
        env={**kept, "HOME": str(tmp_path)},
        check=True,
        capture_output=True,
    )

    written = [p for p in tmp_path.rglob("*") if "onnxruntime" in str(p).lower()]
    assert written == []


def test_whoever_wants_reports_sent_may_have_them_sent():
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    code = "import os, engine; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == "0"
