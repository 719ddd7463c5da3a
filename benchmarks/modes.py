"""Which decoding mode, and how many texts? Quality and time of each, from trained runs.

    python -m benchmarks.modes --run DIR [--run DIR] [--sizes 4,15] [--queries 150]

A run's generator is exported in every mode that it was taught (with `generator.mode = "both"`:
slots and list), in int8 and fp32. Panels are written as they were configured, and in int8 also
with other numbers of texts: of slots fewer only, of a list no others. The runs must share their
simulated log. Columns, by the simulated truth for real queries that occur in no log:

  engine      expected clicks on five suggestions as served: the log's too, ranked by clicks
  alone       the same of five texts of the generator, ranked by the click model
  repeats     texts of a list that are lost as repetitions of others or of the query
  mrr         of the intended query among the completions of an unseen prefix that the generator
              writes, ranked alike; fewer texts have fewer places
  questions   share of clarifications that have a question, one that ends in a question mark
  ms          median time of one generation of the first panel, all in turns

`engine_of_fp32` is `engine` over that of the bundle in fp32. The last line of stdout is JSON.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.turns import times_ms
from engine.execution.cpu import num_usable_cpus
from engine.execution.models import GenerateRow
from engine.formats.prompt import spread
from engine.formats.vocabulary import LIST, MAX_SLOTS
from engine.scheduling.planner import generation_rungs
from export.bundle import Precision, export_bundle
from export.checkpoint import Run
from export.generator import Mode
from train import simulator
from train.evaluation.completion import NUM_SUGGESTIONS, cases_of, never_searched, reciprocal_ranks
from train.evaluation.intervals import Interval, mean_interval, ratio_interval
from train.evaluation.served import Asked, ServedBundle, distinct_texts
from train.evaluation.suite import NUM_LISTED, questions_of, read_queries
from train.evaluation.traffic import read_traffic
from train.simulator.truth import Truth

HELDOUT = Path("examples/data/heldout.txt.gz")
_NUM_PROMPTS = 16  # that are timed, one after another
_PAUSE_S = 0.05  # threads of the contender before stop spinning
Floats = NDArray[np.float64]


class Row(msgspec.Struct, kw_only=True):
    """One way to decode."""

    mode: str
    precision: str
    num_texts: int  # of the first panel
    engine: Interval
    alone: Interval
    repeats: float
    mrr: Interval
    questions: float
    engine_of_fp32: Interval | None = None
    ms: float = 0.0


class Measured(NamedTuple):
    """A row with what is compared across rows, and how it is timed."""

    row: Row
    engine_U: Floats
    query_U: list[int]  # which of the queries; each is asked in every panel
    generate: Callable[[], object]


class Asker:
    """Asks bundles the same questions."""

    def __init__(self, truth: Truth, num_queries: int, unseen: Sequence[str]) -> None:
        """Takes what scores lists, and queries that no log has for completion."""
        self._truth, self._num_queries = truth, num_queries
        self._cases = cases_of(unseen, 0)

    def __call__(self, served: ServedBundle, *, mode: Mode, precision: Precision) -> Measured:
        """Returns what a bundle writes is worth, with the number of texts that it is set to."""
        questions = questions_of(served, read_queries(HELDOUT), self._num_queries, 0)
        engine: list[float] = []
        query_U: list[int] = []
        alone: list[float] = []
        repeats: list[int] = []
        leads: list[bool] = []
        for name, spec in served.bundle.scenarios.items():
            queries = [query for scenario, query in questions if scenario == name]
            asked = [Asked(query) for query in queries]
            answers = served.answers(name, asked, NUM_LISTED)
            lead = [answer.auxiliary_text for answer in answers]
            shown = [[s.text for s in answer.suggestions] for answer in answers]
            engine += self._clicks(name, queries, shown, lead)
            query_U += range(len(queries))
            if spec.has_auxiliary_text:
                leads += [text.endswith("?") for text in lead]
            written, lost = best_first(served, name, queries)
            alone += self._clicks(name, queries, [texts[:NUM_LISTED] for texts in written], lead)
            repeats += lost
        completing = served.first_scenario(completes_prefix=True)
        ranks_U = reciprocal_ranks(
            self._cases, lambda prefixes: best_first(served, completing, prefixes)[0]
        )
        row = Row(
            mode=mode,
            precision=precision,
            num_texts=num_texts(served),
            engine=mean_interval(np.array(engine), cluster_U=query_U),
            alone=mean_interval(np.array(alone), cluster_U=query_U),
            repeats=statistics.fmean(repeats),
            mrr=mean_interval(ranks_U),
            questions=statistics.fmean(leads) if leads else 0.0,
        )
        first = next(iter(served.bundle.scenarios))
        queries = [query for scenario, query in questions if scenario == first][:_NUM_PROMPTS]
        return Measured(row, np.array(engine), query_U, generating(served, first, queries))

    def _clicks(
        self,
        scenario: str,
        queries: Sequence[str],
        lists: Sequence[Sequence[str]],
        leads: Sequence[str],
    ) -> list[float]:
        """Returns the expected clicks on each list."""
        probabilities = self._truth.list_click_probabilities(
            scenario, queries, lists, sessions=[()] * len(queries), questions=leads
        )
        return [float(p_C.sum()) for p_C in probabilities]


def best_first(
    served: ServedBundle, scenario: str, queries: Sequence[str]
) -> tuple[list[list[str]], list[int]]:
    """Returns up to ten distinct texts that the generator writes for each query, and how many more.

    The click model ranks them: slots have no order, beams and lists each one of their own.
    """
    lists: list[list[str]] = []
    lost: list[int] = []
    asked = [Asked(query) for query in queries]
    for one, written in zip(asked, served.written(scenario, asked), strict=True):
        num_written = len(written.finished) + len(written.cut)
        distinct = distinct_texts(one.query, written, max(1, num_written))
        lost.append(num_written - len(distinct))
        if distinct:
            p_C = served.click_probabilities(scenario, one, distinct)
            distinct = [distinct[i] for i in np.argsort(-p_C, kind="stable")]
        lists.append(distinct[:NUM_SUGGESTIONS])
    return lists, lost


def generating(served: ServedBundle, scenario: str, queries: Sequence[str]) -> Callable[[], object]:
    """Returns what writes a panel for one query after another, with prompts as when serving."""
    generator = served.bundle.generator
    assert generator is not None
    rung = served.bundle.rungs[scenario][0]
    prompts = served.prompts(scenario, [Asked(query) for query in queries])
    in_turns = cycle(GenerateRow(p.ids, p.first_token_range, rung) for p in prompts)
    return lambda: generator.run([next(in_turns)])


def num_texts(served: ServedBundle) -> int:
    """Returns how many texts the first panel asks for, its auxiliary one not counted."""
    spec = next(iter(served.bundle.scenarios.values()))
    assert served.bundle.manifest.generator is not None
    if served.bundle.manifest.generator.mode == "list":
        return spec.num_slots - spec.has_auxiliary_text
    return len(served.bundle.rungs[spec.name][0].slots) - spec.has_auxiliary_text


def resize(served: ServedBundle, mode: Mode, num: int) -> None:
    """Has every panel of a bundle written with `num` texts, auxiliary ones not counted.

    In slots a panel has as many as it was taught at most: others would write the same texts.
    """
    bundle = served.bundle
    assert bundle.manifest.generator is not None
    for name, spec in bundle.scenarios.items():
        first = int(spec.has_auxiliary_text)
        known = bundle.renderer.slot_ids(name, mode)
        texts = known[first:]
        texts = [texts[0]] * num if mode == "beam" else spread(texts, min(num, len(texts)))
        full, *_ = generation_rungs(
            spec,
            bundle.manifest.generator,
            [*known[:first], *texts],
            bundle.vocabulary.control_id(LIST),
        )
        bundle.rungs[name] = (full,)


def compare(
    runs: Sequence[Path], sizes: Sequence[int], num_queries: int, threads: int, rounds: int
) -> list[Row]:
    """Returns a row for each mode, precision and number of texts.

    Raises:
        ValueError: a run is incomplete, or its logs are not those of the first.
    """
    record = simulator.read_record(runs[0] / "simulated").fingerprint
    unseen = never_searched(read_queries(HELDOUT), read_traffic(runs[0]))
    unseen = random.Random(0).sample(unseen, min(len(unseen), 4 * num_queries))
    ask = Asker(simulator.load(runs[0] / "simulated"), num_queries, unseen)
    found: list[Measured] = []
    bundles: list[ServedBundle] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, run in enumerate(runs):
            if simulator.read_record(run / "simulated").fingerprint != record:
                raise ValueError(f"{run}: its simulated log is not that of {runs[0]}")
            for mode in _modes(run):
                exact_U = None
                for precision in ("fp32", "int8"):
                    _say(f"{run}: {mode}, {precision}")
                    target = Path(temporary) / f"{number}-{mode}-{precision}"
                    export_bundle(
                        run, target, mode=mode, precision=precision, num_parity_requests=6
                    )
                    served = ServedBundle(target, num_threads=threads)
                    bundles.append(served)
                    own = ask(served, mode=mode, precision=precision)
                    found.append(own)
                    if exact_U is None:
                        exact_U = own.engine_U
                        continue
                    own.row.engine_of_fp32 = ratio_interval(
                        own.engine_U, exact_U, cluster_U=own.query_U
                    )
                    full = own.row.num_texts
                    for num in sizes:
                        if (mode == "beam" and num != full) or (mode == "slots" and num < full):
                            _say(f"{run}: {mode}, {precision}, {num} texts")
                            resize(served, mode, num)
                            found.append(ask(served, mode=mode, precision=precision))
        _say("timing")
        turns = {str(place): one.generate for place, one in enumerate(found)}
        for place, own_ms in times_ms(turns, rounds, num_warm=5, pause_s=_PAUSE_S).items():
            found[int(place)].row.ms = statistics.median(own_ms)
        for served in bundles:
            served.close()
    return [one.row for one in found]


def _modes(run: Path) -> list[Mode]:
    """Returns the modes that a run's generator was taught."""
    known = Run(run)
    modes: tuple[Mode, ...] = ("beam", "slots", "list")
    taught: list[Mode] = []
    for mode in modes:
        try:
            known.check_mode(mode)
        except ValueError:
            continue
        taught.append(mode)
    return taught


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, action="append", required=True, help="a run directory")
    parser.add_argument(
        "--sizes", default="4,15", help=f"numbers of texts, below {MAX_SLOTS} (4,15)"
    )
    parser.add_argument("--queries", type=int, default=150, help="held-out, in each panel (150)")
    parser.add_argument("--threads", type=int, default=num_usable_cpus(), help="(usable CPUs)")
    parser.add_argument("--rounds", type=int, default=101, help="turns that are timed (101)")
    args = parser.parse_args(arguments)
    words = args.sizes.split(",")
    sizes = sorted({int(word) for word in words if word.isdecimal()})
    if len(sizes) < len(words) or not 1 <= sizes[0] <= sizes[-1] < MAX_SLOTS:
        parser.error(f"--sizes is {args.sizes}: different numbers below {MAX_SLOTS}, by commas")
    try:
        rows = compare(args.run, sizes, args.queries, args.threads, args.rounds)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print("mode   precision  texts  engine x1000         alone  repeats  mrr     questions  ms")
    for r in rows:
        engine = "{:5.1f} [{:.1f}, {:.1f}]".format(*(1000 * bound for bound in r.engine))
        print(
            f"{r.mode:6} {r.precision:9} {r.num_texts:6}  {engine:20} {1000 * r.alone.mean:5.1f}"
            f"  {r.repeats:7.2f}  {r.mrr.mean:.4f}  {r.questions:9.2f}  {r.ms:.2f}"
        )
    print(json.dumps({"is_simulated": True, "rows": msgspec.to_builtins(rows)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
