"""What is counted of log tables to tell whether they can be used.

Knows nothing of columns' types, or of what is said of what it finds.
"""

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import ibis

from train.mining.results import number_of, rows_of

Table: TypeAlias = Any
_ENDS = ("min", "max")


def counted(table: Table, *sums: Any) -> list[int]:
    """Returns the number of rows, that of rows with a user_key, and sums, all in one pass."""
    numbers = [table.count(), table.user_key.count(), *sums]
    (row,) = rows_of(table.agg(**{f"n{i}": number for i, number in enumerate(numbers)}))
    return [int(value or 0) for value in row.values()]


def num_mixed_requests(impressions: Table) -> int:
    """Returns how many request_ids have rows of more than one scenario or query.

    Queries that differ in case and spaces are one.
    """
    rows = impressions.filter(impressions.request_id.notnull())
    rows = rows.mutate(query=rows.query.lower().re_replace(" +", " ").strip())
    requests = rows.group_by("request_id").agg(
        **{f"{end}_{c}": getattr(rows[c], end)() for c in ("scenario", "query") for end in _ENDS}
    )
    is_mixed = (requests.min_scenario != requests.max_scenario) | (
        requests.min_query != requests.max_query
    )
    return number_of(requests.filter(is_mixed).count())


def num_shared_requests(tables: Sequence[Table]) -> int:
    """Returns how many request_ids occur in more than one of two or more tables."""
    numbered = [t.select("request_id", place=ibis.literal(i)) for i, t in enumerate(tables)]
    rows: Table = ibis.union(*numbered)
    rows = rows.filter(rows.request_id.notnull())
    requests = rows.group_by("request_id").agg(places=rows.place.nunique())
    return number_of(requests.filter(requests.places > 1).count())


def files_of_several(places: Sequence[str]) -> list[Path]:
    """Returns the files that are in more than one place, sorted; links are what they lead to.

    Args:
        places: files, directories of parquet files, or globs.
    """
    num_places = Counter(file for place in places for file in _files_of(place))
    return sorted(file for file, num in num_places.items() if num > 1)


def _files_of(place: str) -> set[Path]:
    path = Path(place)
    if path.is_dir():
        found = path.glob("*.parquet")
    elif path.exists():
        found = [path]
    else:
        found = map(Path, glob.glob(place, recursive=True))
    return {file.resolve() for file in found}
