"""A kept log is used again only for a measurement of its sizes."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.mining import prepare


def num_rows(directory: Path) -> int:
    return sum(pq.read_metadata(p).num_rows for p in (directory / "searches").glob("*.parquet"))


@pytest.mark.slow
def test_a_log_that_is_unfinished_or_of_other_sizes_is_made_anew(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir()
    (directory / "complete").touch()
    prepare(directory, 300, 1500, keep=True)
    assert 300 <= num_rows(directory) < 400  # the last session is walked to its end
    mark = directory / "searches/mark"
    mark.touch()
    prepare(directory, 300, 1500, keep=True)
    assert mark.exists()
    prepare(directory, 400, 1500, keep=True)
    assert not mark.exists()
    assert 400 <= num_rows(directory) < 500
