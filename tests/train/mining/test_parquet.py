import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.mining import logs
from train.mining.parquet import difference, open_files
from train.settings import MineConfig

STRING_ITEMS = pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string())]))
LARGE_ITEMS = pa.large_list(pa.struct([("kind", pa.string()), ("text", pa.large_string())]))


def written(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, version="2.6")
    return path


def test_columns_are_those_of_the_files_not_of_their_paths(tmp_path: Path) -> None:
    text = written(tmp_path / "query=x/num_users=99/a.parquet", query=["tea"], num_users=[1])
    connection = logs.connect(MineConfig(memory_limit_mb=256, num_threads=1), tmp_path)
    rows = open_files(connection, [text]).to_pyarrow().to_pylist()
    assert rows == [{"query": "tea", "num_users": 1}]


def test_a_column_that_only_later_files_have_is_a_difference(tmp_path: Path) -> None:
    old = written(tmp_path / "1.parquet", query=["a"])
    new = written(tmp_path / "2.parquet", query=["a"], user_key=["u"], further=[1])
    columns = ["query", "user_key"]
    assert f"user_key is missing in {old}, string in {new}" in difference([old, new], columns)
    assert f"user_key is string in {new}, missing in {old}" in difference([new, old], columns)
    assert difference([old, new], ["query"]) == ""
    assert difference([old, old, old], columns) == ""


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (pa.array([7]), pa.array(["007"]), "int64 in .*, string in"),
        (pa.array([7]), pa.array([7], pa.int32()), "int64 in .*, int32 in"),
        (pa.array([7]), pa.nulls(1), "int64 in .*, null in"),
        (
            pa.array([1], pa.timestamp("us")),
            pa.array([1], pa.timestamp("us", tz="UTC")),
            "timestamp without a zone in .*, timestamp with a zone in",
        ),
        (pa.array([1], pa.timestamp("us")), pa.array(["now"]), "timestamp .*, string in"),
    ],
)
def test_types_that_engines_convert_are_a_difference(
    tmp_path: Path, one: pa.Array, other: pa.Array, told: str
) -> None:
    files = [
        written(tmp_path / "1.parquet", column=one),
        written(tmp_path / "2.parquet", column=other),
    ]
    assert re.search(told, difference(files, ["column"]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array(["a"]), pa.array(["b"], pa.large_string())),
        (pa.array(["a"]), pa.array(["b"]).dictionary_encode()),
        (pa.array([1], pa.timestamp("ms")), pa.array([1000], pa.timestamp("us"))),
        (pa.array([1], pa.timestamp("us", "UTC")), pa.array([1], pa.timestamp("us", "Asia/Tokyo"))),
        (pa.array([[]], STRING_ITEMS), pa.array([[{"kind": "k", "text": "t"}]], LARGE_ITEMS)),
    ],
)
def test_types_that_are_read_alike_are_no_difference(
    tmp_path: Path, one: pa.Array, other: pa.Array
) -> None:
    files = [
        written(tmp_path / "1.parquet", column=one),
        written(tmp_path / "2.parquet", column=other),
    ]
    assert difference(files, ["column"]) == ""
    connection = logs.connect(MineConfig(memory_limit_mb=256, num_threads=1), tmp_path)
    alone = [open_files(connection, [file]).to_pyarrow().to_pylist() for file in files]
    both = open_files(connection, files).to_pyarrow().to_pylist()
    assert sorted(map(str, both)) == sorted(str(row) for rows in alone for row in rows)


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    good = written(tmp_path / "1.parquet", query=["a"])
    (tmp_path / "2.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.parquet cannot be read as parquet"):
        difference([good, tmp_path / "2.parquet"], ["query"])
