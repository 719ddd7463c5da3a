"""A refreshed index: newer queries are found by the old models, which stay byte for byte."""

import shutil
from pathlib import Path

import msgspec
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.execution.bundle import load_bundle
from engine.execution.models import Encoder
from engine.formats.manifest import MAX_ENCODER_TOKENS, read_manifest, write_manifest
from export import parity
from export.bundle import export_bundle
from export.index import embed, refresh_index
from export.packing import sealed
from export.sample import write_sample_run
from train.mining.mine import MineSummary

NEW = ["espresso machine", "espresso machine descaler"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("index") / "run"
    write_sample_run(directory)
    return directory


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    target = run.parent / "bundle"
    export_bundle(run, target, num_parity_requests=3)
    return target


@pytest.fixture
def newer(run: Path, tmp_path: Path) -> Path:
    """A run that holds nothing but mined logs, with two new queries that follow one another."""
    mined = tmp_path / "newer/mined"
    shutil.copytree(run / "mined", mined)
    old = pq.read_table(mined / "queries.parquet").to_pylist()
    counts = {"num_searches": 900, "num_searches_before_cut": 900, "num_users": 90}
    added = [{"text": t, **counts} for t in NEW]
    rows = sorted([*old[::2], *added], key=lambda r: r["text"].encode())
    pq.write_table(pa.Table.from_pylist(rows), mined / "queries.parquet")
    pair = {"source": NEW[0], "target": NEW[1], "num_pairs": 9, "num_users": 9, "association": 0.9}
    pq.write_table(pa.Table.from_pylist([pair]), mined / "pairs.parquet")
    summary = MineSummary(
        min_users=7, counted="users", num_searches=1, num_sessions=1, num_queries=len(rows),
        num_pairs=1, num_contexts=0, num_impressions=0, num_clicks=0, position_ctr_from="default",
        dropped={},
    )  # fmt: skip
    (mined / "summary.json").write_bytes(msgspec.json.encode(summary))
    return mined.parent


def test_new_queries_are_found_and_models_stay(bundle: Path, newer: Path, tmp_path: Path) -> None:
    before = read_manifest(bundle)
    manifest = refresh_index(bundle, newer, tmp_path / "fresh")
    loaded = load_bundle(tmp_path / "fresh", None)
    assert loaded.index is not None
    session = parity.session_of(onnx.load(tmp_path / "fresh/encoder.onnx"))
    encoder = Encoder(session, MAX_ENCODER_TOKENS)
    row = loaded.index.find(NEW[0])
    assert row is not None
    assert [loaded.index.text(r) for r in loaded.index.neighbours(row)[0]] == [NEW[1]]
    embedding = encoder.run([loaded.encoder_ids(NEW[0])])[0]
    nearest, similarity = loaded.index.nearest(embedding, 1)
    assert loaded.index.text(int(nearest[0])) == NEW[0]
    assert similarity[0] == pytest.approx(1, abs=1e-3)
    assert manifest.index is not None
    assert manifest.index.min_users == 7
    assert manifest.index.ef_search == before.index.ef_search  # it was given
    assert manifest.bundle_id != before.bundle_id
    assert manifest.provenance["models_of_bundle"] == before.bundle_id
    kept = {n: h for n, h in before.files.items() if not n.startswith("index/")}
    assert kept.items() <= manifest.files.items()
    assert {n for n in manifest.files if n.startswith("index/")} == {
        n for n in before.files if n.startswith("index/")
    }


def test_effort_is_chosen_anew_if_it_was_chosen(bundle: Path, newer: Path, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen"
    shutil.copytree(bundle, chosen)
    manifest = read_manifest(chosen)
    index = msgspec.structs.replace(manifest.index, ef_search=500, min_recall=0.9)
    write_manifest(chosen, msgspec.structs.replace(manifest, index=index))
    fresh = refresh_index(chosen, newer, tmp_path / "fresh")
    assert fresh.index.min_recall == 0.9
    assert fresh.index.ef_search < 500  # few queries are found with the least there is


def test_old_bundle_is_untouched(bundle: Path, newer: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    refresh_index(bundle, newer, tmp_path / "fresh")
    shutil.rmtree(tmp_path / "fresh")
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before


def test_run_that_is_not_mined_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="queryrec-train mine"):
        refresh_index(bundle, tmp_path / "nothing", tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_bundle_without_index_is_refused(run: Path, newer: Path, tmp_path: Path) -> None:
    cold = tmp_path / "cold"
    shutil.copytree(run, cold)
    shutil.rmtree(cold / "index")
    export_bundle(cold, tmp_path / "bundle", num_parity_requests=3)
    with pytest.raises(ValueError, match="no encoder and index"):
        refresh_index(tmp_path / "bundle", newer, tmp_path / "fresh")


def test_existing_target_is_left_alone(bundle: Path, newer: Path, tmp_path: Path) -> None:
    (tmp_path / "fresh").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        refresh_index(bundle, newer, tmp_path / "fresh")


def test_rows_keep_their_order_whatever_their_length(bundle: Path) -> None:
    loaded = load_bundle(bundle, None)
    encoder = Encoder(parity.session_of(onnx.load(bundle / "encoder.onnx")), MAX_ENCODER_TOKENS)
    texts = [" ".join(["shoes"] * (1 + number * 7 % 11)) for number in range(600)]
    ids = [loaded.encoder_ids(t) for t in texts]
    together = embed(encoder, ids, lambda _: None)
    for number in range(0, 600, 41):
        (alone,) = encoder.run([ids[number]])
        assert together[number] == pytest.approx(alone, abs=1e-5)


def test_progress_is_told(bundle: Path, newer: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    manifest = refresh_index(bundle, newer, tmp_path / "fresh", report=lines.append)
    assert manifest.index is not None
    num = manifest.index.num_queries
    assert lines[-1] == f"index: {num} of {num} vectors linked"


def test_one_thread_gives_the_same_index_every_time(
    bundle: Path, newer: Path, tmp_path: Path
) -> None:
    first = refresh_index(bundle, newer, tmp_path / "first")
    second = refresh_index(bundle, newer, tmp_path / "second")
    assert first.files == second.files
    several = refresh_index(bundle, newer, tmp_path / "several", num_threads=2)
    assert load_bundle(tmp_path / "several", None).index is not None
    assert several.files["index/texts.bin"] == first.files["index/texts.bin"]


def test_a_bundle_whose_graph_is_of_an_older_release_gets_a_new_one(
    bundle: Path, newer: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(bundle, tmp_path / "old")
    (old / "index/hnsw.faiss").unlink()
    (old / "index/hnsw.bin").write_bytes(b"of another library")
    manifest = read_manifest(old)
    (old / "manifest.json").unlink()
    sealed(old, manifest)
    fresh = refresh_index(old, newer, tmp_path / "fresh")
    assert "index/hnsw.faiss" in fresh.files
    assert "index/hnsw.bin" not in fresh.files
    assert load_bundle(tmp_path / "fresh", None).index is not None


def test_lists_are_as_long_as_the_runs_setting_says(
    bundle: Path, newer: Path, tmp_path: Path
) -> None:
    texts = pq.read_table(newer / "mined/queries.parquet")["text"].to_pylist()
    others = [t for t in texts if t not in NEW][:3]
    pairs = [
        {"source": NEW[0], "target": t, "num_pairs": 9, "num_users": 9, "association": 0.5}
        for t in others
    ]
    pq.write_table(pa.Table.from_pylist(pairs), newer / "mined/pairs.parquet")
    (newer / "config.toml").write_text("[index]\nmax_edges = 2\n")
    refresh_index(bundle, newer, tmp_path / "fresh")
    index = load_bundle(tmp_path / "fresh", None).index
    assert index is not None
    row = index.find(NEW[0])
    assert row is not None
    assert len(index.neighbours(row)[0]) == 2
