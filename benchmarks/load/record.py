"""Runs kept in files: the figures, and what comparing and plotting need beside them."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from benchmarks.load.figures import Figures, latency_histogram
from benchmarks.load.percentiles import percentile
from benchmarks.load.run import Run
from benchmarks.load.settings import Load


class Second(msgspec.Struct, frozen=True):
    """The requests that were due in one second of a run."""

    num_due: int
    num_errors: int
    p50_ms: float | None
    p99_ms: float | None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A run."""

    figures: dict[str, Any]
    latency_us: str  # HDR histogram of answers, as the library encodes it
    seconds: list[Second]

    def latencies(self) -> "Latencies":
        """Returns the latencies of answers."""
        histogram = HdrHistogram.decode(self.latency_us.encode())
        items = [
            (item.value_iterated_to, item.count_at_value_iterated_to)
            for item in histogram.get_recorded_iterator()
        ]
        value_us, counts = np.array(items or [(0, 0)], np.int64).T
        return Latencies(value_us / 1000, counts)


class Latencies(NamedTuple):
    """Distinct latencies, rising, to three digits, and how often each was seen."""

    value_ms: NDArray[np.float64]
    counts: NDArray[np.int64]


def record_of(load: Load, run: Run, figures: Figures) -> Record:
    """Returns a run as it is kept."""
    num_seconds = int(max((o.due_s for o in run.outcomes), default=0.0) - run.started_s) + 1
    by_second = [[] for _ in range(num_seconds)]
    for outcome in run.outcomes:
        by_second[max(0, int(outcome.due_s - run.started_s))].append(outcome)
    seconds: list[Second] = []
    for outcomes in by_second:
        ms = [o.latency_s * 1000 for o in outcomes if not o.error]
        num_errors = len(outcomes) - len(ms)
        seconds.append(Second(len(outcomes), num_errors, percentile(ms, 50), percentile(ms, 99)))
    return Record(
        figures=figures | {"target": load.target},
        latency_us=latency_histogram(run.outcomes).encode().decode(),
        seconds=seconds,
    )


def write(record: Record, path: Path) -> None:
    """Writes a run as JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def read(path: Path) -> Record:
    """Reads a run.

    Raises:
        ValueError: it cannot be read or is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path}: is no run that --out wrote: {error}") from None
