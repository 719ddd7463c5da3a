import subprocess
import sys


def test_packages_of_exporting_that_are_missing_are_told_in_one_line() -> None:
    # As after `make demo`, which installs what the engine needs.
    missing = ("onnx", "pyarrow", "torch", "transformers")
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "from export.cli import app; app()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "bundle", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: exporting needs more packages (")
    assert "run `make setup`" in result.stderr
    assert result.stderr.count("\n") == 1
