"""Which decoding mode, and how many sequences? Quality and time of each, from trained runs.

    python -m benchmarks.modes --run DIR [--run DIR] [--sizes 4,8,16] [--queries 150]

A run's generator is exported in every mode that it was taught (with `generator.mode = "both"`:
slots and list), in int8 and, at its own number of sequences, in fp32. The runs must share their
simulated log. Columns, by the simulated truth for real queries that occur in no log:

  engine      expected clicks on five suggestions as served: the log's too, ranked by clicks
  alone       the same of the first five that the generator writes
  repeats     texts a list that are lost as repetitions of others or of the query
  mrr         of the intended query among ten completions of an unseen prefix, generator alone
  questions   share of clarifications that have a question, one that ends in a question mark
  ms          median time of one generation of the first panel, all in turns

The last line of stdout is JSON.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.turns import times_ms
from engine.answering.candidates import key_of
from engine.execution.cpu import num_usable_cpus
from engine.execution.models import GenerateRow
from engine.formats.prompt import spread
from engine.formats.vocabulary import LIST, MAX_SLOTS
from engine.scheduling.planner import generation_rungs
from export.bundle import Precision, export_bundle
from export.checkpoint import Run
from export.generator import Mode
from train import simulator
from train.evaluation.completion import SCENARIO as COMPLETION
from train.evaluation.completion import cases_of, never_searched, reciprocal_ranks
from train.evaluation.intervals import Interval, mean_interval, ratio_interval
from train.evaluation.served import Asked, ServedBundle
from train.evaluation.suite import NUM_LISTED, questions_of, read_queries
from train.evaluation.traffic import read_traffic
from train.simulator.truth import Truth

HELDOUT = Path("examples/data/heldout.txt.gz")
Floats = np.ndarray


class Row(msgspec.Struct, kw_only=True):
    """One way to decode."""

    mode: str
    precision: str
    num_sequences: int  # texts asked for; in list form one sequence holds them all
    engine: Interval
    alone: Interval
    repeats: float
    mrr: Interval
    questions: float
    engine_of_fp32: Interval | None = None  # `engine` over that of the fp32 graph
    ms: float = 0.0


class Measured(msgspec.Struct, kw_only=True):
    """A row with what is compared across rows, and how it is timed."""

    row: Row
    engine_U: Floats
    served: ServedBundle
    prompts: list[GenerateRow]


def resized(served: ServedBundle, mode: Mode, num: int) -> None:
    """Has every panel of a bundle written with `num` texts, auxiliary ones not counted."""
    bundle = served.bundle
    assert bundle.manifest.generator is not None
    for name, spec in bundle.scenarios.items():
        first = int(spec.has_auxiliary_text)
        known = bundle.renderer.slot_ids(name, mode)
        texts = known[first:]
        texts = [texts[0]] * num if mode == "beam" else list(spread(texts, num))
        full, *_ = generation_rungs(
            spec,
            bundle.manifest.generator,
            [*known[:first], *texts],
            bundle.vocabulary.control_id(LIST),
        )
        bundle.rungs[name] = (full,)


def measured(
    served: ServedBundle,
    truth: Truth,
    questions: Sequence[tuple[str, str]],
    unseen: Sequence[str],
    *,
    mode: Mode,
    precision: Precision,
    num: int,
) -> Measured:
    """Asks a bundle everything; times are added later."""
    engine_U, alone_U = [], []
    num_repeats, num_questions, prompts = [], [], []
    for name, spec in served.bundle.scenarios.items():
        asked = [Asked(query) for scenario, query in questions if scenario == name]
        queries = [a.query for a in asked]
        answers = served.answers(name, asked, NUM_LISTED)
        shown = [[s.text for s in answer.suggestions] for answer in answers]
        lead = [answer.auxiliary_text for answer in answers]
        engine_U += _clicks(truth, name, queries, shown, lead)
        if spec.has_auxiliary_text:
            num_questions += [text.endswith("?") for text in lead]
        lists: list[list[str]] = []
        for query, written in zip(queries, served.written(name, asked), strict=True):
            texts = [*written.finished, *written.cut]
            kept = {c.key: c.text for c in reversed(texts) if c.key != key_of(query)}
            num_repeats.append(len(texts) - len(kept))
            lists.append([c.text for c in texts if kept.get(c.key) is c.text][:NUM_LISTED])
        alone_U += _clicks(truth, name, queries, lists, lead)
        if not prompts:
            for query in queries[:16]:
                prompt = served.bundle.renderer.generation_prompt(name, query, ())
                rung = served.bundle.rungs[name][0]
                prompts.append(GenerateRow(prompt.ids, prompt.first_token_range, rung))
    cases = cases_of(unseen, 0)
    ranks_U = reciprocal_ranks(
        cases,
        lambda prefixes: [
            [c.text for c in (*w.finished, *w.cut)]
            for w in served.written(COMPLETION, [Asked(p) for p in prefixes])
        ],
    )
    row = Row(
        mode=mode,
        precision=precision,
        num_sequences=num,
        engine=mean_interval(np.array(engine_U)),
        alone=mean_interval(np.array(alone_U)),
        repeats=statistics.fmean(num_repeats),
        mrr=mean_interval(ranks_U),
        questions=statistics.fmean(num_questions) if num_questions else 0.0,
    )
    return Measured(row=row, engine_U=np.array(engine_U), served=served, prompts=prompts)


def compare(
    runs: Sequence[Path], sizes: Sequence[int], num_queries: int, threads: int, rounds: int
) -> list[Row]:
    """Returns a row for each mode, precision and size.

    Raises:
        ValueError: a run is incomplete, or its logs are not those of the first.
    """
    truth = simulator.load(runs[0] / "simulated")
    record = simulator.read_record(runs[0] / "simulated").fingerprint
    unseen = never_searched(read_queries(HELDOUT), read_traffic(runs[0]))
    unseen = random.Random(0).sample(unseen, min(len(unseen), 4 * num_queries))
    found: list[Measured] = []
    with tempfile.TemporaryDirectory() as temporary:
        bundles: list[ServedBundle] = []
        for number, run in enumerate(runs):
            if simulator.read_record(run / "simulated").fingerprint != record:
                raise ValueError(f"{run}: its simulated log is not that of {runs[0]}")
            for mode in _modes(run):
                own: dict[Precision, Measured] = {}
                for precision in ("fp32", "int8"):
                    target = Path(temporary) / f"{number}-{mode}-{precision}"
                    _say(f"{run}: exporting {mode}, {precision}")
                    export_bundle(
                        run, target, mode=mode, precision=precision, num_parity_requests=6
                    )
                    full = _default_size(run)
                    wanted = [full] if precision == "fp32" or mode == "list" else sizes
                    for num in wanted:
                        served = ServedBundle(target, num_threads=threads)
                        bundles.append(served)
                        if mode != "list":
                            resized(served, mode, num)
                        questions = questions_of(served, read_queries(HELDOUT), num_queries, 0)
                        _say(f"{mode}, {precision}, {num}: {len(questions)} questions")
                        one = measured(
                            served, truth, questions, unseen,
                            mode=mode, precision=precision, num=num,
                        )  # fmt: skip
                        found.append(one)
                        if num == full:
                            own[precision] = one
                if len(own) == 2:
                    exact, reduced = own["fp32"], own["int8"]
                    reduced.row.engine_of_fp32 = ratio_interval(reduced.engine_U, exact.engine_U)
        _say("timing")
        _time(found, rounds)
        for served in bundles:
            served.close()
    return [one.row for one in found]


def _time(found: Sequence[Measured], rounds: int) -> None:
    turns = {}
    for place, one in enumerate(found):
        generator, prompts = one.served.bundle.generator, cycle(one.prompts)
        assert generator is not None
        turns[str(place)] = lambda g=generator, p=prompts: g.run([next(p)])
    for place, own in times_ms(turns, rounds, num_warm=5).items():
        found[int(place)].row.ms = statistics.median(own)


def _modes(run: Path) -> list[Mode]:
    known, taught = Run(run), []
    modes: tuple[Mode, ...] = ("beam", "slots", "list")
    for mode in modes:
        try:
            known.check_mode(mode)
        except ValueError:
            continue
        taught.append(mode)
    return taught


def _default_size(run: Path) -> int:
    return Run(run).scenarios[0].num_slots


def _clicks(
    truth: Truth,
    scenario: str,
    queries: Sequence[str],
    lists: Sequence[Sequence[str]],
    questions: Sequence[str],
) -> list[float]:
    """Returns the expected clicks on each list."""
    probabilities = truth.list_click_probabilities(
        scenario, queries, lists, sessions=[()] * len(queries), questions=questions
    )
    return [float(p_C.sum()) for p_C in probabilities]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, action="append", required=True, help="a run directory")
    parser.add_argument(
        "--sizes", default="4,8,15", help=f"texts, at most {MAX_SLOTS - 1} (4,8,15)"
    )
    parser.add_argument("--queries", type=int, default=150, help="held-out, in each panel (150)")
    parser.add_argument("--threads", type=int, default=num_usable_cpus(), help="(usable CPUs)")
    parser.add_argument("--rounds", type=int, default=101, help="turns that are timed (101)")
    args = parser.parse_args(arguments)
    try:
        sizes = sorted({int(size) for size in args.sizes.split(",")})
        if not 1 <= sizes[0] <= sizes[-1] < MAX_SLOTS:
            raise ValueError(f"--sizes is {args.sizes}: from 1 to {MAX_SLOTS - 1}")
        rows = compare(args.run, sizes, args.queries, args.threads, args.rounds)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print("mode   precision  texts  engine x1000        alone  repeats  mrr    questions  ms")
    for r in rows:
        print(
            f"{r.mode:6} {r.precision:9} {r.num_sequences:6}  {1000 * r.engine.mean:5.1f} "
            f"[{1000 * r.engine.low:.1f}, {1000 * r.engine.high:.1f}]  {1000 * r.alone.mean:5.1f}"
            f"  {r.repeats:7.2f}  {r.mrr.mean:.4f}  {r.questions:9.2f}  {r.ms:.2f}"
        )
    print(json.dumps({"is_simulated": True, "rows": msgspec.to_builtins(rows)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
