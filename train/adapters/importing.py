"""Imports log files of a public format: whole or not at all, in memory that does not grow.

Knows nothing of formats beyond `Adapter`.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from train.adapters import ADAPTERS
from train.adapters.adapter import Impression, LeftOut, Search
from train.adapters.writer import TableWriter
from train.config import IMPRESSIONS, SEARCHES
from train.locks import locked


class ImportSummary(NamedTuple):
    """What was imported, what was left out, and what was assumed."""

    num_searches: int
    num_impressions: int
    num_clicks: int
    is_reconstructed: bool
    left_out: list[str]  # a line per reason: count, reason, first place
    notes: tuple[str, ...]


def import_logs(name: str, files: Sequence[Path], out: Path) -> ImportSummary:
    """Writes searches.parquet and, where there are any, impressions.parquet into a directory.

    The tables say in their metadata (`queryrec.import`) where they are from, whether they are
    reconstructed, and what was assumed. They appear when all files have been read.

    Args:
        name: of the format.
        files: read in this order; plain or gzip.
        out: directory; made if need be.

    Raises:
        ValueError: the format is unknown, a table exists already, another import writes into the
            directory, or a file cannot be read, is not of the format, or has no usable row. Then
            nothing is written.
    """
    adapter = ADAPTERS.get(name)
    if adapter is None:
        raise ValueError(f"unknown format {name!r}; known are {', '.join(ADAPTERS)}")
    names, places = [f.name for f in files], [f.resolve() for f in files]
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file")
        if places.count(path.resolve()) > 1:
            raise ValueError(f"{path}: is given twice")
        if adapter.IS_RECONSTRUCTED and names.count(path.name) > 1:
            raise ValueError(f"{path}: files must differ in name, which tells their rows apart")
    existed = out.exists()
    try:
        with locked(
            out / ".import.lock",
            hindered=f"{out}: cannot be written into",
            busy=f"{out}: another import writes here; wait for it or use another --out",
        ):
            return _import(name, files, out)
    finally:
        if not existed:
            with suppress(OSError):  # it holds what others wrote
                out.rmdir()


def _import(name: str, files: Sequence[Path], out: Path) -> ImportSummary:
    adapter = ADAPTERS[name]
    for table in (out / SEARCHES, out / IMPRESSIONS):
        if table.exists():
            raise ValueError(f"{table} exists already and is not written over: use another --out")
    origin = {
        "format": name,
        "files": [f.name for f in files],
        "is_reconstructed": adapter.IS_RECONSTRUCTED,
        "notes": adapter.NOTES,
    }
    metadata = {"queryrec.import": json.dumps(origin)}
    searches = TableWriter(out / SEARCHES, Search, metadata)
    impressions = TableWriter(out / IMPRESSIONS, Impression, metadata)
    left_out = LeftOut()
    num_clicks = 0
    try:
        for path in files:
            num_before = searches.num_rows + impressions.num_rows
            for row in adapter.rows(path, left_out):
                if isinstance(row, Search):
                    searches.add(row)
                else:
                    impressions.add(row)
                    num_clicks += row.clicked
            if searches.num_rows + impressions.num_rows == num_before:
                why = "; ".join(left_out.lines())
                raise ValueError(f"{path}: has no usable row{': ' if why else ''}{why}")
        searches.finish()
        impressions.finish()
        impressions.publish()
        searches.publish()
    finally:
        searches.discard()
        impressions.discard()
    return ImportSummary(
        num_searches=searches.num_rows,
        num_impressions=impressions.num_rows,
        num_clicks=num_clicks,
        is_reconstructed=adapter.IS_RECONSTRUCTED,
        left_out=left_out.lines(),
        notes=adapter.NOTES,
    )
