"""Fixtures of the engine's tests."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.execution.bundle import Bundle, load_bundle
from engine.execution.runtime import Runtime
from engine.formats.manifest import MANIFEST_FILE, read_manifest
from export.packing import sealed


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self._now_s = 1000.0

    def now_s(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="module")
def runtime():
    runtime = Runtime(num_threads=1, shared_thread_pool=False)
    yield runtime
    runtime.close()


@pytest.fixture(scope="module")
def bundle(tiny_bundle, runtime) -> Bundle:
    return load_bundle(tiny_bundle, runtime)


@pytest.fixture
def changed_bundle(tmp_path):
    """Copies a bundle with another manifest, or, without changes, with another index."""

    def changed(source: Path, name: str, **changes: object) -> Path:
        directory = shutil.copytree(source, tmp_path / name)
        manifest = read_manifest(directory)
        (directory / MANIFEST_FILE).unlink()
        if not changes:
            counts = directory / "index/popularity.npy"
            np.save(counts, np.load(counts)[::-1])
        sealed(directory, msgspec.structs.replace(manifest, **changes))
        return directory

    return changed
