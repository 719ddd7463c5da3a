"""The AOL log of 2006: AnonID, Query, QueryTime, ItemRank, ClickURL, parted by tabs, one header.

A line is a search or a click on one of its results; several clicks and further result pages
repeat the query. Files are sorted by user and time. Its clicks are on results, not on
suggestions, so there are no impressions.
"""

from collections.abc import Iterator
from pathlib import Path

from train.adapters.adapter import BadRow, Impression, LeftOut, Search
from train.adapters.lines import header_error, num_columns, read_lines
from train.adapters.times import TimeReader

DESCRIPTION = "AOL 2006: AnonID, Query, QueryTime, ItemRank, ClickURL"
NOTES: tuple[str, ...] = (
    "lines that repeat the query of the line before within 30 minutes are one search: further "
    "clicks, and further pages of results",
    "clicks are on results, not on suggestions: no impressions",
)
IS_RECONSTRUCTED = False

_HEADER = ["anonid", "query", "querytime", "itemrank", "clickurl"]
_BLANKED = "-"
_SAME_SEARCH_US = 30 * 60 * 1_000_000


def rows(path: Path, left_out: LeftOut) -> Iterator[Search | Impression]:
    """See `Adapter`."""
    read_time = TimeReader()
    is_first = True
    user, query, time_us = "", "", 0
    for number, line in read_lines(path, left_out):
        fields = [f.strip() for f in line.split("\t")]
        if is_first:
            is_first = False
            if [f.lower() for f in fields] != _HEADER:
                expected = f"the header {' | '.join(_HEADER)}, tab separated"
                raise header_error(path, expected, f"{num_columns(fields)} and is another")
            continue
        try:
            if not 3 <= len(fields) <= len(_HEADER):
                raise BadRow("not 3 to 5 columns")
            earlier = Search(user, time_us, query, user)
            user, query, time_us = fields[0], fields[1], read_time(fields[2])
            if not user:
                raise BadRow("without AnonID")
            if query in ("", _BLANKED):
                raise BadRow("query is blanked")
            is_repeated = (user, query) == (earlier.session_id, earlier.query)
            if is_repeated and 0 <= time_us - earlier.time_us <= _SAME_SEARCH_US:
                raise BadRow("further click or page of the search before")
            yield Search(user, time_us, query, user)
        except BadRow as bad:
            left_out.add(str(bad), path, number)
