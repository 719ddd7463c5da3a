import os
from pathlib import Path

import pytest

from engine.execution.cpu import cpu_features, missing_features, model_threads, num_usable_cpus


def write(root: Path, name: str, content: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


AFFINITY = len(os.sched_getaffinity(0))


def test_without_quotas_affinity_decides(tmp_path):
    assert num_usable_cpus(tmp_path) == AFFINITY


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("100000 100000", 1), ("150000 100000", 1), ("10000 100000", 1), ("max 100000", AFFINITY)],
)
def test_the_quota_of_the_own_cgroup_counts(tmp_path, quota, expected):
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", quota)
    assert num_usable_cpus(tmp_path) == expected


def test_the_quota_of_a_parent_cgroup_counts_too(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    write(tmp_path, "sys/fs/cgroup/a/cpu.max", "100000 100000")
    write(tmp_path, "sys/fs/cgroup/a/b/cpu.max", "max 100000")
    assert num_usable_cpus(tmp_path) == 1


def test_quotas_of_the_first_cgroup_version_count(tmp_path):
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000")
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert num_usable_cpus(tmp_path) == 1


V1 = "5:cpuset:/\n4:cpu,cpuacct:/system.slice/engine.service\n1:name=systemd:/x\n0::/x\n"


@pytest.mark.parametrize("group", ["system.slice/engine.service", "system.slice", "."])
def test_in_the_first_version_the_own_cgroup_and_those_above_count(tmp_path, group):
    write(tmp_path, "proc/self/cgroup", V1)
    for directory, quota in ((".", "-1"), (group, "100000")):
        write(tmp_path, f"sys/fs/cgroup/cpu/{directory}/cpu.cfs_quota_us", quota)
        write(tmp_path, f"sys/fs/cgroup/cpu/{directory}/cpu.cfs_period_us", "100000")
    assert num_usable_cpus(tmp_path) == 1


def test_features_are_read_from_cpuinfo(tmp_path):
    write(tmp_path, "proc/cpuinfo", "processor : 0\nflags\t\t: fpu avx2 avx512_vnni\n\n")
    assert cpu_features(tmp_path) == {"fpu", "avx2", "avx512_vnni"}


def test_an_alternative_is_enough():
    present = frozenset({"avx_vnni", "avx2"})
    assert missing_features(["avx512_vnni|avx_vnni", "avx2"], present) == []
    assert missing_features(["avx512_vnni", "avx2"], present) == ["avx512_vnni"]


@pytest.mark.parametrize(
    ("num_cpus", "num_processes", "expected"),
    [(1, 1, 1), (2, 1, 1), (8, 1, 7), (8, 2, 3), (4, 4, 1)],
)
def test_models_leave_a_core_of_each_engine_free(monkeypatch, num_cpus, num_processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(num_cpus))
    monkeypatch.setattr("engine.execution.cpu._v2_quotas", lambda _: [])
    monkeypatch.setattr("engine.execution.cpu._v1_quotas", lambda _: [])
    assert model_threads(num_processes) == expected
