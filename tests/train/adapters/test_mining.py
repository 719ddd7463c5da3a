"""What is imported can be mined: the reconstructed formats, which have neither users nor times."""

from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from train.adapters.importing import import_logs
from train.config import read_config
from train.mining.mine import MineSummary, mine

HEADER = (Path(__file__).parent / "fixtures/mimics-click.tsv").read_text().splitlines()[0]


def mined(logs: Path, out: Path, min_users: int) -> tuple[list[dict[str, Any]], MineSummary]:
    config = read_config(None, size="tiny", logs=[logs])
    settings = msgspec.structs.replace(config.mine, min_users=min_users, num_threads=1)
    config = msgspec.structs.replace(config, mine=settings)
    places = config.logs
    summary = mine(
        config,
        searches=places.searches,
        impressions=places.impressions,
        out=out,
        report=lambda _: None,
    )
    return pq.read_table(out / "impressions.parquet").to_pylist(), summary


def test_mimics_panes_are_split_by_query_and_keep_their_questions(tmp_path: Path) -> None:
    pane = "thing {0}\tWhich thing {1}?\tthing {0} a\tthing {0} b" + "\t" * 4
    pane += "medium\t6\t0.5\t0.5\t0\t0\t0\n"
    panes = tmp_path / "panes.tsv"
    panes.write_text(HEADER + "\n" + "".join(pane.format(i, i % 3) for i in range(100)))
    import_logs("mimics-click", [panes], tmp_path / "logs")

    rows, summary = mined(tmp_path / "logs", tmp_path / "mined", min_users=1)

    assert (summary.num_impressions, summary.num_clicks) == (2000, 300)
    queries = {s: {r["query"] for r in rows if r["split"] == s} for s in ("train", "valid")}
    assert len(queries["train"]) + len(queries["valid"]) == 100
    assert 5 <= len(queries["valid"]) <= 15
    assert {r["auxiliary_text"] for r in rows} == {f"which thing {i}?" for i in range(3)}
    with pytest.raises(ValueError, match="at least 2 distinct sessions"):
        mined(tmp_path / "logs", tmp_path / "again", min_users=2)


def test_ogeek_lines_are_split_by_prefix(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text(
        "".join(
            f"lamp {i}\t{{}}\tlamp {i} shade\tarticle\t{round_ % 2}\n"
            for round_ in range(10)
            for i in range(50)
        )
    )
    import_logs("ogeek", [lines], tmp_path / "logs")

    rows, summary = mined(tmp_path / "logs", tmp_path / "mined", min_users=5)

    assert summary.counted == "sessions"
    assert (summary.num_impressions, summary.num_clicks) == (500, 250)
    prefixes = {s: {r["query"] for r in rows if r["split"] == s} for s in ("train", "valid")}
    assert not prefixes["train"] & prefixes["valid"]
    assert prefixes["valid"]
