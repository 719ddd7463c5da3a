"""Rows below k are read for calibration from the raw log, as training rows look."""

import shutil
import traceback
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from engine.formats.features import FEATURE_NAMES
from train.clicks import unknown
from train.clicks.data import read_requests
from train.clicks.unknown import unknown_requests
from train.mining import logs
from train.mining.logs import _IMPRESSIONS  # pyright: ignore[reportPrivateUsage]
from train.mining.mine import ROBOTS
from train.retrieval.pairs import BEFORE_CUT
from train.settings import MineConfig

IS_KNOWN = FEATURE_NAMES.index("is_known")


def write_raw(run: Path, path: Path, *, unknown_share: float) -> pa.Table:
    """Writes the mined impressions as a raw log: some texts are new, cases and spaces are odd."""
    table = pq.read_table(run / "mined/impressions.parquet")
    random = np.random.default_rng(0)
    texts = [
        f"  Unheard {text}" if random.random() < unknown_share else text.upper()
        for text in table["text"].to_pylist()
    ]
    table = table.set_column(table.column_names.index("text"), "text", pa.array(texts))
    for name, value in (("shown", True), ("session_id", "s")):
        table = table.append_column(name, pa.array([value] * table.num_rows))
    needed = [c.name for c in _IMPRESSIONS if c.is_required]
    pq.write_table(table.select([*needed, "propensity"]), path)
    return table


def test_held_out_requests_with_unknown_texts_look_like_training_ones(
    clicked_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "raw.parquet"
    raw = write_raw(clicked_run, path, unknown_share=0.1).to_pylist()
    found = unknown_requests(clicked_run, str(path), max_edges=50, max_requests=10_000, seed=0)
    mined = read_requests(clicked_run, max_edges=50)
    assert found is not None
    assert mined is not None
    held_out = [r for r in raw if r["split"] == "valid"]
    wanted = {r["request_id"] for r in held_out if "Unheard" in r["text"]}
    assert len(found) == len(wanted)
    assert found.is_valid_R.all()
    rows = [r for r in held_out if r["request_id"] in wanted]
    assert found.clicked_N.tolist() == [r["clicked"] for r in rows]
    is_known = ["Unheard" not in r["text"] for r in rows]
    assert (found.features_NF[:, IS_KNOWN] > 0).tolist() == is_known
    # Known rows have the features and ids that they have in training.
    of_mined = {(r["request_id"], r["position"]): i for i, r in enumerate(raw)}
    for i, row in enumerate(rows):
        if is_known[i]:
            at = of_mined[row["request_id"], row["position"]]
            assert found.features_NF[i] == pytest.approx(mined.features_NF[at])
            same = found.candidates[found.candidate_N[i]]
            assert same == mined.candidates[mined.candidate_N[at]]


def test_rows_that_mining_leaves_out_are_left_out_and_none_is_no_click(
    clicked_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "raw.parquet"
    write_raw(clicked_run, path, unknown_share=0.3)
    whole = pq.read_table(path)
    expected = unknown_requests(clicked_run, str(path), max_edges=50, seed=0)
    assert expected is not None
    row = {**whole.to_pylist()[-1], "text": "unheard", "clicked": None}
    row["side_information"] = [{"kind": "session", "text": None}, {"kind": None, "text": "tea"}]
    added = [{**row, name: None} for name in ("request_id", "query", "position", "text")]
    added.append({**row, "request_id": "one more", "position": 1})
    damaged = pa.concat_tables([whole, pa.Table.from_pylist(added, schema=whole.schema)])
    pq.write_table(damaged, path)
    found = unknown_requests(clicked_run, str(path), max_edges=50, seed=0)
    assert found is not None
    assert len(found) == len(expected) + 1
    assert len(found.clicked_N) == len(expected.clicked_N) + 1
    assert found.clicked_N.sum() == expected.clicked_N.sum()


def last_request(run: Path, path: Path, texts: list[str], **changed: object) -> None:
    """Writes a raw log of one request of the held-out time, with these texts."""
    write_raw(run, path, unknown_share=0.0)
    whole = pq.read_table(path)
    row = {**whole.to_pylist()[-1], "request_id": "new", **changed}
    rows = [{**row, "text": text, "position": i} for i, text in enumerate(texts, start=1)]
    pq.write_table(pa.Table.from_pylist(rows, schema=whole.schema), path)


def test_what_mining_refuses_is_left_out(clicked_run: Path, tmp_path: Path) -> None:
    path, words = tmp_path / "raw.parquet", tmp_path / "words.txt"
    words.write_text("unsafe\n")
    settings = MineConfig(unsafe_words=str(words))
    given = {"max_edges": 50, "settings": settings, "seed": 0}
    last_request(clicked_run, path, ["unheard", "an unsafe text", "call 0123456789", " \u00a0 "])
    found = unknown_requests(clicked_run, str(path), **given)
    assert found is not None
    assert len(found.candidates) == len(found.clicked_N) == 1
    last_request(clicked_run, path, ["an unsafe text"])
    assert unknown_requests(clicked_run, str(path), **given) is None
    last_request(clicked_run, path, ["unheard"], query="me@example.org")
    assert unknown_requests(clicked_run, str(path), **given) is None


def test_a_variant_that_mining_merges_into_a_known_text_is_known(
    clicked_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "raw.parquet"
    known = pq.read_table(clicked_run / "mined/queries.parquet")["text"][0].as_py()
    variants: list[tuple[Literal["punctuation", "words"], str]] = [
        ("punctuation", f"{known}!"),
        ("words", " ".join(known.split()[::-1])),
    ]
    for near_duplicates, variant in variants:
        last_request(clicked_run, path, ["unheard", variant])
        found, kept = (
            unknown_requests(
                clicked_run, str(path), max_edges=50, settings=MineConfig(near_duplicates=n), seed=0
            )
            for n in (near_duplicates, "keep")
        )
        assert found is not None
        assert kept is not None
        assert (found.features_NF[:, IS_KNOWN] > 0).tolist() == [False, True]
        assert (kept.features_NF[:, IS_KNOWN] > 0).tolist() == [False, False]


def test_a_text_that_was_first_searched_in_the_held_out_time_is_unknown(
    clicked_run: Path, tmp_path: Path
) -> None:
    run, path = tmp_path / "run", tmp_path / "raw.parquet"
    shutil.copytree(clicked_run, run)
    queries = pq.read_table(run / "mined/queries.parquet")
    known = queries["text"][0].as_py()
    last_request(run, path, [known])
    assert unknown_requests(run, str(path), max_edges=50, seed=0) is None
    column = queries.column_names.index(BEFORE_CUT)
    counts = pa.array([0, *queries[BEFORE_CUT].to_pylist()[1:]])
    pq.write_table(queries.set_column(column, BEFORE_CUT, counts), run / "mined/queries.parquet")
    found = unknown_requests(run, str(path), max_edges=50, seed=0)
    assert found is not None
    assert found.features_NF[:, IS_KNOWN].tolist() == [0]


def test_what_mining_took_for_a_robot_is_left_out(clicked_run: Path, tmp_path: Path) -> None:
    run, path = tmp_path / "run", tmp_path / "raw.parquet"
    shutil.copytree(clicked_run, run)
    last_request(run, path, ["unheard"], session_id="robot")
    (time,) = pq.read_table(path)["time"].cast(pa.timestamp("s")).cast(pa.int64()).to_pylist()

    def found(session_id: str, start_s: int, end_s: int) -> bool:
        columns = {"session_id": [session_id], "start_s": [start_s], "end_s": [end_s]}
        pq.write_table(pa.table(columns), run / "mined" / ROBOTS)
        given = {"max_edges": 50, "settings": MineConfig(session_gap_s=600), "seed": 0}
        return unknown_requests(run, str(path), **given) is not None

    assert not found("robot", time - 100, time + 100)
    assert not found("robot", time - 800, time - 600)  # within the pause that ends a session
    assert found("robot", time - 800, time - 601)  # a later session of the same id
    assert found("somebody", time - 100, time + 100)


def test_of_a_large_log_requests_of_all_its_held_out_time_are_read(
    clicked_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "raw.parquet"
    held_out = write_raw(clicked_run, path, unknown_share=1.0).filter(pc.field("split") == "valid")
    monkeypatch.setattr(unknown, "_MAX_ROWS", held_out.num_rows // 3)
    found = unknown_requests(clicked_run, str(path), max_edges=50, seed=0)
    again = unknown_requests(clicked_run, str(path), max_edges=50, seed=0)
    assert found is not None
    assert again is not None
    assert found.contexts == again.contexts
    assert 100 < len(found) < 300, "of 600 requests"
    assert (np.diff(found.offsets) == 5).all(), "whole ones"
    assert (found.clicked_N == again.clicked_N).all()
    # Times are not kept: clicks and contexts of what was shown first and last tell.
    read = {tuple(context) for context in found.contexts}
    whole = read_requests(clicked_run, max_edges=50)
    assert whole is not None
    is_read = [tuple(whole.contexts[r]) in read for r in np.flatnonzero(whole.is_valid_R).tolist()]
    for quarter in np.array_split(np.array(is_read), 4):
        assert 0.15 < quarter.mean() < 0.55


def test_the_log_is_read_within_the_limits_of_mining_and_failures_quote_none_of_it(
    clicked_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "raw.parquet"
    last_request(clicked_run, path, ["my secret"])
    limits: list[tuple[str, ...]] = []
    connect = logs.connect

    def connected(settings: MineConfig, spill_directory: Path) -> logs.Backend:
        connection = connect(settings, spill_directory)
        names = ("memory_limit", "threads", "temp_directory")
        chosen = ", ".join(f"current_setting('{name}')" for name in names)
        limits.append(connection.raw_sql(f"select {chosen}").fetchone())
        return connection

    monkeypatch.setattr(logs, "connect", connected)
    settings = MineConfig(memory_limit_mb=500, num_threads=1)
    given = {"max_edges": 50, "settings": settings, "seed": 0}
    assert unknown_requests(clicked_run, str(path), **given) is not None
    ((memory, threads, directory),) = limits
    assert memory == "381.4 MiB"  # 400 MB
    assert threads == 1
    assert Path(directory).is_absolute()
    assert not Path(directory).exists(), "what was spilled is gone"
    table = pq.read_table(path)
    broken = pa.array([b"my secret \xff"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index("text"), "text", broken), path)
    with pytest.raises(ValueError, match="a text is not UTF-8") as raised:
        unknown_requests(clicked_run, str(path), **given)
    assert "secret" not in "".join(traceback.format_exception(raised.value))


def test_the_choice_is_limited_and_repeats(clicked_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "raw.parquet"
    write_raw(clicked_run, path, unknown_share=0.5)
    first, again = (
        unknown_requests(clicked_run, str(path), max_edges=50, max_requests=20, seed=1)
        for _ in range(2)
    )
    assert first is not None
    assert again is not None
    assert len(first) == 20
    assert first.contexts == again.contexts


def test_without_unknown_texts_there_is_none(clicked_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "raw.parquet"
    write_raw(clicked_run, path, unknown_share=0.0)
    assert unknown_requests(clicked_run, str(path), max_edges=50, seed=0) is None
    with pytest.raises(ValueError, match="there is no"):
        unknown_requests(clicked_run, str(tmp_path / "no.parquet"), max_edges=50, seed=0)
