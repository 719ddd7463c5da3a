from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.train.mining.conftest import START, Write, search, shown
from train.adapters.importing import import_logs
from train.mining import logs
from train.settings import MineConfig

OGEEK = Path(__file__).parents[1] / "adapters/fixtures/ogeek.txt"


def opened(tmp_path: Path, searches: Path, impressions: Path | str = "") -> logs.LogTables:
    connection = logs.connect(MineConfig(memory_limit_mb=256, num_threads=1), tmp_path)
    return logs.open_tables(connection, searches=str(searches), impressions=str(impressions))


def at(times: pa.Array, path: Path) -> Path:
    """Writes searches at some times."""
    num = len(times)
    columns = {"session_id": range(num), "time": times, "query": ["tea"] * num}
    pq.write_table(pa.table(columns), path, version="2.6")
    return path


def test_a_position_of_a_request_with_several_rows_is_refused(
    write_log_tables: Write, tmp_path: Path
) -> None:
    first = shown("u1", "green tea", clicked=False)
    rows = [first, {**first, "clicked": True}, {**first, "position": 2}, shown("u2", "green tea")]
    tables = write_log_tables([search("u1", 0, "tea")], rows)
    with pytest.raises(ValueError, match="1 positions of a request have several rows"):
        opened(tmp_path, tables.searches, tables.impressions)


@pytest.mark.parametrize("missing", [{"request_id": None}, {"request_id": ""}, {"position": None}])
def test_rows_without_request_or_position_repeat_nothing(
    write_log_tables: Write, tmp_path: Path, missing: dict[str, Any]
) -> None:
    rows = [shown("u1", "green tea", **missing)] * 2
    tables = write_log_tables([search("u1", 0, "tea")], [*rows, shown("u2", "green tea")])
    opened(tmp_path, tables.searches, tables.impressions)


@pytest.mark.parametrize("propensity", [float("nan"), -1.0, 0.0, 9.0])
def test_propensities_that_are_no_probability_are_refused(
    write_log_tables: Write, tmp_path: Path, propensity: float
) -> None:
    rows = [shown("u1", "green tea"), shown("u2", "green tea", propensity=propensity)]
    tables = write_log_tables([search("u1", 0, "tea")], rows)
    with pytest.raises(ValueError, match="1 rows whose propensity is not above 0"):
        opened(tmp_path, tables.searches, tables.impressions)


@pytest.mark.parametrize("propensity", [None, 1e-9, 1.0])
def test_a_propensity_may_be_unknown(
    write_log_tables: Write, tmp_path: Path, propensity: float | None
) -> None:
    tables = write_log_tables(
        [search("u1", 0, "tea")], [shown("u1", "green tea", propensity=propensity)]
    )
    opened(tmp_path, tables.searches, tables.impressions)


def test_times_of_no_year_are_refused(tmp_path: Path) -> None:
    ms = round(START.timestamp() * 1000)
    as_seconds = at(pa.array([ms, 0]).cast(pa.timestamp("s")), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match="column time has 1 rows beyond the years 1 to 9999"):
        opened(tmp_path, as_seconds)


def test_nothing_but_january_1970_is_warned_of_unless_imported(tmp_path: Path) -> None:
    ms = round(START.timestamp() * 1000)
    as_us = pa.array([ms, None], pa.int64()).cast(pa.timestamp("us"))
    (warning,) = opened(tmp_path, at(as_us, tmp_path / "us.parquet")).warnings
    assert "column time has nothing but January 1970" in warning
    year = datetime(1970, 1, 1), START + timedelta(days=1)
    assert not opened(tmp_path, at(pa.array(year), tmp_path / "good.parquet")).warnings
    import_logs("ogeek", [OGEEK], tmp_path / "logs")
    assert not opened(tmp_path, *sorted((tmp_path / "logs").iterdir(), reverse=True)).warnings
