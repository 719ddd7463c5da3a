"""Everything that can be said of a bundle with the data at hand: `eval.json` and `eval.html`.

Parts whose data are missing (no simulated truth, no click model, no real clicks) are left out and
named with the reason. Knows nothing of how parts are computed.
"""

# L lists
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

import msgspec

from engine.feedback.attribution import Source
from engine.formats.text import normalise, normalise_prefix
from train import simulator
from train.evaluation.baselines import MostPopular, NearestNeighbour, SearchLog
from train.evaluation.clicks import ClickEvaluation, evaluate_clicks
from train.evaluation.completion import CompletionReport, evaluate_completion, never_searched
from train.evaluation.files import opened_text, reading
from train.evaluation.lists import ProducedList, TruthRow, true_ctr
from train.evaluation.origin import doubts
from train.evaluation.real_clicks import RealClickEvaluation, evaluate_real_clicks
from train.evaluation.retrieval import RetrievalReport, evaluate_retrieval
from train.evaluation.served import Asked, LeftOut, ServedBundle, distinct_texts
from train.evaluation.sessions import SessionsReport, evaluate_sessions, read_sessions
from train.evaluation.traffic import read_traffic
from train.simulator.tables import SEARCHES_NAME

JSON_NAME, PAGE_NAME = "eval.json", "eval.html"
NUM_LISTED = 5  # suggestions of a list whose value is measured
WEB, OTHER = "web", "other"  # slices of unseen queries
Report = Callable[[str], None]
T = TypeVar("T")


class Data(NamedTuple):
    """Real data that figures are computed on; None where there is none."""

    heldout: Path  # queries; those that the log has are not asked. One a line, plain or gzip
    web: Path | None = None  # those of them that are web queries
    sessions: Path | None = None  # see `train.evaluation.sessions`
    minilm: Path | None = None  # directory of a sentence encoder
    real_clicks: Path | None = None  # see `train.evaluation.real_clicks`


class CtrSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The click model in three figures, and in full.

    Attributes:
        auc_share: mean over scenarios of (AUC - 1/2) / (oracle's AUC - 1/2).
        gauc_share: the same within a position.
        ece_rel: the worst scenario's calibration error against the true probabilities, relative
            to their mean, on logged impressions or on items that the bundle itself picked.
        details: all figures.
    """

    auc_share: float
    gauc_share: float
    ece_rel: float
    details: ClickEvaluation


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """All parts.

    Attributes:
        bundle_id: of the bundle.
        is_simulated: whether searches, popularity and clicks are simulated.
        completion: MRR@10 against completion baselines.
        retrieval: recall@20 of the next query.
        sessions: real sessions.
        lists: what lists are worth by the simulated truth.
        ctr: the click model against the oracle.
        real: the click model's features on real clicks.
        left_out: part -> why.
        warnings: what makes figures doubtful.
    """

    bundle_id: str
    is_simulated: bool
    completion: CompletionReport | None = None
    retrieval: RetrievalReport | None = None
    sessions: SessionsReport | None = None
    lists: list[TruthRow] = []
    ctr: CtrSummary | None = None
    real: RealClickEvaluation | None = None
    left_out: dict[str, str] = {}
    warnings: list[str] = []


def evaluate(
    bundle: Path,
    run: Path,
    data: Data,
    *,
    num_queries: int = 500,
    seed: int = 0,
    num_threads: int = 0,
    report: Report = print,
) -> Evaluation:
    """Evaluates all that the bundle and the data allow.

    Args:
        bundle: directory of the bundle.
        run: run directory it was exported from, for its logs.
        data: real data.
        num_queries: held-out queries that lists are made for, a scenario.
        seed: of what is drawn.
        num_threads: of the models; 0: as many as the process may use.
        report: called with what is being done.

    Raises:
        ValueError: the bundle or a file cannot be used.
    """
    unseen = _unseen(data)
    served = ServedBundle(bundle, num_threads=num_threads)
    try:
        return _evaluated(served, run, data, unseen, num_queries, seed, report)
    finally:
        served.close()


def _evaluated(
    served: ServedBundle,
    run: Path,
    data: Data,
    unseen: dict[str, list[str]],
    num_queries: int,
    seed: int,
    report: Report,
) -> Evaluation:
    warnings = doubts(served.bundle.manifest, run)
    for warning in warnings:
        report(f"warning: {warning}")
    left_out: dict[str, str] = {}
    sessions = clicks = real = None
    lists: list[TruthRow] = []

    def unless_left_out(part: str, evaluate: Callable[[], T]) -> T | None:
        try:
            return evaluate()
        except LeftOut as why:
            left_out[part] = str(why)
            return None

    completion = unless_left_out(
        "completion",
        lambda: evaluate_completion(served, run, unseen=unseen, seed=seed, report=report),
    )
    if completion is not None:
        left_out |= {f"completion of {name}": why for name, why in completion.left_out.items()}
    retrieval = unless_left_out(
        "retrieval",
        lambda: evaluate_retrieval(served, run, minilm=data.minilm, seed=seed, report=report),
    )
    if served.retrieval is None:
        left_out["sessions"] = "the bundle has no index"
    elif data.sessions is None:
        left_out["sessions"] = "no sessions are given"
    else:
        known = read_sessions(data.sessions)
        sessions = unless_left_out(
            "sessions",
            lambda: evaluate_sessions(served, run, known, minilm=data.minilm, report=report),
        )
    world = run / "simulated"
    if not (world / "world.json").is_file():
        left_out["lists"] = left_out["ctr"] = "the logs are real: their truth is not known"
    else:
        every = [q for queries in unseen.values() for q in queries]
        new = never_searched(every, read_traffic(run))
        if num_known := len(every) - len(new):
            left_out["lists of some queries"] = f"the log has {num_known} of {len(every)}"
        asked = questions_of(served, new, num_queries, seed)
        questions = [(name, query) for name, query in asked if name in simulator.SCENARIOS]
        for name in sorted(served.bundle.scenarios.keys() - simulator.SCENARIOS):
            left_out[f"lists of {name}"] = "the simulated truth does not know the scenario"
        report(f"lists for {len(questions)} questions")
        if questions:
            lists = evaluate_lists(served, world, questions)
        else:
            left_out["lists"] = "there is no question that the simulated truth can score"
        if served.bundle.click_model is None:
            left_out["ctr"] = "the bundle has no click model"
        else:
            report("click model against the oracle")
            clicks = unless_left_out(
                "ctr", lambda: evaluate_clicks(served, run, questions, seed=seed)
            )
            if clicks is not None:
                left_out |= {f"ctr of {name}": why for name, why in clicks.left_out.items()}
    if data.real_clicks is None:
        left_out["real"] = "no real clicks are given"
    else:
        report("real clicks")
        real = evaluate_real_clicks(data.real_clicks, figures=served.figures, seed=seed)
    return Evaluation(
        bundle_id=served.bundle.manifest.bundle_id,
        is_simulated=(world / "world.json").is_file(),
        completion=completion,
        retrieval=retrieval,
        sessions=sessions,
        lists=lists,
        ctr=_summary(clicks) if clicks and clicks.logged else None,
        real=real,
        left_out=left_out,
        warnings=warnings,
    )


def questions_of(
    served: ServedBundle, queries: Sequence[str], num: int, seed: int
) -> list[tuple[str, str]]:
    """Returns (scenario, query) for `num` queries drawn, each in all scenarios.

    Where a scenario completes, it is a prefix of 3 to 10 characters.
    """
    rng = Random(seed)
    usable = sorted({q for q in queries if len(q) >= 4 and len(q.encode()) <= 200})
    chosen = rng.sample(usable, min(num, len(usable)))
    prefixes = [normalise_prefix(q[: rng.randint(3, min(10, len(q) - 1))]) for q in chosen]
    return [
        (name, prefix if spec.completes_prefix else query)
        for name, spec in served.bundle.scenarios.items()
        for query, prefix in zip(chosen, prefixes, strict=True)
    ]


def evaluate_lists(
    served: ServedBundle, world: Path, questions: Sequence[tuple[str, str]]
) -> list[TruthRow]:
    """Returns what lists are worth by the truth: served, by the generator alone, by baselines."""
    produced: list[ProducedList] = []
    for name, spec in served.bundle.scenarios.items():
        queries = [query for scenario, query in questions if scenario == name]
        asked = [Asked(q) for q in queries]
        for query, answer in zip(queries, served.answers(name, asked, NUM_LISTED), strict=True):
            shown = answer.suggestions
            produced.append(
                ProducedList(
                    scenario=name,
                    query=query,
                    system="engine",
                    texts=tuple(s.text for s in shown),
                    sources=tuple("log" if s.source == Source.LOG else "generated" for s in shown),
                    auxiliary_text=answer.auxiliary_text,
                )
            )
        if served.bundle.generator is None:
            continue
        for query, written in zip(queries, served.written(name, asked), strict=True):
            auxiliary = written.auxiliary if spec.has_auxiliary_text else None
            produced.append(
                ProducedList(
                    scenario=name,
                    query=query,
                    system="generator",
                    texts=tuple(distinct_texts(query, written, NUM_LISTED)),
                    auxiliary_text=auxiliary.text if auxiliary else "",
                )
            )
    log = SearchLog.read(world / SEARCHES_NAME)
    baselines = {"most_popular": MostPopular(log), "nearest_neighbour": NearestNeighbour(log)}
    return true_ctr(simulator.load(world), produced, baselines=baselines)


def read_queries(path: Path) -> list[str]:
    """Reads normalised queries, one a line, plain or gzip.

    Raises:
        ValueError: the file cannot be read or has none.
    """
    with reading(path), opened_text(path) as stream:
        queries = sorted({normalise(line) for line in stream} - {""})
    if not queries:
        raise ValueError(f"{path}: has no query")
    return queries


def _unseen(data: Data) -> dict[str, list[str]]:
    """Returns held-out queries by slice; one slice where web queries are not told apart."""
    every = read_queries(data.heldout)
    if data.web is None:
        return {OTHER: every}
    web = set(read_queries(data.web))
    return {WEB: sorted(web), OTHER: [q for q in every if q not in web]}


def _summary(clicks: ClickEvaluation) -> CtrSummary:
    whole = [by_source["all"] for by_source in clicks.logged.values()]
    errors = [q.true_ece.mean for q in [*whole, *clicks.picked.values()]]
    return CtrSummary(
        auc_share=sum(q.auc_share.mean for q in whole) / len(whole),
        gauc_share=sum(q.gauc_share.mean for q in whole) / len(whole),
        ece_rel=max(errors),
        details=clicks,
    )
