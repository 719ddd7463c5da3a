"""Where the time of our generator graph goes, by kind of operator, from ONNX Runtime's profiler.

    python -m benchmarks.profile --models small --prompts 1,4,16

The graphs are those of `benchmarks.peers`. Nodes inside `Loop` and `If` count as what they are;
what these two take beyond their nodes is the row "between nodes". The profiler slows the graph
down: shares hold better than milliseconds, and `ms` of the last line is measured without it. The
last line of stdout is JSON: by model, precision and number of prompts. Knows nothing of peers.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from benchmarks.peers import models
from benchmarks.peers.options import prompt_counts
from benchmarks.peers.workers.ours import feed_of, graph_of, starts_in
from engine.execution.cpu import num_usable_cpus

ROOT = Path(__file__).parents[1]
BETWEEN = "between nodes"
_CONTROL_FLOW = ("Loop", "If", "Scan")
_NUM_RUNS = 7


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of operator in one generation."""

    ms: float
    share: float
    num_nodes: float  # executions in one generation


def shares(events: Iterable[dict[str, Any]], num_runs: int) -> dict[str, Row]:
    """Returns rows by kind of operator, the longest first.

    Args:
        events: the profiler's, of `num_runs` runs of a graph with control flow.
        num_runs: by which everything is divided.
    """
    total_us = 0
    by_kind: dict[str, int] = defaultdict(int)
    counts = Counter[str]()
    for event in events:
        if event.get("cat") == "Session" and event.get("name") == "model_run":
            total_us += event["dur"]
        kind = event.get("args", {}).get("op_name")
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time") or not kind:
            continue
        if kind not in _CONTROL_FLOW:
            by_kind[kind] += event["dur"]
            counts[kind] += 1
    by_kind[BETWEEN] = max(0, total_us - sum(by_kind.values()))
    return {
        kind: Row(us / 1000 / num_runs, us / max(1, total_us), counts[kind] / num_runs)
        for kind, us in sorted(by_kind.items(), key=lambda item: -item[1])
    }


def profile(graph: Path, feed: dict[str, Any], num_threads: int) -> tuple[float, dict[str, Row]]:
    """Returns the median milliseconds of a generation, and where they go."""
    plain = _session(graph, num_threads, None)
    plain.run(None, feed)
    times = []
    for _ in range(_NUM_RUNS):
        start_s = time.perf_counter()
        plain.run(None, feed)
        times.append((time.perf_counter() - start_s) * 1000)
    del plain
    with tempfile.TemporaryDirectory() as directory:
        session = _session(graph, num_threads, Path(directory) / "profile")
        for _ in range(_NUM_RUNS + 1):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    return statistics.median(times), shares(_without_first_run(events), _NUM_RUNS)


def _without_first_run(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ends = [
        e["ts"] + e["dur"]
        for e in events
        if e.get("cat") == "Session" and e.get("name") == "model_run"
    ]
    first_end = min(ends, default=0)
    return [e for e in events if e.get("ts", 0) >= first_end]


def _session(graph: Path, num_threads: int, prefix: Path | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    if prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(prefix)
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _table(title: str, rows: dict[str, Row]) -> Table:
    table = Table(title=title)
    table.add_column("operator")
    for column in ("ms", "share", "nodes"):
        table.add_column(column, justify="right")
    for kind, row in rows.items():
        if row.share >= 0.002:
            table.add_row(kind, f"{row.ms:.2f}", f"{row.share:.1%}", f"{row.num_nodes:.0f}")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", default="small", help="of small, base (small)")
    parser.add_argument("--precisions", default="int8", help="of int8, fp32 (int8)")
    parser.add_argument("--mode", choices=models.MODES, default="beam",
                        help="beam, as in bundles, or slots (beam)")  # fmt: skip
    parser.add_argument("--prompts", default="1,4,16", help="numbers of prompts (1,4,16)")
    parser.add_argument("--threads", type=int, default=num_usable_cpus(), help="(usable CPUs)")
    parser.add_argument("--root", type=Path, default=ROOT / "runs/peers",
                        help="where models are kept (runs/peers)")  # fmt: skip
    args = parser.parse_args(arguments)
    names, precisions = args.models.split(","), args.precisions.split(",")
    if set(names) - set(models.MODELS) or set(precisions) - set(models.PRECISIONS):
        parser.error("--models are of small, base and --precisions of int8, fp32")
    counts = prompt_counts(parser, args.prompts)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    figures: dict[str, dict[str, dict[str, object]]] = {}
    for name in names:
        directory = models.prepare(name, args.root, lambda line: print(line, file=sys.stderr))
        vocabulary = int((directory / "vocabulary").read_text())
        for precision in precisions:
            for count in counts:
                graph = graph_of(directory, args.mode, precision)
                prompts = models.prompts_of(vocabulary, count, seed=0)
                starts = starts_in(args.mode, models.starts_of(vocabulary))
                feed = feed_of(prompts, starts, models.NEW_TOKENS, vocabulary)
                ms, rows = profile(graph, feed, args.threads)
                title = f"{name} {args.mode} {precision}, {count} prompts: {ms:.1f} ms"
                Console(width=100).print(_table(title, rows))
                figures.setdefault(name, {}).setdefault(precision, {})[str(count)] = {
                    "ms": round(ms, 3),
                    "profiled_ms": round(sum(r.ms for r in rows.values()), 3),
                    "operators": {
                        kind: {"ms": round(r.ms, 3), "share": round(r.share, 4)}
                        for kind, r in rows.items()
                    },
                }
    print(
        json.dumps(
            {**figures, "mode": args.mode, "threads": args.threads, "onnxruntime": ort.__version__}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
