"""What a change of releases costs the requests of that moment.

Serves a bundle through a link, puts a load on it, and every few seconds moves the link and sends
SIGHUP: to a release with an index of its own, back, to one with models of its own, back (the first
two alone with --index-only). Caches are off, prompts distinct, arrivals Poisson; the same is run
without swaps before, with other queries of the file.

The last line of stdout is one JSON object: num_reloads (how often the engine was told), num_swaps
(after how many of them another release answered before the next), num_requests, errors, late (later
than --budget-ms), full (share of answers that left nothing out), p99_ms, and without swaps
quiet_errors, quiet_late, quiet_full, quiet_p99_ms.

    python -m benchmarks.swap --bundle DIR --queries examples/data/heldout.txt.gz --rate 50
"""

import argparse
import asyncio
import itertools
import json
import math
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.load.arguments import mix_of, read_lines
from benchmarks.load.caller import Outcome
from benchmarks.load.figures import percentile
from benchmarks.load.run import run
from benchmarks.load.settings import Load
from benchmarks.served import point, served
from engine.formats.manifest import MANIFEST_FILE, read_manifest, sha256_of, write_manifest
from engine.scheduling.stages import Effort

_ENGINE = {"QUERYREC_CACHE_MAX_BYTES": "0"}
_DOC_STRING = b"\x32\x04swap"  # a field of an ONNX model; protobuf reads what is appended, too


def write_release(bundle: Path, directory: Path, *, with_models: bool) -> None:
    """Writes a bundle with the same answers, but another index and, on request, other models."""
    shutil.copytree(bundle, directory)
    manifest = read_manifest(directory)
    (directory / MANIFEST_FILE).unlink()
    files, encoder = dict(manifest.files), ""
    if with_models:
        for name in (n for n in files if n.endswith(".onnx")):
            with (directory / name).open("ab") as model:
                model.write(_DOC_STRING)
            files[name] = sha256_of(directory / name)
        encoder = files[manifest.encoder.file] if manifest.encoder else ""
    index = manifest.index
    if index and encoder:
        index = msgspec.structs.replace(index, encoder_sha256=encoder)
    write_manifest(
        directory,
        msgspec.structs.replace(manifest, bundle_id=directory.name, files=files, index=index),
    )


class Reload(NamedTuple):
    """A moment at which an engine was told to serve another release."""

    at_s: float  # of `time.perf_counter`
    bundle_id: str


def num_swaps(reloads: Sequence[Reload], outcomes: Sequence[Outcome], first: str) -> int:
    """Returns after how many reloads another release answered requests due before the next one.

    Args:
        reloads: In their order.
        outcomes: All requests of that time.
        first: Bundle that the engine served before.
    """
    num, serving = 0, first
    ends_s = [reload.at_s for reload in reloads[1:]] + [math.inf]
    for reload, end_s in zip(reloads, ends_s, strict=True):
        answered = {o.bundle_id for o in outcomes if reload.at_s <= o.due_s < end_s}
        if reload.bundle_id != serving and reload.bundle_id in answered:
            num, serving = num + 1, reload.bundle_id
    return num


def measure(load: Load, bundle: Path, every_s: float, index_only: bool) -> dict[str, object]:
    """Returns the figures of the last line; `load` has no target yet."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        index, models, link = root / "index-release", root / "model-release", root / "current"
        write_release(bundle, index, with_models=False)
        write_release(bundle, models, with_models=True)
        link.symlink_to(bundle.resolve())
        with served(link, _ENGINE) as engine:
            quiet_load = replace(load, target=engine.target, queries=load.queries[::2])
            busy_load = replace(quiet_load, queries=load.queries[1::2], seed=load.seed + 1)
            quiet = asyncio.run(run(quiet_load)).outcomes
            others = [index] if index_only else [index, models]
            releases = itertools.cycle([place for other in others for place in (other, bundle)])
            is_over = threading.Event()
            reloads: list[Reload] = []

            def swap() -> None:
                while not is_over.wait(every_s):
                    release = next(releases)
                    point(link, release)
                    reloads.append(Reload(time.perf_counter(), read_manifest(release).bundle_id))
                    engine.reload()

            swapping = threading.Thread(target=swap)
            swapping.start()
            try:
                busy = asyncio.run(run(busy_load)).outcomes
            finally:
                is_over.set()
                swapping.join()
    return {
        "num_reloads": len(reloads),
        "num_swaps": num_swaps(reloads, busy, read_manifest(bundle).bundle_id),
        "num_requests": len(busy),
        **_figures(load, busy),
        **{f"quiet_{name}": value for name, value in _figures(load, quiet).items()},
    }


def _figures(load: Load, outcomes: Sequence[Outcome]) -> dict[str, object]:
    answers = [o for o in outcomes if not o.error]
    latency_ms = [o.latency_s * 1000 for o in answers]
    return {
        "errors": len(outcomes) - len(answers),
        "late": sum(ms > load.budget_ms for ms in latency_ms),
        "full": round(sum(o.effort == Effort.FULL for o in answers) / max(1, len(answers)), 4),
        "p99_ms": percentile(latency_ms, 99),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.swap", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--bundle", type=Path, required=True, help="directory of a bundle")
    parser.add_argument("--queries", type=Path, required=True, help="text file, one query a line")
    parser.add_argument("--scenarios", default="suggestion", help="the mix (default suggestion)")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second (40)")
    parser.add_argument("--duration", type=float, default=40.0, help="seconds of either run (40)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between swaps (5)")
    parser.add_argument("--index-only", action="store_true", help="models stay as they are")
    parser.add_argument("--budget-ms", type=float, default=50.0, help="budget of an answer (50)")
    args = parser.parse_args()
    if not (math.isfinite(args.every) and args.every > 0):
        parser.error(f"--every is {args.every}; it must be above 0")
    try:
        queries = tuple(dict.fromkeys(read_lines(args.queries)))
        if len(queries) < 2:
            raise ValueError(f"--queries has {len(queries)} different queries; it needs at least 2")
        load = Load(
            target="",
            queries=queries,
            rate_rps=args.rate,
            duration_s=args.duration,
            budget_ms=args.budget_ms,
            deadline_ms=max(1000.0, 4 * args.budget_ms),
            mix=mix_of(args.scenarios),
            prompts="distinct",
        )
        figures = measure(load, args.bundle, args.every, args.index_only)
    except (ValueError, OSError) as error:  # BundleError is one
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
