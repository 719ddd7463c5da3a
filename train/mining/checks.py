"""Whether the rows of log tables can be used, and what to say where they cannot.

Knows nothing of columns' types, nor of files but where rows are from.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import ibis

from train.mining.parquet import Table, is_import
from train.mining.results import number_of, rows_of

_ENDS = ("min", "max")
# Between these, every engine and Python can reckon with a time.
_FIRST_TIME, _LAST_TIME = datetime(1, 1, 2), datetime(9999, 12, 31)
_EPOCH, _FEBRUARY = datetime(1970, 1, 1), datetime(1970, 2, 1)
_MAX_WITHOUT_USER = 0.1  # share of rows, where others have a user
# Of probabilities that other programs added up in 32 bits.
_ROUNDING = 1e-6


class Findings(NamedTuple):
    """What the rows of a table are like."""

    num_rows: int
    num_users: int  # rows with a user_key
    errors: list[str]  # why the table cannot be used
    warnings: list[str]


def check_searches(table: Table, files: Iterable[Path]) -> Findings:
    """Checks the rows of searches, which the files hold."""
    return _checked("searches", table, files, [])[0]


def check_impressions(table: Table, files: Iterable[Path]) -> Findings:
    """Checks the rows of impressions, which the files hold."""
    propensity = table.propensity
    is_impossible = propensity.isnan() | (propensity <= 0) | (propensity > 1 + _ROUNDING)
    sums = ((table.shown & table.clicked).sum(), (table.position < 1).sum(), is_impossible.sum())
    findings, (num_clicks, num_low, num_impossible) = _checked("impressions", table, files, sums)
    errors = findings.errors
    if not num_clicks and findings.num_rows:
        errors.append(
            "table impressions has no clicks (rows with shown and clicked true): "
            "leave logs.impressions empty to train without a click model"
        )
    if num_low:
        errors.append(f"table impressions has {num_low} rows with position < 1")
    if num_impossible:
        errors.append(
            f"table impressions has {num_impossible} rows whose propensity is not above 0 and at "
            "most 1: leave it null where it is not known"
        )
    if num_mixed := num_mixed_requests(table):
        errors.append(
            f"table impressions: {num_mixed} request_ids stand for several panels, with more "
            "than one scenario or query: give each panel an id of its own, such as that of "
            "the page with the scenario added to it"
        )
    if num_repeated := num_repeated_positions(table):
        errors.append(
            f"table impressions: {num_repeated} positions of a request have several rows: if "
            "exports overlap, as those of `queryrec-engine impressions` from the same feedback "
            "do, keep the latest alone; else give each panel a request_id of its own and each "
            "suggestion a position"
        )
    return findings


def _checked(
    name: str, table: Table, files: Iterable[Path], sums: Sequence[Any]
) -> tuple[Findings, list[int]]:
    """Returns what is found of any table, and further sums, all in one pass."""
    time = table.time
    is_impossible = (time < _FIRST_TIME) | (time >= _LAST_TIME)
    is_nominal = (time >= _EPOCH) & (time < _FEBRUARY)
    numbers = [table.count(), table.user_key.count(), time.count()]
    numbers += [is_impossible.sum(), is_nominal.sum(), *sums]
    (row,) = rows_of(table.agg(**{f"n{i}": number for i, number in enumerate(numbers)}))
    num_rows, num_users, num_times, num_impossible, num_nominal, *others = (
        int(value or 0) for value in row.values()
    )
    errors: list[str] = []
    warnings: list[str] = []
    if not num_rows:
        errors.append(f"table {name} has no rows")
    if num_impossible:
        errors.append(
            f"table {name}: column time has {num_impossible} rows beyond the years 1 to 9999; are "
            "they in another unit, such as milliseconds written as seconds?"
        )
    if 0 < num_users < (1 - _MAX_WITHOUT_USER) * num_rows:
        warnings.append(
            f"table {name}: {num_rows - num_users} of {num_rows} rows have no user_key, which "
            "others have, so they count for nobody"
        )
    # Public logs without times have nominal ones, all on one day.
    if 0 < num_times == num_nominal and not all(map(is_import, files)):
        warnings.append(
            f"table {name}: column time has nothing but January 1970; are times in another unit, "
            "such as milliseconds written as microseconds? Pauses between searches seem shorter "
            "then, or longer"
        )
    return Findings(num_rows, num_users, errors, warnings), others


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


def num_repeated_positions(impressions: Table) -> int:
    """Returns how many positions of requests have more than one row."""
    is_known = impressions.request_id.notnull() & impressions.position.notnull()
    rows = impressions.filter(is_known)
    positions = rows.group_by("request_id", "position").agg(num_rows=rows.count())
    return number_of(positions.filter(positions.num_rows > 1).count())


def num_shared_requests(tables: Sequence[Table]) -> int:
    """Returns how many request_ids occur in more than one of two or more tables."""
    numbered = [t.select("request_id", place=ibis.literal(i)) for i, t in enumerate(tables)]
    rows: Table = ibis.union(*numbered)
    rows = rows.filter(rows.request_id.notnull())
    requests = rows.group_by("request_id").agg(places=rows.place.nunique())
    return number_of(requests.filter(requests.places > 1).count())
