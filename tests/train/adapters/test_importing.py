import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from train.adapters import ADAPTERS
from train.adapters.adapter import LeftOut, Search
from train.adapters.importing import ImportSummary, import_logs
from train.cli import app
from train.mining import logs
from train.settings import MineConfig

FIXTURES = Path(__file__).parent / "fixtures"
FILES = {
    "tsv": "own.tsv",
    "aol": "aol.tsv",
    "amazonqac": "amazonqac.jsonl",
    "mimics-click": "mimics-click.tsv",
    "ogeek": "ogeek.txt",
}
RECONSTRUCTED = {"mimics-click", "ogeek"}


def called(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def own(directory: Path, content: str | bytes, name: str = "my.tsv") -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def imported(path: Path, out: Path, name: str = "tsv") -> ImportSummary:
    return import_logs(name, [path], out)


def assert_refused(path: Path, directory: Path, *parts: str, name: str = "tsv") -> None:
    """Nothing may be written, and the error must be one line that names the file and the parts."""
    before = sorted(directory.rglob("*"))
    result = called(name, path, "--out", directory / "logs")
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    for part in (path.name, *parts):
        assert part in result.stderr
    assert sorted(directory.rglob("*")) == before


def test_every_format_has_a_fixture() -> None:
    assert list(FILES) == list(ADAPTERS)


@pytest.mark.parametrize("name", FILES)
def test_training_accepts_the_tables_of_every_format(name: str, tmp_path: Path) -> None:
    summary = imported(FIXTURES / FILES[name], tmp_path / "logs", name)
    connection = logs.connect(MineConfig(memory_limit_mb=256, num_threads=1), tmp_path)
    place = tmp_path / "logs/impressions.parquet"
    tables = logs.open_tables(
        connection,
        searches=str(tmp_path / "logs/searches.parquet"),
        impressions=str(place) if place.exists() else "",
    )
    assert tables.searches.count().to_pyarrow().as_py() == summary.num_searches
    num_impressions = 0
    if tables.impressions is not None:
        num_impressions = tables.impressions.count().to_pyarrow().as_py()
    assert num_impressions == summary.num_impressions
    connection.disconnect()


@pytest.mark.parametrize("name", FILES)
def test_tables_say_where_they_are_from_and_whether_they_are_reconstructed(
    name: str, tmp_path: Path
) -> None:
    printed = called(name, FIXTURES / FILES[name], "--out", tmp_path / "logs").stdout
    assert ("RECONSTRUCTED" in printed) == (name in RECONSTRUCTED)
    for table in (tmp_path / "logs").iterdir():
        metadata = json.loads(pq.read_schema(table).metadata[b"queryrec.import"])
        assert metadata["format"] == name
        assert metadata["files"] == [FILES[name]]
        assert metadata["is_reconstructed"] == (name in RECONSTRUCTED)
        assert all(note in printed for note in metadata["notes"])


@pytest.mark.parametrize("name", FILES)
def test_gzip_gives_the_same_rows_again(name: str, tmp_path: Path) -> None:
    plain = FIXTURES / FILES[name]
    packed = own(tmp_path, gzip.compress(plain.read_bytes()), plain.name)
    summaries = [imported(p, tmp_path / p.parent.name, name) for p in (plain, packed)]
    assert summaries[0] == summaries[1]
    for table in (tmp_path / "fixtures").iterdir():
        assert rows_of(table) == rows_of(tmp_path / tmp_path.name / table.name)


def test_bad_lines_are_counted_by_reason_with_the_first_place(tmp_path: Path) -> None:
    content = (
        b"s\t2026-03-01 10:00\ttea\n\ns\t2026-03-01 10:01\n\ts\t\n"
        b"s\tsoon\ttea\ns\t2026-03-01\ttea\n\t2026-03-01 10:01\ttea\ns\t2026-03-01 10:01\t \n"
        b"s\t2026-03-01 10:02\t\xff\xfetea\ns\t2026-03-01 10:03\tt\xc3\xa9\r\n" + b"x" * (3 << 20)
    )
    summary = imported(own(tmp_path, content), tmp_path / "logs")
    assert summary.left_out == [
        "3 without session or query (first at my.tsv:4)",
        "1 not 3 columns (first at my.tsv:3)",
        "1 time cannot be read (first at my.tsv:5)",
        "1 time is a date without a time of day (first at my.tsv:6)",
        "1 not UTF-8 (first at my.tsv:9)",
        "1 longer than 1 MiB (first at my.tsv:11)",
    ]
    assert [r["query"] for r in rows_of(tmp_path / "logs/searches.parquet")] == ["tea", "té"]


def test_a_file_of_another_encoding_is_refused_rather_than_robbed_of_its_umlauts(
    tmp_path: Path,
) -> None:
    words = ["tee", "grüner tee", "kännchen", "milch"] * 20
    text = "".join(f"s\t{1772354400 + i}\t{word}\n" for i, word in enumerate(words))
    latin1 = own(tmp_path, text.encode("latin-1"))
    assert_refused(latin1, tmp_path, "40 of 80 lines are not UTF-8", "iconv -f latin1")
    some_broken = text * 20 + "s\t1772354400\t\xff\n" * 15
    summary = imported(
        own(tmp_path, some_broken.encode("latin-1").replace(b"\xfc", b"u").replace(b"\xe4", b"a")),
        tmp_path / "logs",
    )
    assert summary.left_out == ["15 not UTF-8 (first at my.tsv:1601)"]


def test_a_file_of_other_columns_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    assert_refused(own(tmp_path, "a,b,c\n"), tmp_path, "session, time, query", "has 1 column")
    assert_refused(own(tmp_path, "id\twhen\twhat\n"), tmp_path, "with or without a header")
    assert_refused(own(tmp_path, "s\t1\t2\t3\t4\n"), tmp_path, "session, time, query")
    for name in ("aol", "mimics-click", "ogeek", "amazonqac"):
        expected = {"ogeek": "query_prediction", "aol": "anonid", "amazonqac": "final_search_term"}
        part = expected.get(name, "option_cctr_5")
        assert_refused(FIXTURES / "own.tsv", tmp_path, part, name=name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "line", ["secret-id\tsoon\tsecret query\tsecret user", "secret", "a\tb\tc\td\tsecret"]
)
def test_a_refused_file_is_not_quoted(tmp_path: Path, name: str, line: str) -> None:
    result = called(name, own(tmp_path, line + "\n"), "--out", tmp_path / "logs")
    assert result.exit_code == 2
    assert "first line" in result.stderr
    assert "secret" not in result.output + result.stderr


def test_files_without_usable_rows_are_refused(tmp_path: Path) -> None:
    assert_refused(own(tmp_path, ""), tmp_path, "is empty")
    assert_refused(own(tmp_path, gzip.compress(b"")), tmp_path, "is empty")
    assert_refused(own(tmp_path, "session\ttime\tquery\n"), tmp_path, "has no usable row")
    assert_refused(own(tmp_path, b"\xff\n" * 3), tmp_path, "no usable row: 3 not UTF-8")
    assert_refused(own(tmp_path, "session\ttime\tquery\ns\tsoon\tx\n"), tmp_path, "time cannot be")
    assert_refused(own(tmp_path, "s\t1772354400\tq\n".encode("utf-16")), tmp_path, "UTF-16")


def test_a_damaged_gzip_file_leaves_nothing_behind(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"s\t1772354400\tq%d\n" % i for i in range(250_000)))
    assert_refused(own(tmp_path, whole[:-1000]), tmp_path, "cut short or damaged")


def test_one_bad_file_of_several_leaves_nothing_behind(tmp_path: Path) -> None:
    good, bad = own(tmp_path, "s\t1772354400\tq\n"), own(tmp_path, "", "bad.tsv")
    with pytest.raises(ValueError, match=r"bad\.tsv: is empty"):
        import_logs("tsv", [good, bad], tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
    with pytest.raises(ValueError, match="is given twice"):
        import_logs("tsv", [good, good], tmp_path / "logs")
    with pytest.raises(ValueError, match="no such file"):
        import_logs("tsv", [tmp_path], tmp_path / "logs")
    with pytest.raises(ValueError, match="known are tsv, aol"):
        import_logs("csv", [good], tmp_path / "logs")


def test_only_formats_whose_rows_have_no_ids_want_files_of_different_names(tmp_path: Path) -> None:
    days = [tmp_path / name for name in ("day1", "day2")]
    for day in days:
        day.mkdir()
    parts = [own(day, f"{day.name}\t1772354400\tq\n", "part-0.tsv") for day in days]
    assert import_logs("tsv", parts, tmp_path / "logs").num_searches == 2
    shown = [Path(shutil.copy(FIXTURES / "ogeek.txt", day)) for day in days]
    with pytest.raises(ValueError, match="must differ in name"):
        import_logs("ogeek", shown, tmp_path / "others")


@pytest.mark.parametrize("table", ["searches.parquet", "impressions.parquet"])
def test_an_existing_table_is_never_written_over(tmp_path: Path, table: str) -> None:
    (tmp_path / "logs").mkdir()
    own(tmp_path / "logs", "precious", table)
    result = called("ogeek", FIXTURES / "ogeek.txt", "--out", tmp_path / "logs")
    assert result.exit_code == 2
    assert f"{table} exists already" in result.stderr
    assert [p.name for p in (tmp_path / "logs").iterdir()] == [table]
    assert (tmp_path / "logs" / table).read_text() == "precious"


def test_two_imports_do_not_write_into_one_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = own(tmp_path, "s\t1772354400\tq\n"), tmp_path / "logs"

    def rows(path: Path, left_out: LeftOut) -> Iterator[Search]:
        yield Search("s", 0, "of the first", None)
        with pytest.raises(ValueError, match="another import writes here"):
            imported(path, out)

    slow = SimpleNamespace(NOTES=(), IS_RECONSTRUCTED=False, rows=rows)
    monkeypatch.setitem(ADAPTERS, "slow", slow)
    imported(path, out, "slow")
    assert [p.name for p in out.iterdir()] == ["searches.parquet"]
    assert [row["query"] for row in rows_of(out / "searches.parquet")] == ["of the first"]


def test_other_files_in_the_directory_stay(tmp_path: Path) -> None:
    kept = own(tmp_path, "s\t1772354400\tq\n")
    imported(kept, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my.tsv", "searches.parquet"]


_MEASURE = """
import re, sys
from pathlib import Path
from train.adapters.importing import import_logs
import_logs("tsv", [Path(sys.argv[1])], Path(sys.argv[2]))
# Not ru_maxrss, which a new program takes over from the one that started it.
print(re.findall(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[0])
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks_kib = []
    for num_lines in (200_000, 1_000_000):
        path = tmp_path / f"{num_lines}.tsv.gz"
        with gzip.open(path, "wt", compresslevel=1) as stream:
            for i in range(num_lines):
                stream.write(f"s{i // 3}\t{1_772_354_400 + i}\tquery number {i * 7919 % 99991}\n")
        run = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(path), str(tmp_path / str(num_lines))],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        peaks_kib.append(int(run.stdout))
        metadata = pq.read_metadata(tmp_path / str(num_lines) / "searches.parquet")
        assert metadata.num_rows == num_lines
        assert metadata.num_row_groups == num_lines // 100_000
    assert peaks_kib[1] - peaks_kib[0] < 64 << 10
