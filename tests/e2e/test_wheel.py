"""What an image or a package index gets: the wheel holds all that serving needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import engine, export, queryrec.client, queryrec.v1, train
print(engine.__file__, export.__file__, queryrec.client.__file__, queryrec.v1.__file__)
from engine.cli import app
app()
"""


@pytest.mark.slow
def test_an_installed_wheel_answers_without_the_source_tree(tiny_bundle, tmp_path):
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", installed, ROOT], check=True)

    run = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            SERVE,
            installed,
            "serve",
            "--dry-run",
            "--bundle",
            tiny_bundle,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        check=True,
        capture_output=True,
        text=True,
    )

    places, *printed = run.stdout.splitlines()
    assert all(place.startswith(str(installed)) for place in places.split())
    assert any(line.startswith("completion: ") for line in printed)
