"""What ends mining: told without the log's text, and nothing stays behind."""

import stat
import traceback
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.mining.conftest import START, Write, configured, search, shown
from train.mining.mine import mine


def test_bad_tables_write_nothing(write_log_tables: Write, tmp_path: Path) -> None:
    tables = write_log_tables([search("u1", 0, "tea")], [shown("u1", "tea", clicked=False)])
    out = tmp_path / "run/mined"
    places = {"searches": str(tables.searches), "impressions": str(tables.impressions)}
    with pytest.raises(ValueError, match="no clicks"):
        mine(configured(), **places, out=out, report=lambda _: None)
    with pytest.raises(ValueError, match="at least 2 distinct users"):
        mine(configured(), **{**places, "impressions": ""}, out=out, report=lambda _: None)
    assert not list((tmp_path / "run").rglob("*"))


def no_text(texts: list[bytes]) -> pa.Array:
    """Returns a column of strings that are not UTF-8, as files of other writers may have it."""
    return pa.array(texts, pa.binary()).view(pa.string())


def test_what_an_engine_cannot_read_is_told_without_the_log(tmp_path: Path) -> None:
    columns = {
        "session_id": ["s1", "s2"],
        "time": pa.array([START] * 2, pa.timestamp("us")),
        "query": ["my secret"] * 2,
    }
    pq.write_table(pa.table(columns), tmp_path / "whole.parquet")
    broken = {**columns, "query": no_text([b"my secret \xff", b"my secret"])}
    pq.write_table(pa.table(broken), tmp_path / "bytes.parquet")
    damaged = bytearray((tmp_path / "whole.parquet").read_bytes())
    damaged[4:40] = b"\xff" * 36
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    out = tmp_path / "run/mined"
    for name, why in {
        "bytes.parquet": "a text is not UTF-8",
        "damaged.parquet": "a file is damaged",
    }.items():
        place = str(tmp_path / name)
        with pytest.raises(ValueError, match=why) as raised:
            mine(configured(), searches=place, impressions="", out=out, report=lambda _: None)
        assert f"searches ({place})" in str(raised.value)
        assert "secret" not in "".join(traceback.format_exception(raised.value))
        assert not list((tmp_path / "run").rglob("*"))


def test_an_interrupted_or_killed_mine_leaves_no_raw_text(
    write_log_tables: Write, tmp_path: Path
) -> None:
    tables = write_log_tables([search(u, 0, "tea") for u in ("u1", "u2")], [])
    run = tmp_path / "run"
    (run / "mined.scratch").mkdir(parents=True)
    (run / "mined.scratch/clean.input.parquet").write_text("of one that was killed")
    seen: list[list[Path]] = []

    def interrupt(step: str) -> None:
        assert stat.S_IMODE((run / "mined.scratch").stat().st_mode) == 0o700
        seen.append(sorted(run.rglob("clean*")))
        if step == "pairs of queries":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine(
            configured(),
            searches=str(tables.searches),
            impressions="",
            out=run / "mined",
            report=interrupt,
        )
    assert not seen[0]
    assert seen[-1]
    assert not list(run.rglob("*"))
