import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.mining import logs
from train.settings import MineConfig, Places


def opened(directory: Path, searches: Places, impressions: Places = "") -> logs.LogTables:
    connection = logs.connect(MineConfig(memory_limit_mb=256, num_threads=1), directory)
    return logs.open_tables(connection, searches=searches, impressions=impressions)


def rows_of(table: Any) -> list[dict[str, Any]]:
    return table.to_pyarrow().to_pylist()


def changed(source: Path, target: Path, **columns: Any) -> str:
    """Writes a copy of a table with columns replaced, or removed where None."""
    table = pq.read_table(source)
    for name, values in columns.items():
        table = table.drop_columns(name) if name in table.column_names else table
        if values is not None:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, target)
    return str(target)


def test_good_tables_are_read_from_file_directory_and_glob(
    simulated_logs: Any, tmp_path: Path
) -> None:
    searches = pq.read_table(simulated_logs.searches)
    (tmp_path / "parts").mkdir()
    for part in range(2):
        pq.write_table(searches.slice(part * 900, 900), tmp_path / f"parts/{part}.parquet")
    for place in (simulated_logs.searches, tmp_path / "parts", tmp_path / "parts/*.parquet"):
        tables = opened(tmp_path, str(place))
        assert tables.searches.count().to_pyarrow().as_py() == 1800
        assert tables.counts_users
        assert tables.impressions is None


def test_every_missing_column_and_wrong_type_is_named(simulated_logs: Any, tmp_path: Path) -> None:
    num = pq.read_metadata(simulated_logs.searches).num_rows
    searches = changed(
        simulated_logs.searches, tmp_path / "s.parquet", query=None, time=["today"] * num
    )
    impressions = changed(
        simulated_logs.impressions, tmp_path / "i.parquet", clicked=None, side_information=None
    )
    with pytest.raises(ValueError, match="misses the columns query") as raised:
        opened(tmp_path, searches, impressions)
    message = str(raised.value)
    assert "column time is string, must be timestamp" in message
    assert "impressions misses the columns side_information, clicked" in message


def test_impressions_without_clicks_are_refused(simulated_logs: Any, tmp_path: Path) -> None:
    num = pq.read_metadata(simulated_logs.impressions).num_rows
    place = changed(simulated_logs.impressions, tmp_path / "i.parquet", clicked=[False] * num)
    with pytest.raises(ValueError, match="has no clicks"):
        opened(tmp_path, str(simulated_logs.searches), place)


def test_positions_below_one_are_refused(simulated_logs: Any, tmp_path: Path) -> None:
    num = pq.read_metadata(simulated_logs.impressions).num_rows
    place = changed(simulated_logs.impressions, tmp_path / "i.parquet", position=[0] * num)
    with pytest.raises(ValueError, match=f"{num} rows with position < 1"):
        opened(tmp_path, str(simulated_logs.searches), place)


def test_an_empty_table_is_refused(simulated_logs: Any, tmp_path: Path) -> None:
    pq.write_table(pq.read_table(simulated_logs.searches).slice(0, 0), tmp_path / "s.parquet")
    with pytest.raises(ValueError, match="searches has no rows"):
        opened(tmp_path, str(tmp_path / "s.parquet"))


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "s.parquet").write_text("session_id,time,query")
    with pytest.raises(ValueError, match=r"s\.parquet cannot be read as parquet"):
        opened(tmp_path, str(tmp_path / "s.parquet"))
    with pytest.raises(ValueError, match="there is no "):
        opened(tmp_path, str(tmp_path / "absent.parquet"))
    with pytest.raises(ValueError, match="table searches"):
        opened(tmp_path, str(tmp_path / "absent*.parquet"))


def test_without_user_keys_sessions_are_counted(simulated_logs: Any, tmp_path: Path) -> None:
    searches = changed(simulated_logs.searches, tmp_path / "s.parquet", user_key=None)
    assert not opened(tmp_path, searches).counts_users
    tables = opened(tmp_path, searches, str(simulated_logs.impressions))
    assert (tables.counts_users, tables.counts_viewers) == (False, True)


def test_times_with_a_zone_become_utc_and_ids_strings(tmp_path: Path) -> None:
    zone = pa.timestamp("us", tz="America/New_York")
    noon = pa.array([datetime(2024, 7, 1, 16)], pa.timestamp("us", tz="UTC")).cast(zone)
    table = pa.table({"session_id": [7], "time": noon, "query": ["a"]})
    pq.write_table(table, tmp_path / "s.parquet")
    row = opened(tmp_path, str(tmp_path / "s.parquet")).searches.to_pyarrow().to_pylist()[0]
    assert row["session_id"] == "7"
    assert row["time"] == datetime(2024, 7, 1, 16)


def test_tables_of_several_places_are_one_and_absent_columns_null(
    simulated_logs: Any, tmp_path: Path
) -> None:
    old = pq.read_table(simulated_logs.impressions).slice(0, 90)
    new = old.slice(0, 9).drop_columns(
        ["user_key", "propensity", "auxiliary_text", "side_information"]
    )
    new = new.append_column("bundle_id", pa.array(["b"] * 9))
    swapped = pa.list_(pa.struct([("text", pa.string()), ("kind", pa.string())]))
    items = pa.array([[{"text": "tea", "kind": "session"}]] + [None] * 8, swapped)
    new = new.append_column("side_information", items)
    for name, values in {
        "request_id": pa.array(range(9)),
        "position": pa.array([1] * 9, pa.int16()),
        "time": pa.array([datetime(2026, 1, 1)] * 9, pa.timestamp("ms", tz="Asia/Tokyo")),
    }.items():
        new = new.set_column(new.column_names.index(name), name, values)
    pq.write_table(old, tmp_path / "old.parquet")
    pq.write_table(new, tmp_path / "new.parquet")
    places = [str(tmp_path / f"{name}.parquet") for name in ("old", "new")]

    searches = str(simulated_logs.searches)
    both = rows_of(opened(tmp_path, [searches], places).impressions)

    alone = rows_of(opened(tmp_path, searches, places[0]).impressions)
    added = [row for row in both if row not in alone]
    assert len(both) == 99
    assert len(added) == 9
    assert {r["request_id"] for r in added} == {str(n) for n in range(9)}
    assert {(r["user_key"], r["propensity"], r["auxiliary_text"]) for r in added} == {(None,) * 3}
    assert {r["time"] for r in added} == {datetime(2026, 1, 1)}
    items = [r["side_information"] for r in added if r["side_information"]]
    assert items == [[{"kind": "session", "text": "tea"}]]


def test_each_place_is_checked_and_named(simulated_logs: Any, tmp_path: Path) -> None:
    good = str(simulated_logs.searches)
    bad = changed(simulated_logs.searches, tmp_path / "s.parquet", query=None)
    with pytest.raises(ValueError, match=r"searches \(.*s\.parquet\) misses the columns query"):
        opened(tmp_path, [good, bad])


def test_overlapping_impressions_are_refused(simulated_logs: Any, tmp_path: Path) -> None:
    table = pq.read_table(simulated_logs.impressions)
    pq.write_table(table.slice(0, 6), tmp_path / "i.parquet")
    requests = len(set(table["request_id"].slice(0, 6).to_pylist()))
    with pytest.raises(ValueError, match=f"{requests} request_ids occur in more than one of"):
        opened(
            tmp_path,
            str(simulated_logs.searches),
            [str(simulated_logs.impressions), str(tmp_path / "i.parquet")],
        )


@pytest.mark.parametrize("column", ["scenario", "query"])
def test_a_request_id_of_several_panels_is_refused(
    simulated_logs: Any, tmp_path: Path, column: str
) -> None:
    table = pq.read_table(simulated_logs.impressions)
    values = table[column].to_pylist()
    values[0] = "another"  # two rows more have its request_id
    place = changed(simulated_logs.impressions, tmp_path / "i.parquet", **{column: values})
    with pytest.raises(ValueError, match="1 request_ids stand for several panels"):
        opened(tmp_path, str(simulated_logs.searches), place)


def test_a_query_of_a_panel_may_differ_in_case_and_spaces(
    simulated_logs: Any, tmp_path: Path
) -> None:
    queries = pq.read_table(simulated_logs.impressions)["query"].to_pylist()
    queries[0] = f" {queries[0].upper()} ".replace(" ", "  ")
    place = changed(simulated_logs.impressions, tmp_path / "i.parquet", query=queries)
    impressions = opened(tmp_path, str(simulated_logs.searches), place).impressions
    assert queries[0] in [row["query"] for row in rows_of(impressions)]


def test_requests_without_an_id_are_not_of_two_places(simulated_logs: Any, tmp_path: Path) -> None:
    table = pq.read_table(simulated_logs.impressions).slice(0, 90)
    places = []
    for name, part, missing in (("a", table.slice(0, 45), None), ("b", table.slice(45), "")):
        ids = pa.array([missing, *part["request_id"].to_pylist()[1:]], pa.string())
        pq.write_table(part.set_column(0, "request_id", ids), tmp_path / f"{name}.parquet")
        places.append(str(tmp_path / f"{name}.parquet"))
    opened(tmp_path, str(simulated_logs.searches), places)


def test_a_file_in_two_places_is_refused(simulated_logs: Any, tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    for name, source in (("s", simulated_logs.searches), ("i", simulated_logs.impressions)):
        shutil.copy(source, directory / f"{name}.parquet")
    searches, impressions = (str(directory / f"{name}.parquet") for name in "si")
    (tmp_path / "link.parquet").symlink_to(searches)
    shutil.copy(searches, tmp_path / "further.parquet")
    for places in (
        [str(directory / "s*.parquet"), searches],
        [searches, str(tmp_path / "link.parquet")],
        [str(tmp_path / "f*.parquet"), str(tmp_path / "*her.parquet")],
    ):
        with pytest.raises(ValueError, match=r"table searches: .*parquet is in more than one of"):
            opened(tmp_path, places)
    with pytest.raises(ValueError, match=r"table impressions: .*i\.parquet is in more than one of"):
        opened(tmp_path, searches, [impressions, str(directory / "i*")])
    both = opened(tmp_path, [searches, str(tmp_path / "further.parquet")])
    assert both.searches.count().to_pyarrow().as_py() == 3600


@pytest.mark.parametrize("name", ["logs[1]", "what?", "a*b", "{a,b}"])
def test_names_with_signs_of_patterns_are_names(
    simulated_logs: Any, tmp_path: Path, name: str
) -> None:
    directory = tmp_path / name
    directory.mkdir()
    searches = pq.read_table(simulated_logs.searches)
    for part in range(2):
        pq.write_table(searches.slice(part * 900, 900), directory / f"{name}{part}.parquet")
    for place, num in ((directory, 1800), (directory / f"{name}0.parquet", 900)):
        tables = opened(tmp_path, str(place))
        assert tables.searches.count().to_pyarrow().as_py() == num
