"""Sample runs that bundles are made of."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export.bundle import export_bundle
from export.sample import write_sample_run


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle") / "run"
    write_sample_run(directory)
    return directory


@pytest.fixture(scope="session")
def bundle(run_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("target") / "bundle"
    export_bundle(run_directory, target, num_parity_requests=6)
    return target


@pytest.fixture
def run_of(run_directory: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a run with some of its parts."""

    def copied(*parts: str) -> Path:
        others = {"encoder", "generator", "click_model", "index"} - {*parts}
        ignore = shutil.ignore_patterns(*others)
        return Path(shutil.copytree(run_directory, tmp_path / "run", ignore=ignore))

    return copied
