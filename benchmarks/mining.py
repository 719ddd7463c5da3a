"""Mines a large simulated log and reports the time and the peak memory that it took.

    python -m benchmarks.mining [--searches N] [--threads N] [--memory-mb N] [--engine duckdb|spark]

The world and its users' behaviour are those of `queryrec-train simulate`. Users are walked in
parts, each with users and sessions of its own, so the log is simulated as a whole, not copied. The
simulator knows some ten thousand queries, real logs have a long tail: a share of the searches gets
two random words more, which makes nearly each of them unique. No impressions. Mining runs in a
process of its own; its memory with all children is sampled five times a second. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.peers.machine import Neighbours, cpu_model
from train.simulator import sessions, tables, world

_QUERIES = Path("examples/data/queries.tsv.gz")
_HELDOUT = Path("examples/data/heldout.txt.gz")
_PART_SEARCHES = 500_000
_SEARCHES_A_USER = 10
_NUM_DAYS = 30
# AOL 2006: 10,154,742 different queries in 36,389,567 rows (its README).
_TAIL_SHARE = 0.28
_START_US = 1_767_225_600_000_000  # 2026-01-01
_SAMPLE_S = 0.2
_SEED = 0


def write_searches(directory: Path, num_searches: int, num_queries: int) -> None:
    """Writes the simulated table of searches, a file per part."""
    directory.mkdir()
    made = world.make(
        _QUERIES, _HELDOUT, num_logged_queries=num_queries, seed=_SEED, click_model="pbm"
    )
    queries = np.array(made.corpus.logged, dtype=object)
    words = np.array(sorted({w for q in queries for w in q.split()}), dtype=object)
    behaviour = sessions.learn(made.truth, made.corpus, seed=_SEED)
    num_users = max(1, _PART_SEARCHES // _SEARCHES_A_USER)
    for part, start in enumerate(range(0, num_searches, _PART_SEARCHES)):
        walked = sessions.walk(
            behaviour,
            num_searches=min(_PART_SEARCHES, num_searches - start),
            num_users=num_users,
            num_days=_NUM_DAYS,
            seed=_SEED + 1 + part,
        )
        texts = queries[walked.query]
        rng = np.random.default_rng([_SEED, part])
        is_rare = rng.random(len(texts)) < _TAIL_SHARE
        first, second = rng.choice(words, (2, int(is_rare.sum())))
        texts[is_rare] += " " + first + " " + second
        micros = _START_US + np.round(walked.time_s * 1e6).astype(np.int64)
        columns: dict[str, list | pa.Array] = {
            "session_id": [f"s{part:x}-{visit:x}" for visit in walked.visit.tolist()],
            "time": pa.array(micros, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "query": texts.tolist(),
            "user_key": [f"u{part:x}-{user:x}" for user in walked.user.tolist()],
        }
        tables.write(columns, tables.SEARCHES, directory / f"{part:04}.parquet")
        print(f"simulated {start + len(texts)} searches", flush=True)


def prepare(directory: Path, num_searches: int, num_queries: int, *, keep: bool) -> None:
    """Makes a directory with a simulated log; one of the same sizes may have been kept."""
    complete = directory / "complete"
    sizes = json.dumps({"searches": num_searches, "queries": num_queries})
    if keep and complete.is_file() and complete.read_text() == sizes:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_searches(directory / "searches", num_searches, num_queries)
    complete.write_text(sizes)


class Usage:
    """Samples what a process, its children and a directory take at most."""

    def __init__(self, pid: int, directory: Path) -> None:
        self._pid = pid
        self._directory = directory
        self.peak_rss_mb = 0.0
        self.peak_disk_mb = 0.0

    def sample(self, *, with_disk: bool) -> None:
        """Takes one sample."""
        rss_kb = sum(_rss_kb(pid) for pid in _family(self._pid))
        self.peak_rss_mb = max(self.peak_rss_mb, rss_kb / 1024)
        if with_disk:
            self.peak_disk_mb = max(self.peak_disk_mb, _size_mb(self._directory))


def _family(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def _rss_kb(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _size_mb(directory: Path) -> float:
    total = 0
    for path in directory.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total / 2**20


def mine(arguments: argparse.Namespace, directory: Path) -> dict[str, object]:
    """Mines the written log in a process of its own and returns what it took."""
    run = directory / "run"
    config = directory / "config.toml"
    config.write_text(
        f'[logs]\nsearches = "{directory / "searches"}"\n'
        f'[mine]\nengine = "{arguments.engine}"\nnum_threads = {arguments.threads}\n'
        f"memory_limit_mb = {arguments.memory_mb}\n"
    )
    command = [sys.executable, "-m", "train", "mine", "--config", str(config), "--run", str(run)]
    started = time.perf_counter()
    with subprocess.Popen([*command, "--force"], stdout=subprocess.PIPE, text=True) as process:
        usage = Usage(process.pid, run)
        neighbours = Neighbours([process.pid])
        share, number = neighbours.share(), 0
        while process.poll() is None:
            usage.sample(with_disk=number % 10 == 0)
            share = neighbours.share() if process.poll() is None else share
            number += 1
            time.sleep(_SAMPLE_S)
        took_s = time.perf_counter() - started
        assert process.stdout is not None
        print(process.stdout.read())
    if process.returncode:
        raise SystemExit(f"mining failed with exit code {process.returncode}")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "mine_s": round(took_s, 1),
        "mine_cpu_s": round(spent.ru_utime + spent.ru_stime, 1),
        "peak_rss_mb": round(usage.peak_rss_mb),
        "peak_disk_mb": round(usage.peak_disk_mb),
        "others_cpu_share": share,
        "summary": json.loads((run / "mined/summary.json").read_text()),
    }


def main() -> None:
    """Simulates, mines, reports, and removes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--searches", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=24_000, help="that simulated users know")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-mb", type=int, default=4096)
    parser.add_argument("--engine", choices=["duckdb", "spark"], default="duckdb")
    parser.add_argument("--directory", type=Path, default=Path("runs/bench-mining"))
    parser.add_argument(
        "--keep", action="store_true", help="keep the log, and reuse a kept one of the same sizes"
    )
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    started = time.perf_counter()
    prepare(directory, arguments.searches, arguments.queries, keep=arguments.keep)
    simulate_s = time.perf_counter() - started
    result = mine(arguments, directory)
    if not arguments.keep:
        shutil.rmtree(directory)
    report = {
        "logs": "simulated",
        "engine": arguments.engine,
        "memory_limit_mb": arguments.memory_mb,
        "threads": arguments.threads,
        "cpu": cpu_model(),
        "simulate_s": round(simulate_s, 1),
        **result,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
