import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from export.cli import app


def test_packages_of_exporting_that_are_missing_are_told_in_one_line(tmp_path: Path) -> None:
    # As after `make demo`, which installs what the engine needs.
    missing = ("onnx", "pyarrow", "torch", "transformers")
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"
        "from export.cli import app; app()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "bundle", "--run", tmp_path, "--out", tmp_path / "bundle"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: exporting needs more packages (")
    assert "run `make setup`" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["bundle", "--out", ".", "--run", "."], "exists already"),
        (["index", "--out", ".", "--run", ".", "--bundle", "."], "exists already"),
        (["sample", "--out", "."], "exists already"),
        (["triton", "--out", ".", "--bundle", ".", "--backend", "python"], "exists already"),
        (["bundle", "--out", "none", "--run", ".", "--mode", "beams"], "'beams' is not one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_are_told_before_anything_heavy_is_imported(
    options: list[str], told: str
) -> None:
    script = (
        "import sys\n"
        "from export.cli import app\n"
        "try:\n"
        "    app()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'onnx', 'pyarrow'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    assert told in result.stderr


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file/bundle"
    result = CliRunner().invoke(app, ["sample", "--out", str(out)])
    assert result.exit_code == 2
    assert result.stderr == f"error: {out}: cannot be written (Not a directory)\n"


def test_a_full_disk_is_told_with_the_bundle_that_was_written(
    run_directory: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        result = CliRunner().invoke(app, ["bundle", "--run", str(run_directory), "--out", str(out)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.exit_code == 2, result.output
    assert result.stderr == f"error: {out}: cannot be written (File too large)\n"
    assert not [*tmp_path.iterdir()]


def test_a_mode_that_was_not_taught_is_told_before_the_first_graph(
    run_of: Callable[..., Path], tmp_path: Path
) -> None:
    run = run_of("encoder", "generator")
    (run / "generator/metrics.json").write_text('{"mode": "slots"}')
    out = tmp_path / "bundle"
    given = ["bundle", "--run", str(run), "--out", str(out), "--mode", "beam"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()  # none of what was done before
    assert "--mode slots" in line
