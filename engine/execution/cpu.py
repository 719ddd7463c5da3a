"""What this process may use of the machine's CPUs. Knows nothing of models.

ONNX Runtime sizes its threads by the machine and ignores cgroups and affinity
(https://github.com/microsoft/onnxruntime/issues/10273), so the engine asks here instead.
"""

import os
import re
from pathlib import Path

_ROOT = Path("/")


def num_usable_cpus(root: Path = _ROOT) -> int:
    """Returns how many threads can run at once: the least of affinity and cgroup quotas.

    Quotas are read from the process's own group up to the root: cgroup v2, and the CPU controller
    of v1. A quota of 1.5 CPUs counts as 1: a second thread would be throttled.

    Args:
        root: Where /proc and /sys are; another directory in tests.
    """
    quotas = [*_v2_quotas(root), *_v1_quotas(root)]
    return max(1, min([len(os.sched_getaffinity(0)), *(int(q) for q in quotas)]))


def model_threads(num_processes: int) -> int:
    """Returns how many threads each of so many engines should give its models, at least 1.

    A core of each is left to everything else: answering takes up to a third of one, and a model
    thread that waits for the next product spins.
    """
    return max(1, num_usable_cpus() // num_processes - 1)


def cpu_features(root: Path = _ROOT) -> frozenset[str]:
    """Returns the CPU's feature flags as Linux names them, such as "avx512_vnni"; may be empty."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found.group(1).split()) if found else frozenset()


def missing_features(required: list[str], present: frozenset[str]) -> list[str]:
    """Returns the requirements that are not met.

    A requirement may list alternatives: "avx512_vnni|avx_vnni" is met by either.
    """
    return [r for r in required if not present.intersection(r.split("|"))]


def _v2_quotas(root: Path) -> list[float]:
    quotas: list[float] = []
    for group in _groups(root, "", root / "sys/fs/cgroup"):
        try:
            quota, period = (group / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            quotas.append(int(quota) / int(period))
    return quotas


def _v1_quotas(root: Path) -> list[float]:
    quotas: list[float] = []
    for group in _groups(root, "cpu", root / "sys/fs/cgroup/cpu"):
        try:
            quota = int((group / "cpu.cfs_quota_us").read_text())
            period = int((group / "cpu.cfs_period_us").read_text())
        except (OSError, ValueError):
            continue
        if quota > 0:
            quotas.append(quota / period)
    return quotas


def _groups(root: Path, controller: str, mount: Path) -> list[Path]:
    """Returns the process's own cgroup and those above it, up to where they are mounted.

    In a container the mount may be the own group, while its path is the host's: what is not there
    is for the caller to pass over.

    Args:
        root: Where /proc is.
        controller: Of cgroup v1; "" for v2, whose line in /proc/self/cgroup names none.
        mount: Where its groups are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    own = mount
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controller in controllers.split(","):
            own = mount / path.lstrip("/")
    return [group for group in (own, *own.parents) if group.is_relative_to(mount)]
