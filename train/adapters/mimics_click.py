"""MIMICS-Click: clarification panes of a search engine with aggregated clicks, tab separated.

Source: Zamani et al., "MIMICS", CIKM 2020, and the data set's description of its columns. A line
is a query, its question, up to five options, how often the pane was shown (low, medium, high),
how much it was used (0 to 10), and the share of each option among the clicks. Neither counts nor
rates nor times are published, so impressions are reconstructed with nominal ones:

* a pane was shown 5 times where the label says low, 10 times at medium, 20 times at high;
* a share engagement / 20 of these got one click each (none at 0, half at 10);
* clicks are shared among options by their conditional click shares, by largest remainders.

What the data say survives: which panes are used more, and which options of a pane. Click rates as
such are nominal. Fractions of a click are rounded up or down by a number drawn from the line's
text, so that they are right on average and the same lines give the same rows.
"""

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from train.adapters.adapter import BadRow, Impression, LeftOut, Search
from train.adapters.lines import header_error, num_columns, read_lines
from train.adapters.times import nominal_share, nominal_time

DESCRIPTION = "MIMICS-Click: clarification panes with aggregated clicks; impressions reconstructed"
NOTES: tuple[str, ...] = (
    "impressions are reconstructed from aggregates: 5, 10 or 20 for the levels low, medium, high; "
    "engagement / 20 of them clicked, options by their conditional click share",
    "times are nominal, on 1970-01-01, one per query: the validation split is by query",
    "each pane counts as one session for k-anonymity: the data are aggregated, so train with "
    "mine.min_users = 1",
)
IS_RECONSTRUCTED = True

_SCENARIO = "clarification"
_NUM_OPTIONS = 5
_OPTIONS = [f"option_{i + 1}" for i in range(_NUM_OPTIONS)]
_SHARES = [f"option_cctr_{i + 1}" for i in range(_NUM_OPTIONS)]
_COLUMNS = ["query", "question", *_OPTIONS, "impression_level", "engagement_level", *_SHARES]
_NUM_SHOWN = {"low": 5, "medium": 10, "high": 20}
_MAX_ENGAGEMENT = 10
_CLICKED_AT_MOST = 0.5  # share of the impressions at the highest engagement


def rows(path: Path, left_out: LeftOut) -> Iterator[Search | Impression]:
    """See `Adapter`."""
    places: dict[str, int] = {}  # column -> index
    for number, line in read_lines(path, left_out):
        fields = _fields(line)
        if not places:
            if sorted(fields) != sorted(_COLUMNS):
                expected = f"a header of {', '.join(_COLUMNS)}"
                raise header_error(path, expected, f"{num_columns(fields)} and is another")
            places = {name: i for i, name in enumerate(fields)}
            continue
        try:
            if len(fields) != len(_COLUMNS):
                raise BadRow(f"not {len(_COLUMNS)} columns")
            pane = {name: fields[i] for name, i in places.items()}
            yield from _pane(pane, f"mimics-click:{path.name}:{number}")
        except BadRow as bad:
            left_out.add(str(bad), path, number)


def _fields(line: str) -> list[str]:
    """Returns the columns; quotes are doubled, and in some releases doubled once more."""
    try:
        fields = next(csv.reader([line], delimiter="\t"))
    except csv.Error:
        return []
    return [field.replace('""', '"').strip() for field in fields]


def _pane(pane: dict[str, str], name: str) -> Iterator[Search | Impression]:
    """Returns the reconstructed searches and impressions of one line."""
    query, question = pane["query"], pane["question"]
    options = [pane[o] for o in _OPTIONS]
    shares = [
        _number(pane[share], 1) if text else 0 for text, share in zip(options, _SHARES, strict=True)
    ]
    num_shown = _NUM_SHOWN.get(pane["impression_level"].lower())
    if not query or not any(options):
        raise BadRow("without query or options")
    if num_shown is None:
        raise BadRow("impression_level is not low, medium or high")
    engagement = _number(pane["engagement_level"], _MAX_ENGAGEMENT)
    if engagement and not any(shares):
        raise BadRow("engagement without a clicked option")
    expected = num_shown * _CLICKED_AT_MOST * engagement / _MAX_ENGAGEMENT
    num_clicks = math.floor(expected + nominal_share("\t".join([query, *options])))
    clicked = _allocated(num_clicks, shares)
    time_us = nominal_time(query)
    for number in range(num_shown):
        yield Search(name, time_us, query, None)
        chosen = clicked[number] if number < num_clicks else None
        position = 0
        for option, text in enumerate(options):
            if not text:
                continue
            position += 1
            yield Impression(
                request_id=f"{name}:{number}",
                time_us=time_us,
                session_id=name,
                scenario=_SCENARIO,
                query=query,
                position=position,
                text=text,
                clicked=option == chosen,
                auxiliary_text=question or None,
            )


def _allocated(num_clicks: int, shares: list[float]) -> list[int]:
    """Returns which option each click is on; largest remainders, the earlier option on ties."""
    if not num_clicks:
        return []
    quotas = [num_clicks * share / sum(shares) for share in shares]
    counts = [math.floor(q) for q in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: num_clicks - sum(counts)]:
        counts[i] += 1
    return [i for i, count in enumerate(counts) for _ in range(count)]


def _number(text: str, most: float) -> float:
    try:
        number = float(text or 0)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        raise BadRow(f"a number that is not between 0 and {most:g}")
    return number
