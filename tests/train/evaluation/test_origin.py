"""Whether a bundle is of a run is told by what was copied from one to the other."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from engine.formats.manifest import Manifest, read_manifest, sha256_of
from train.evaluation.origin import doubts

STATISTICS = "token_statistics.npz"


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    """Returns that of a bundle which does not say what weights it was made of."""
    return replace(read_manifest(tiny_bundle), provenance={})


@pytest.fixture
def own_run(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Returns a run with the files that export would have copied from it."""
    (tmp_path / "click_model").mkdir()
    shutil.copy(tiny_bundle / "tokenizer.json", tmp_path)
    shutil.copy(tiny_bundle / STATISTICS, tmp_path / "click_model")
    return tmp_path


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize("name", ["tokenizer.json", f"click_model/{STATISTICS}"])
@pytest.mark.parametrize("spoil", [append, Path.unlink])
def test_a_bundle_of_another_run_is_told(
    name: str, spoil: Callable[[Path], None], manifest: Manifest, own_run: Path
) -> None:
    assert not doubts(manifest, own_run)
    spoil(own_run / name)
    (doubt,) = doubts(manifest, own_run)
    assert f"{manifest.bundle_id} was not exported from {own_run}" in doubt
    assert Path(name).name in doubt


def test_neither_a_newer_index_nor_a_missing_click_model_is_another_run(
    manifest: Manifest, own_run: Path
) -> None:
    assert manifest.index is not None
    files = {n: "0" if n.startswith("index/") else sha for n, sha in manifest.files.items()}
    newer = replace(manifest, files=files, index=replace(manifest.index, num_queries=1))
    assert not doubts(newer, own_run)
    shutil.rmtree(own_run / "click_model")
    assert not doubts(replace(manifest, click_model=None), own_run)


def test_a_run_that_was_trained_again_is_told(manifest: Manifest, own_run: Path) -> None:
    weights = own_run / "generator/model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"first")
    provenance = {"generator/model.safetensors": sha256_of(weights), "torch": "2"}
    exported = replace(manifest, provenance=provenance)
    assert not doubts(exported, own_run)
    weights.write_bytes(b"again")
    (doubt,) = doubts(exported, own_run)
    assert "generator/model.safetensors" in doubt
