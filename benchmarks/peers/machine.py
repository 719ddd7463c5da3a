"""What the measurements ran on, and how much of it others used meanwhile. Reads /proc only."""

import platform
from collections.abc import Iterable
from pathlib import Path

from engine.execution.cpu import cpu_features

_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def cpu_model() -> str:
    """Returns the CPU's name, with family and model where the name says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    values = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    family = f"family {values.get('cpu family', '?')} model {values.get('model', '?')}"
    return f"{values.get('model name', platform.machine())} ({family})"


def features() -> list[str]:
    """Returns those of the CPU's features that decide how fast matrices are multiplied."""
    present = cpu_features()
    return [f for f in _FEATURES if f in present]


class Neighbours:
    """Measures the CPU time that other processes take while ours are measured."""

    def __init__(self, ours: Iterable[int]) -> None:
        """Starts measuring; `ours` are the ids of processes that are not others."""
        self._ours = tuple(ours)
        self._start = self._ticks()

    def share(self) -> float | None:
        """Returns the share of the machine's CPU time that others took since the start."""
        busy, total, own = (
            now - then for now, then in zip(self._ticks(), self._start, strict=True)
        )
        return round(max(0, busy - own) / total, 3) if total > 0 else None

    def _ticks(self) -> tuple[int, int, int]:
        return (*_machine_ticks(), sum(_ticks(pid) for pid in self._ours))


def _machine_ticks() -> tuple[int, int]:
    """Returns busy and all clock ticks of the machine since it started."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return 0, 0
    ticks = [int(word) for word in first.split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])
