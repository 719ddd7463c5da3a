"""How many requests a second an engine answers in time and undegraded, and what it does beyond.

Starts engines of its own with caches off; all prompts are distinct, arrivals Poisson. Settings of
the engine come from QUERYREC_ variables. It shares the machine's cores with the engine, unless
both are given their own (`taskset`). In turn:

1. overhead: one request at a time; server time outside the models.
2. capacity C: the highest rate at which p99 is at most the budget and at least 99 % of requests got
   an answer that left out nothing that the bundle has. Short runs double the rate and halve the
   interval; long ones (--confirm) then step by 5 % to the highest rate that holds. A run that did
   not hold, but for steps down, is made again, once, if it was sent late by more than a tenth of
   the budget.
3. soak at 0.8 C, with the growth of resident memory; overload at 3 C.
4. lookup: the same search on the bundle without its models, where only being in time counts; not
   without an index.

With --plain RUN, the run that the bundle was made from, the plain stack (`benchmarks.plain`) runs
beside the engine, and both searches for C take turns. A plain stack that needs more than the budget
even for one request at a time is searched with four times the budget.

The last line of stdout is one JSON object; null is what could not be measured. Shares have 95 %
(Clopper-Pearson) bounds, which take requests for independent: neighbours share a queue, so they are
somewhat narrow. Latencies count from when a request was due and so contain how late it was sent
(send_lag_p99): where that is much of the budget, this program was the bottleneck.
  capacity_rps, p99_capacity_ms, full_capacity      C, and what was measured there
  in_budget_0_8c (_low, _high), n_0_8c, p99_0_8c_ms, errors_0_8c
  in_budget_3c (_low, _high), n_3c, p99_3c_ms, errors_3c, efforts_3c, reasons_3c
  overhead_p50_ms, overhead_p99_ms, rss_growth_mib
  lookup_rps          of look-ups; lookup_note says why it is null
  send_lag_p99_capacity_ms, send_lag_p99_0_8c_ms, send_lag_p99_3c_ms, send_lag_p99_lookup_ms
  send_lag_p99_ms     the worst of all runs of the engine, those that did not hold among them
  plain_stack_ratio   C / plain_rps; null without a plain stack, and plain_note says why
  plain_rps, plain_p99_ms, plain_bound_ms           its highest rate, and the p99 it had to keep
  plain_send_lag_p99_ms                             at its highest rate
  plain_idle_p50_ms, plain_idle_p99_ms              one request at a time

    python -m benchmarks.capacity --bundle DIR --queries examples/data/heldout.txt.gz
    python -m benchmarks.capacity ... --probe 5 --confirm 10 --soak 10 --overload 5 --idle 5
    python -m benchmarks.capacity ... --plain runs/demo
"""

import argparse
import asyncio
import itertools
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

from benchmarks.load.arguments import mix_of, read_lines
from benchmarks.load.figures import overheads_ms
from benchmarks.load.percentiles import percentile
from benchmarks.load.run import run
from benchmarks.load.settings import Load
from benchmarks.search import RANGE_RPS, Holds, Search, Trial, in_turns, search
from benchmarks.served import Served, mismatch, served, served_plainly, write_lookup_bundle
from engine.formats.manifest import read_manifest

_ENGINE = {"QUERYREC_CACHE_MAX_BYTES": "0"}
_MIN_FULL = 0.99
_LATE = 0.1  # share of the budget; a run sent later that does not hold is made again
_LOOSE = 4  # budgets that a plain stack may take which never keeps one


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure, and for how long each."""

    bundle: Path
    queries: tuple[str, ...]
    mix: dict[str, float]
    budget_ms: float
    start_rps: float
    probe_s: float
    confirm_s: float
    soak_s: float
    overload_s: float
    idle_s: float
    plain: Path | None = None  # run directory


class Bench:
    """Puts loads of a plan on one engine."""

    name = "engine"

    def __init__(self, plan: Plan, engine: Served) -> None:
        self.send_lag_p99_ms = 0.0
        self._plan = plan
        self._engine = engine
        self._seeds = itertools.count()

    def trial(self, rate_rps: float, duration_s: float, *, is_idle: bool = False) -> Trial:
        """Returns what becomes of requests at a rate."""
        load = Load(
            target=self._engine.target,
            queries=self._plan.queries,
            rate_rps=rate_rps,
            duration_s=duration_s,
            budget_ms=self._plan.budget_ms,
            deadline_ms=max(1000.0, 4 * self._plan.budget_ms),
            mix=self._plan.mix,
            prompts="distinct",
            seed=next(self._seeds),
            is_idle=is_idle,
        )
        done = Trial(rate_rps, asyncio.run(run(load)).outcomes)
        self.send_lag_p99_ms = max(self.send_lag_p99_ms, done.send_lag_p99_ms)
        print(
            f"{self.name}: {'idle' if is_idle else f'{rate_rps:.2f} rps'} for {duration_s:g} s: "
            f"{len(done.outcomes)} requests, p99 {done.p99_ms:.1f} ms, {done.num_full} full, "
            f"errors {done.errors or 'none'}, "
            f"sent {done.send_lag_p99_ms:.1f} ms late",
            file=sys.stderr,
        )
        return done


class Rival(Bench):
    """Puts loads on the plain stack, whose answers are always full."""

    name = "plain stack"

    def __init__(self, plan: Plan, server: Served) -> None:
        """Finds out what it has to keep: the budget, if it ever does."""
        super().__init__(plan, server)
        self._idle = self.trial(1.0, plan.idle_s, is_idle=True)
        self._bound_ms = plan.budget_ms * (1 if self._idle.p99_ms <= plan.budget_ms else _LOOSE)
        self.search = _search(plan, lambda trial: trial.p99_ms <= self._bound_ms)

    def figures(self, ours: Trial, theirs: Trial | None) -> dict[str, object]:
        """Returns those of the last line."""
        idle_ms = [o.latency_s * 1000 for o in self._idle.outcomes if not o.error]
        note = ""
        if self._bound_ms > self._plan.budget_ms:
            note = (
                f"one request at a time takes more than {self._plan.budget_ms:g} ms: here its p99 "
                f"may be {self._bound_ms:g} ms, so at one budget the ratio is higher"
            )
        if theirs is None:
            note = f"it does not keep a p99 of {self._bound_ms:g} ms at any rate"
        return {
            "plain_stack_ratio": theirs and round(ours.rate_rps / theirs.rate_rps, 2),
            "plain_rps": theirs and round(theirs.rate_rps, 2),
            "plain_p99_ms": theirs and round(theirs.p99_ms, 2),
            "plain_bound_ms": self._bound_ms,
            "plain_send_lag_p99_ms": theirs and round(theirs.send_lag_p99_ms, 2),
            "plain_idle_p50_ms": percentile(idle_ms, 50),
            "plain_idle_p99_ms": percentile(idle_ms, 99),
            "plain_note": note,
        }


def _search(plan: Plan, holds: Holds, start_rps: float | None = None) -> Search:
    return search(
        holds,
        start_rps=start_rps or plan.start_rps,
        probe_s=plan.probe_s,
        confirm_s=plan.confirm_s,
        late_ms=_LATE * plan.budget_ms,
    )


def measure(plan: Plan) -> dict[str, object]:
    """Returns the figures of the last line.

    Raises:
        ValueError: the bundle cannot be served, or does not hold even the lowest rate.
    """

    def in_time(trial: Trial) -> bool:
        return trial.p99_ms <= plan.budget_ms

    def undegraded(trial: Trial) -> bool:
        return in_time(trial) and trial.num_full >= _MIN_FULL * len(trial.outcomes)

    has_index = read_manifest(plan.bundle).index is not None
    with ExitStack() as rivals, served(plan.bundle, _ENGINE) as engine:
        bench = Bench(plan, engine)
        overhead_ms = overheads_ms(bench.trial(1.0, plan.idle_s, is_idle=True).outcomes)
        searches = [(_search(plan, undegraded), bench.trial)]
        note = mismatch(plan.plain, plan.bundle) if plan.plain else "no run was given with --plain"
        rival = None
        if plan.plain and not note:
            server = rivals.enter_context(served_plainly(plan.plain))
            rival = Rival(plan, server)
            searches.append((rival.search, rival.trial))
        best, *others = in_turns(searches)
        if best is None:
            raise ValueError(f"the engine does not hold even {RANGE_RPS[0]} requests a second")
        rivals.close()
        before_bytes = engine.resident_bytes()
        soak = bench.trial(0.8 * best.rate_rps, plan.soak_s)
        growth_bytes = engine.resident_bytes() - before_bytes
        overload = bench.trial(3 * best.rate_rps, plan.overload_s)
    worst_lag_ms = bench.send_lag_p99_ms
    lookup, lookup_note = None, "the bundle has no index"
    if has_index:
        with tempfile.TemporaryDirectory() as folder:
            write_lookup_bundle(plan.bundle, Path(folder))
            with served(Path(folder), _ENGINE) as engine:
                bench = Bench(plan, engine)
                start_rps = max(plan.start_rps, best.rate_rps)
                (lookup,) = in_turns([(_search(plan, in_time, start_rps), bench.trial)])
        worst_lag_ms = max(worst_lag_ms, bench.send_lag_p99_ms)
        lookup_note = "" if lookup else f"not even {RANGE_RPS[0]} requests a second are in time"
    return {
        "capacity_rps": round(best.rate_rps, 2),
        "p99_capacity_ms": round(best.p99_ms, 2),
        "full_capacity": round(best.num_full / len(best.outcomes), 4),
        "send_lag_p99_capacity_ms": round(best.send_lag_p99_ms, 2),
        **_figures(plan, soak, "0_8c"),
        **_figures(plan, overload, "3c"),
        "efforts_3c": dict(Counter(o.effort for o in overload.outcomes if not o.error)),
        "reasons_3c": overload.errors,
        "overhead_p50_ms": percentile(overhead_ms, 50),
        "overhead_p99_ms": percentile(overhead_ms, 99),
        "rss_growth_mib": round(growth_bytes / 2**20, 1),
        "lookup_rps": lookup and round(lookup.rate_rps, 2),
        "lookup_note": lookup_note,
        "send_lag_p99_lookup_ms": lookup and round(lookup.send_lag_p99_ms, 2),
        "send_lag_p99_ms": round(worst_lag_ms, 2),
        "budget_ms": plan.budget_ms,
        **(
            rival.figures(best, *others)
            if rival
            else {"plain_stack_ratio": None, "plain_note": note}
        ),
    }


def _figures(plan: Plan, trial: Trial, suffix: str) -> dict[str, object]:
    num = len(trial.outcomes)
    num_in_budget = trial.num_in_budget(plan.budget_ms)
    share, low, high = None, None, None  # of nothing
    if num:
        interval = binomtest(num_in_budget, num).proportion_ci(method="exact")
        share = round(num_in_budget / num, 4)
        low, high = round(float(interval.low), 4), round(float(interval.high), 4)
    return {
        f"in_budget_{suffix}": share,
        f"in_budget_{suffix}_low": low,
        f"in_budget_{suffix}_high": high,
        f"n_{suffix}": num,
        f"p99_{suffix}_ms": round(trial.p99_ms, 2) if math.isfinite(trial.p99_ms) else None,
        f"errors_{suffix}": trial.num_errors,
        f"send_lag_p99_{suffix}_ms": round(trial.send_lag_p99_ms, 2),
    }


def parse(arguments: Sequence[str] | None = None) -> Plan:
    """Returns what to measure; exits with status 2 if it is nonsense."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--bundle", type=Path, required=True, help="directory of a bundle")
    parser.add_argument("--queries", type=Path, required=True, help="text file, one query a line")
    parser.add_argument("--scenarios", default="suggestion", help="the mix (default suggestion)")
    parser.add_argument("--plain", type=Path, help="run of the bundle, for the plain stack")
    parser.add_argument("--budget-ms", type=float, default=50.0, help="budget of an answer (50)")
    parser.add_argument("--start", type=float, default=8.0, help="rate to begin with (8)")
    for name, default, what in (
        ("probe", 15.0, "short runs of the search"),
        ("confirm", 120.0, "runs that decide"),
        ("soak", 300.0, "the run at 0.8 C"),
        ("overload", 60.0, "the run at 3 C"),
        ("idle", 20.0, "one request at a time"),
    ):
        parser.add_argument(
            f"--{name}", type=float, default=default, help=f"seconds of {what} ({default:g})"
        )
    args = parser.parse_args(arguments)
    for name in ("budget_ms", "start", "probe", "confirm", "soak", "overload", "idle"):
        value = getattr(args, name)
        if not (math.isfinite(value) and value > 0):
            parser.error(f"--{name.replace('_', '-')} is {value}; it must be above 0")
    try:
        mix, queries = mix_of(args.scenarios), tuple(dict.fromkeys(read_lines(args.queries)))
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--queries cannot be read: {error}")
    except ValueError as error:
        parser.error(str(error))
    return Plan(
        bundle=args.bundle,
        queries=queries,
        mix=mix,
        budget_ms=args.budget_ms,
        start_rps=args.start,
        probe_s=args.probe,
        confirm_s=args.confirm,
        soak_s=args.soak,
        overload_s=args.overload,
        idle_s=args.idle,
        plain=args.plain,
    )


def main() -> int:
    plan = parse()
    try:
        figures = measure(plan)
    except ValueError as error:  # BundleError is one
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
