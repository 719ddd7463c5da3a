"""A refreshed index: newer queries are found by the old models, which stay byte for byte."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from engine.execution.bundle import load_bundle
from engine.execution.models import Encoder
from engine.formats.index import write_index
from engine.formats.manifest import MAX_ENCODER_TOKENS, read_manifest, write_manifest
from export import parity
from export.bundle import export_bundle
from export.cli import app
from export.index import embed, refresh_index
from export.packing import sealed
from train.mining.mine import MineSummary

NEW = ["espresso machine", "espresso machine descaler"]


@pytest.fixture
def newer(run_directory: Path, tmp_path: Path) -> Path:
    """A run that holds nothing but mined logs, with two new queries that follow one another."""
    mined = tmp_path / "newer/mined"
    shutil.copytree(run_directory / "mined", mined)
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
    assert before.index is not None
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
    assert manifest.index is not None
    index = msgspec.structs.replace(manifest.index, ef_search=500, min_recall=0.9)
    write_manifest(chosen, msgspec.structs.replace(manifest, index=index))
    fresh = refresh_index(chosen, newer, tmp_path / "fresh")
    assert fresh.index is not None
    assert fresh.index.min_recall == 0.9
    assert fresh.index.ef_search < 500  # few queries are found with the least there is


@pytest.mark.parametrize(
    ("texts", "effort"),
    [(["mouse"], 16), ([f"{a} {b}" for a in "abcdef" for b in "abcdef"], 77)],
    ids=["small: the least", "large: as before"],
)
def test_effort_where_no_probes_can_be_made(
    bundle: Path, newer: Path, tmp_path: Path, texts: list[str], effort: int
) -> None:
    chosen = shutil.copytree(bundle, tmp_path / "chosen")
    manifest = read_manifest(chosen)
    assert manifest.index is not None
    index = msgspec.structs.replace(manifest.index, ef_search=77, min_recall=0.9)
    write_manifest(chosen, msgspec.structs.replace(manifest, index=index))
    queries, pairs = newer / "mined/queries.parquet", newer / "mined/pairs.parquet"
    row = pq.read_table(queries).to_pylist()[0]
    pq.write_table(pa.Table.from_pylist([row | {"text": t} for t in texts]), queries)
    pq.write_table(pq.read_table(pairs)[:0], pairs)
    fresh = refresh_index(chosen, newer, tmp_path / "fresh")
    assert fresh.index is not None
    assert (fresh.index.num_queries, fresh.index.ef_search) == (len(texts), effort)


def test_old_bundle_is_untouched(bundle: Path, newer: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
    refresh_index(bundle, newer, tmp_path / "fresh")
    shutil.rmtree(tmp_path / "fresh")
    assert {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file()} == before


def test_run_that_is_not_mined_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="queryrec-train mine"):
        refresh_index(bundle, tmp_path / "nothing", tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_bundle_without_index_is_refused(run_directory: Path, newer: Path, tmp_path: Path) -> None:
    cold = tmp_path / "cold"
    shutil.copytree(run_directory, cold)
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


def test_all_of_a_run_is_read_before_queries_are_embedded(
    bundle: Path, newer: Path, tmp_path: Path
) -> None:
    def mine_again(line: str) -> None:
        if line.startswith("index: "):
            shutil.rmtree(newer / "mined", ignore_errors=True)

    expected = refresh_index(bundle, newer, tmp_path / "expected")
    found = refresh_index(bundle, newer, tmp_path / "found", report=mine_again)
    assert not (newer / "mined").exists()
    assert found.bundle_id == expected.bundle_id


@pytest.fixture
def measured(newer: Path) -> Callable[[str], Path]:
    """Says how strongly pairs belong together was measured when the newer run was mined."""

    def write(association: str) -> Path:
        path = newer / "mined/summary.json"
        summary = msgspec.json.decode(path.read_bytes(), type=MineSummary)
        summary = msgspec.structs.replace(summary, association=association)
        path.write_bytes(msgspec.json.encode(summary))
        return newer

    return write


def test_pairs_measured_otherwise_are_refused(
    bundle: Path, measured: Callable[[str], Path], tmp_path: Path
) -> None:
    # The first bundle does not say how, as one of an older release.
    known = refresh_index(bundle, measured("npmi"), tmp_path / "known")
    assert known.index is not None
    assert known.index.association == "npmi"
    with pytest.raises(ValueError, match=r"association 'llr', the models of .* with 'npmi'"):
        refresh_index(tmp_path / "known", measured("llr"), tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_a_bundle_says_how_its_pairs_were_measured(
    run_directory: Path, measured: Callable[[str], Path], tmp_path: Path
) -> None:
    ignored = shutil.ignore_patterns("generator", "click_model")
    mined = Path(shutil.copytree(run_directory, tmp_path / "mined", ignore=ignored))
    shutil.copy(measured("llr") / "mined/summary.json", mined / "mined")
    manifest = export_bundle(mined, tmp_path / "llr")
    assert manifest.index is not None
    assert manifest.index.association == "llr"


@pytest.mark.parametrize(("factor", "is_told"), [(0.4, True), (0.6, False), (3, True)])
def test_a_log_of_another_size_is_told(
    bundle: Path, newer: Path, tmp_path: Path, factor: float, is_told: bool
) -> None:
    old = load_bundle(bundle, None).index
    assert old is not None
    path = newer / "mined/queries.parquet"
    table = pq.read_table(path)
    counts = pa.array([round(factor * old.num_searches("") / len(table))] * len(table))
    column = table.schema.get_field_index("num_searches")
    pq.write_table(table.set_column(column, "num_searches", counts), path)
    lines: list[str] = []
    refresh_index(bundle, newer, tmp_path / "fresh", report=lines.append)
    assert any(line.startswith("warning: the new logs hold") for line in lines) == is_told


def test_a_fresh_index_that_the_engine_would_refuse_is_not_written(
    bundle: Path, newer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(folder: Path, **arguments: Any) -> None:
        write_index(folder, **arguments)
        (folder / "edges.npy").write_bytes(b"")

    monkeypatch.setattr("export.index.write_index", damaging)
    with pytest.raises(ValueError, match="index cannot be loaded"):
        refresh_index(bundle, newer, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_a_place_that_takes_no_directory_ends_the_command_with_one_line(
    bundle: Path, newer: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    options = ["--bundle", str(bundle), "--run", str(newer), "--out", str(tmp_path / "file/out")]
    done = CliRunner().invoke(app, ["index", *options])
    assert done.exit_code == 2
    last = done.output.splitlines()[-1]
    assert last.startswith("error: ")
    assert "Not a directory" in last


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
