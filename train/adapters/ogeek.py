"""OGeek (OPPO, Tianchi 2018): what was typed, a title shown for it, and whether it was clicked.

Lines of prefix, query_prediction (JSON, query -> probability), title, tag and label, parted by
tabs, without a header. Lines are single impressions: nothing says which were shown together, at
which position, when, or to whom. A title that starts with what was typed is a completion; others
are answers of another kind and left out. A completion counts as a search of its title, clicked or
not: the click model reads how often a text was searched, and must not read its own label there.
"""

from collections.abc import Iterator
from pathlib import Path

from engine.formats.text import normalise, normalise_prefix
from train.adapters.adapter import BadRow, Impression, LeftOut, Search
from train.adapters.lines import header_error, num_columns, read_lines
from train.adapters.times import nominal_time

DESCRIPTION = "OGeek: prefix, query_prediction, title, tag, label; completions reconstructed"
NOTES: tuple[str, ...] = (
    "titles that start with what was typed are taken as completions; query_prediction and tag "
    "are not used",
    "each completion that was shown is also a search of its title, clicked or not: were it a "
    "search only when clicked, how often a title was searched would tell the click",
    "each line is a panel of its own at position 1: positions are not in the data, so nothing can "
    "be learnt about them",
    "times are nominal, on 1970-01-01, one per prefix: the validation split is by prefix",
    "each line counts as one session for k-anonymity: users are not in the data",
)
IS_RECONSTRUCTED = True

_SCENARIO = "completion"
_NUM_COLUMNS = 5
_EXPECTED = (
    "lines of prefix, query_prediction (a JSON object), title, tag, label, parted by tabs; test "
    "files, which have no label, are of no use"
)


def rows(path: Path, left_out: LeftOut) -> Iterator[Search | Impression]:
    """See `Adapter`."""
    is_first = True
    for number, line in read_lines(path, left_out):
        fields = line.split("\t")
        if is_first and len(fields) != _NUM_COLUMNS:
            raise header_error(path, _EXPECTED, num_columns(fields))
        if is_first and fields[1].strip()[:1] not in ("{", ""):
            raise header_error(path, _EXPECTED, "has no JSON object in its second column")
        is_first = False
        try:
            if len(fields) != _NUM_COLUMNS:
                raise BadRow(f"not {_NUM_COLUMNS} columns")
            yield from _shown(fields, f"ogeek:{path.name}:{number}")
        except BadRow as bad:
            left_out.add(str(bad), path, number)


def _shown(fields: list[str], name: str) -> Iterator[Search | Impression]:
    prefix, _, title, _, label = fields
    if label.strip() not in ("0", "1"):
        raise BadRow("label is not 0 or 1")
    typed = normalise_prefix(prefix)
    if not typed or not normalise(title):
        raise BadRow("without prefix or title")
    if not normalise(title).startswith(typed):
        raise BadRow("title does not start with what was typed: no completion")
    time_us, clicked = nominal_time(typed), label.strip() == "1"
    yield Search(name, time_us, title, None)
    yield Impression(name, time_us, name, _SCENARIO, prefix, 1, title, clicked, None)
