"""The index at size: recall and time of look-ups, memory, disk, and how long it takes to build.

    python -m benchmarks.hnsw [--bundle DIR] [--sizes 10000,1000000] [--ef 64,128] [--threads 1]

Real queries of examples/data, and real queries with a word more, which `_MODIFIERS` holds: which
query gets which word, before or behind, is drawn with a fixed seed until there are enough distinct
texts; how often each was searched is drawn from a Zipf distribution. They are embedded by the
bundle's encoder and written with the project's own index code. The effort that training would
choose is found (`chosen_ef`), and 1,000 held-out real queries are looked up on one thread, once for
that and for each --ef. Recall@10 is the share of the ten nearest by exact search; equal
similarities count as equal. `prefix_*_ms` is how long it takes to find the most searched queries
that begin with the first 1 to 10 characters of those 1,000. A process that serves the index maps
what is on disk, which all processes share, and has private memory besides. `load_stall_ms` is how
long loading kept another thread of it waiting. The last line of stdout is JSON: a list with an
object for each size.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import onnx
import psutil

from benchmarks.load.arguments import read_lines
from benchmarks.peers.machine import cpu_model
from engine.execution.bundle import Bundle, load_bundle
from engine.execution.models import Encoder
from engine.formats.graph import Floats, Rows
from engine.formats.index import GRAPH, CooccurrenceIndex, Edges, write_index
from engine.formats.manifest import MAX_ENCODER_TOKENS, IndexSpec
from engine.formats.text import normalise
from export.index import embed
from export.parity import session_of
from train.retrieval.effort import exact_similarities, least_effort, probe_texts, recall_of
from train.settings import IndexConfig

_DATA = Path("examples/data")
_MODIFIERS = (
    *("best", "cheap", "new", "used", "free", "online", "near me", "review", "price", "sale"),
    *("small", "large", "black", "white", "red", "blue", "for kids", "for women", "for men"),
    *("how to", "what is", "ideas", "pictures", "history", "parts", "repair", "kit", "set"),
    *("vintage", "custom", "wholesale", "discount", "2024", "2025", "manual", "for sale"),
    *("waterproof", "wireless", "portable", "outdoor", "size chart", "replacement", "download"),
)
_K = 10
_NUM_HELDOUT = 1000
_NUM_ROUNDS = 3  # of all look-ups; the first one is warm-up
_SEED = 0
_ZIPF = 2.0  # exponent
_LONGEST_PREFIX = 10
_NUM_COMPLETIONS = 48  # as an engine asks for by default


class LookUps(NamedTuple):
    """What one effort of the search gives."""

    ef_search: int
    rows: list[Rows]  # found, for each that was asked for
    p50_ms: float
    p99_ms: float
    p50_cpu_ms: float  # of the thread's own time, whoever else runs on the machine
    p99_cpu_ms: float


class Times(NamedTuple):
    """Milliseconds of look-ups."""

    p50: float
    p99: float
    slowest: float


class Searched(NamedTuple):
    """What a process that loads an index finds."""

    look_ups: list[LookUps]
    prefix_ms: Times  # of finding the most searched queries with a prefix
    private_bytes: int
    load_s: float
    load_stall_ms: float  # longest time that the loading kept another thread from running


def queries_of(num: int) -> list[str]:
    """Returns distinct queries, sorted as an index wants them; the same for the same number.

    Raises:
        ValueError: so many cannot be made.
    """
    rows = [line.split("\t")[0] for line in read_lines(_DATA / "queries.tsv.gz")[1:]]
    real = list(dict.fromkeys(filter(None, map(normalise, rows))))
    most = len(real) * len(_MODIFIERS) * 3 // 2  # of twice as many: the last ones are drawn late
    if num > most:
        raise ValueError(f"--sizes has {num}: the recipe gives up to {most}")
    rng = random.Random(_SEED)
    rng.shuffle(real)
    texts = dict.fromkeys(real[:num])
    while len(texts) < num:
        query, word = rng.choice(real), rng.choice(_MODIFIERS)
        texts[f"{word} {query}" if rng.random() < 0.5 else f"{query} {word}"] = None
    return sorted(texts, key=lambda text: text.encode("utf-8"))


def search(
    directory: Path,
    spec: IndexSpec,
    asked: Sequence[str],
    asked_HD: Floats,
    efs: Sequence[int],
) -> Searched:
    """Loads an index and looks queries up, one at a time on one thread."""
    process = psutil.Process()
    before_bytes, started_s = _private_bytes(process), time.perf_counter()
    found: list[LookUps] = []
    prefix_ms = Times(0.0, 0.0, 0.0)
    load_s, private_bytes = 0.0, 0
    ticker = _Ticker()
    for ef in efs:
        index = CooccurrenceIndex(directory, msgspec.structs.replace(spec, ef_search=ef))
        load_s = load_s or time.perf_counter() - started_s
        ticker.stop()
        times_s: list[tuple[float, float]] = []
        found_H: list[Rows] = []
        for _ in range(_NUM_ROUNDS):
            found_H.clear()
            for asked_D in asked_HD:
                called_s, cpu_s = time.perf_counter(), time.thread_time()
                rows, _ = index.nearest(asked_D, _K)
                times_s.append((time.perf_counter() - called_s, time.thread_time() - cpu_s))
                found_H.append(rows)
                index.text(int(rows[0]))
        if not found:
            prefix_ms = _prefix_ms(index, asked)
        private_bytes = private_bytes or _private_bytes(process) - before_bytes
        counted_ms = 1000 * np.array(times_s[len(asked_HD) :])
        percentiles = np.percentile(counted_ms, [50, 99], axis=0, method="higher").round(4)
        found.append(LookUps(ef, found_H, *percentiles.T.flatten().tolist()))
        del index
    return Searched(found, prefix_ms, private_bytes, round(load_s, 2), ticker.longest_ms)


def _private_bytes(process: psutil.Process) -> int:
    """Returns how much memory is resident that no file backs."""
    info = process.memory_info()
    return info.rss - info.shared


class _Ticker(threading.Thread):
    """Runs every half a millisecond, as an event loop has to, until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest_ms = 0.0
        self._is_over = threading.Event()
        self.start()

    def run(self) -> None:
        last_s = time.perf_counter()
        while not self._is_over.is_set():
            time.sleep(0.0005)
            now_s = time.perf_counter()
            self.longest_ms = max(self.longest_ms, round(1000 * (now_s - last_s), 2))
            last_s = now_s

    def stop(self) -> None:
        self._is_over.set()
        self.join()


def _prefix_ms(index: CooccurrenceIndex, asked: Sequence[str]) -> Times:
    rng = random.Random(_SEED)
    prefixes = [text[: rng.randint(1, _LONGEST_PREFIX)] for text in asked]
    times_s: list[float] = []
    for prefix in prefixes * 2:
        called_s = time.perf_counter()
        index.starting_with(prefix, _NUM_COMPLETIONS)
        times_s.append(time.perf_counter() - called_s)
    counted_ms = 1000 * np.array(times_s[len(prefixes) :])  # the first round reads the files
    return Times(*np.percentile(counted_ms, [50, 99, 100], method="higher").round(4).tolist())


def measure(
    bundle: Bundle, encoder: Encoder, num: int, args: argparse.Namespace
) -> dict[str, object]:
    """Returns the figures of one size."""
    old = bundle.manifest.index
    assert old is not None
    texts = queries_of(num)
    heldout = list(
        dict.fromkeys(filter(None, map(normalise, read_lines(_DATA / "heldout.txt.gz"))))
    )
    asked = random.Random(_SEED).sample(heldout, _NUM_HELDOUT)
    _report(f"{num} queries: embedding")
    started_s = time.perf_counter()
    embeddings_QD = embed(encoder, [bundle.encoder_ids(t) for t in texts], _report)
    embed_s = time.perf_counter() - started_s
    asked_HD = embed(encoder, [bundle.encoder_ids(t) for t in asked], _report)
    spec = msgspec.structs.replace(
        old, num_queries=num, m=args.m, ef_construction=args.ef_construction
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        started_s = time.perf_counter()
        write_index(
            directory,
            texts=texts,
            popularity=np.random.default_rng(_SEED).zipf(_ZIPF, num).astype(np.float32),
            edges=Edges(
                np.zeros(num + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32)
            ),
            embeddings=embeddings_QD,
            m=spec.m,
            ef_construction=spec.ef_construction,
            num_threads=args.threads,
            report=_report,
        )
        build_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        chosen_ef = least_effort(
            directory / GRAPH,
            embeddings_QD,
            embed(encoder, [bundle.encoder_ids(t) for t in probe_texts(texts, seed=0)], _report),
            min_recall=IndexConfig().min_recall,
            report=_report,
        )
        choose_s = time.perf_counter() - started_s
        exact_HK = exact_similarities(embeddings_QD, asked_HD)
        efs = sorted({*args.ef, chosen_ef})
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            searched = pool.apply(search, (directory, spec, asked, asked_HD, efs))
        look_ups: list[dict[str, float]] = []
        for found in searched.look_ups:
            recall = recall_of(found.rows, embeddings_QD, asked_HD, exact_HK)
            figures = {"ef_search": found.ef_search, "recall_at_10": round(recall, 4)}
            look_ups.append(figures | dict(zip(LookUps._fields[2:], found[2:], strict=True)))
            _report(str(look_ups[-1]))
        disk_bytes = sum(p.stat().st_size for p in directory.iterdir())
    return {
        "num_queries": num,
        "dim": spec.embedding_dim,
        "m": spec.m,
        "ef_construction": spec.ef_construction,
        "embed_s": round(embed_s, 1),
        "build_s": round(build_s, 1),
        "build_threads": args.threads,
        "chosen_ef": chosen_ef,
        "choose_s": round(choose_s, 1),
        "load_s": searched.load_s,
        "load_stall_ms": searched.load_stall_ms,
        "prefix_p50_ms": searched.prefix_ms.p50,
        "prefix_p99_ms": searched.prefix_ms.p99,
        "prefix_max_ms": searched.prefix_ms.slowest,
        "private_bytes_a_query": round(searched.private_bytes / num, 1),
        "disk_bytes_a_query": round(disk_bytes / num, 1),
        "look_ups": look_ups,
    }


def _report(line: str) -> None:
    print(line, file=sys.stderr)


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise ValueError
    return numbers


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns what the command line asks for; exits with status 2 if it is nonsense."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hnsw", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--bundle", type=Path, default=Path("examples/bundle"))
    parser.add_argument("--sizes", type=_numbers, default=[1_000_000], help="queries (1000000)")
    parser.add_argument("--ef", type=_numbers, default=[64, 144, 256], help="of searches")
    parser.add_argument("--m", type=int, default=0, help="links; 0: the default of training")
    parser.add_argument("--ef-construction", type=int, default=0, help="0: the same")
    parser.add_argument("--threads", type=int, default=1, help="of the build (1)")
    args = parser.parse_args(arguments)
    if args.threads < 1 or min(args.m, args.ef_construction) < 0:
        parser.error("--threads must be at least 1, --m and --ef-construction at least 0")
    return args


def main() -> int:
    args = parse()
    try:
        bundle = load_bundle(args.bundle, None)
        manifest = bundle.manifest
        if manifest.encoder is None or manifest.index is None:
            raise ValueError(f"{args.bundle}: has no encoder and index")
        args.m = args.m or IndexConfig().m
        args.ef_construction = args.ef_construction or IndexConfig().ef_construction
        session = session_of(onnx.load(args.bundle / manifest.encoder.file))
        encoder = Encoder(session, MAX_ENCODER_TOKENS)
        figures = [measure(bundle, encoder, num, args) for num in args.sizes]
    except (ValueError, OSError) as error:  # BundleError is one
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"cpu": cpu_model(), "cores": os.cpu_count(), "sizes": figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
