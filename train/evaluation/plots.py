"""Plots as SVG text, for pages that stand alone. Knows nothing of what is plotted."""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from train.evaluation.intervals import Interval

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "queryrec",  # the same figures give the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_COLOURS = ("#1f5f8b", "#c8553d", "#6a994e", "#8d6a9f", "#b08900", "#555555")


def interval_plot(rows: Sequence[tuple[str, Interval]], label: str) -> str:
    """Returns one row a name: its mean as a dot and its interval as a line.

    Args:
        rows: names and figures, first on top.
        label: of the horizontal axis.
    """
    figure, axes = _axes(height=0.5 + 0.24 * len(rows))
    for place, (_, (mean, low, high)) in enumerate(rows):
        colour = _COLOURS[0]
        axes.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot([mean], [place], marker="o", color=colour, markersize=4)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    return _svg(figure)


def line_plot(
    lines: Mapping[str, Sequence[tuple[float, Interval]]],
    x_label: str,
    y_label: str,
    *,
    from_zero: bool = True,
) -> str:
    """Returns a line a system with its interval as a band.

    Args:
        lines: name -> (x, figure), by rising x.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        from_zero: whether that axis begins at 0.
    """
    figure, axes = _axes(height=2.6)
    for number, (name, points) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        x = [place for place, _ in points]
        axes.plot(x, [f.mean for _, f in points], color=colour, label=name, linewidth=1.5)
        low, high = [f.low for _, f in points], [f.high for _, f in points]
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if all(float(x).is_integer() for points in lines.values() for x, _ in points):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.grid(alpha=0.3)
    return _svg(figure)


def _axes(height: float) -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        return figure, figure.subplots()


def _svg(figure: Figure) -> str:
    text = StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
