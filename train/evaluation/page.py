"""One HTML page that stands alone: headings, sentences, tables and plots, nothing to fetch.

Knows nothing of what was evaluated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from train.evaluation.intervals import Interval

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note { color: #555; }
p.warning { border-left: .3rem solid #c60; padding-left: .6rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #555; padding-bottom: .3rem; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid #ddd;
         vertical-align: top; }
th.text, td.text { text-align: left; }
td span { color: #777; font-size: .85em; white-space: nowrap; }
svg { max-width: 100%; height: auto; }
"""
Cell = str | int | float | Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; its first column names the rows."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page, in the order: note, plots, tables."""

    heading: str
    note: str = ""
    plots: Sequence[str] = field(default=())  # SVG
    tables: Sequence[Table] = field(default=())


def page(
    title: str, note: str, sections: Sequence[Section], *, warnings: Sequence[str] = ()
) -> str:
    """Returns the page as HTML 5, warnings first.

    All texts are escaped; plots are taken as they are.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="warning">Warning: {escape(warning)}</p>' for warning in warnings),
        _note(note),
    ]
    for section in sections:
        parts += [f"<h2>{escape(section.heading)}</h2>", _note(section.note)]
        parts += [f"<figure>{plot}</figure>" for plot in section.plots]
        parts += [_table(table) for table in section.tables]
    return "\n".join([*filter(None, parts), "</body></html>"]) + "\n"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _table(table: Table) -> str:
    is_text = [
        not any(isinstance(row[i], int | float | Interval) for row in table.rows)
        for i in range(len(table.header))
    ]
    head = "".join(
        f'<th class="text">{escape(name)}</th>' if text else f"<th>{escape(name)}</th>"
        for name, text in zip(table.header, is_text, strict=True)
    )
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    return (
        f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(value: Cell) -> str:
    if isinstance(value, Interval):
        low, high = number(value.low), number(value.high)
        return f"<td>{number(value.mean)} <span>[{low}, {high}]</span></td>"
    if isinstance(value, float):
        return f"<td>{number(value)}</td>"
    if isinstance(value, int):
        return f"<td>{value}</td>"
    return f'<td class="text">{escape(value or "")}</td>'


def number(value: float) -> str:
    """Returns a figure with three significant digits, without an exponent."""
    if value != value or value in (float("inf"), float("-inf")):
        return "undefined"
    magnitude = abs(value)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{value:.{digits + (1 if 0 < magnitude < 0.1 else 0)}f}"
