"""A run as one HTML page that stands alone: figures and two plots, nothing to fetch."""

from html import escape
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.load.record import Record

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud
    "svg.hashsalt": "queryrec",  # the same figures give the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_COLOURS = ("#1f5f8b", "#c8553d", "#6a994e", "#6d3f8f")
_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem 1.5rem .2rem 0; text-align: left; border-bottom: 1px solid #ddd; }
svg { max-width: 100%; height: auto; }
"""
_MAX_MARKERS = 2000
_SHARES = ("omissions", "efforts", "statuses", "errors_by_reason")


def page(record: Record) -> str:
    """Returns the page."""
    figures = record.figures
    plain = {k: v for k, v in figures.items() if not isinstance(v, dict)}
    scenarios = {"scenario": "p50, p95, p99 in ms; in budget"} | {
        name: f"{f['p50_ms']}, {f['p95_ms']}, {f['p99_ms']}; {f['in_budget']}"
        for name, f in figures["scenarios"].items()
    }
    title = f"Load on {figures['target']}: {figures['num_requests']} requests"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}</title><style>{_CSS}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            "<h2>Latency by percentile</h2>",
            f"<figure>{_percentile_plot(record)}</figure>",
            "<h2>Latency and errors over time</h2>",
            f"<figure>{_time_plot(record)}</figure>",
            "<h2>Figures</h2>",
            _table(plain),
            *(_table({name: "", **figures[name]}) for name in _SHARES if figures[name]),
            _table(scenarios),
            "</body></html>\n",
        ]
    )


def _percentile_plot(record: Record) -> str:
    latencies = record.latencies()
    total = max(1, int(latencies.counts.sum()))
    # The largest one is the percentile that the number of requests can tell at all.
    beyond = 1 - (latencies.counts.cumsum() - 0.5) / total
    figure, axes = _axes()
    axes.plot(1 / beyond, latencies.value_ms, color=_COLOURS[0], linewidth=1.5)
    axes.axhline(float(record.figures["budget_ms"]), color=_COLOURS[1], linestyle="--")
    axes.set_xscale("log")
    ticks = [k for k in range(6) if k == 0 or 10 ** (k - 1) < 2 * total]
    labels = ["0", "90", "99", "99.9", "99.99", "99.999"]
    axes.set_xticks([10.0**k for k in ticks], [labels[k] for k in ticks])
    axes.minorticks_off()
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms (dashed: budget)")
    axes.set_ylim(bottom=0)
    return _svg(figure)


def _time_plot(record: Record) -> str:
    figure, axes = _axes()
    second = np.arange(len(record.seconds))
    # A second between two without an answer has no line of its own; a day has too many markers.
    marker = "." if len(second) <= _MAX_MARKERS else ""
    for name, colour, values in (
        ("p50", _COLOURS[0], [s.p50_ms for s in record.seconds]),
        ("p99", _COLOURS[1], [s.p99_ms for s in record.seconds]),
    ):
        ms = [np.nan if v is None else v for v in values]
        axes.plot(second, ms, marker, linestyle="-", color=colour, label=name, markersize=4)
    axes.set_xlabel("seconds since the start")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    counts = axes.twinx()
    for name, colour, values in (
        ("due a second", _COLOURS[2], [s.num_due for s in record.seconds]),
        ("errors a second", _COLOURS[3], [s.num_errors for s in record.seconds]),
    ):
        counts.plot(
            second, values, marker, linestyle="-", color=colour, label=name, markersize=4, alpha=0.6
        )
    counts.set_ylabel("requests a second")
    counts.set_ylim(bottom=0)
    counts.spines["right"].set_visible(True)
    figure.legend(frameon=False, loc="outside upper center", ncols=4)
    return _svg(figure)


def _axes() -> tuple[Figure, Axes]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _svg(figure: Figure) -> str:
    text = StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _table(rows: dict[str, Any]) -> str:
    texts = [(escape(name), "" if v is None else escape(str(v))) for name, v in rows.items()]
    cells = "".join(f"<tr><td>{name}</td><td>{text}</td></tr>" for name, text in texts)
    return f"<table>{cells}</table><p></p>"
