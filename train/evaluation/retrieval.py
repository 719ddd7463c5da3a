"""How well a bundle retrieves what is searched next, against simpler ways to retrieve.

Test cases are steps of sessions after the validation cut, drawn as often as they were taken: a
query and the next one, which is another one that the index knows. Recall@20 is the share of steps
whose next query is among the first twenty retrieved. The systems:

- *served*: what the engine takes from the index (co-occurrence lists of the query and of its
  nearest neighbours by encoder and HNSW);
- *adjacency*: what followed the query before the cut, between k-anonymous queries, but even if
  fewer than k users took that step; so it knows more than the index may;
- *bm25*, *tfidf*: nearest k-anonymous queries by words, by character n-grams;
- *minilm*: nearest by a sentence encoder that was not trained on the log, if it is given.

Queries are put in order of searches: the *head* made the first third of all searches, the *torso*
the second, the *tail* the rest; *cold* queries are not in the index.
"""

# U test cases, Q known queries, D dim
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from train.evaluation.baselines import Adjacency, NearestNeighbour
from train.evaluation.bm25 import Bm25
from train.evaluation.intervals import Floats, Interval, difference_interval, mean_interval
from train.evaluation.served import Asked, LeftOut, ServedBundle
from train.evaluation.traffic import Step, read_mined, read_traffic

SERVED, ADJACENCY, BM25, TFIDF, MINILM = "served", "adjacency", "bm25", "tfidf", "minilm"
HEAD, TORSO, TAIL, COLD, ALL = "head", "torso", "tail", "cold", "all"
NUM_RETRIEVED = 20
Retrieve = Callable[[Sequence[str]], list[list[str]]]


class Embedder(Protocol):
    """Turns texts into vectors; `train.retrieval.encoder.Encoder` is one."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns float32 (Q, D) of unit norm, row i for text i."""
        ...


class RetrievalScore(msgspec.Struct, frozen=True, kw_only=True):
    """One system on one slice; intervals are over test cases.

    Attributes:
        served_less_this: paired difference of recalls.
    """

    slice: str
    system: str
    num_cases: int
    recall: Interval
    served_less_this: Interval


class RetrievalReport(msgspec.Struct, frozen=True, kw_only=True):
    """All scores; `is_simulated` says whether the searches are."""

    is_simulated: bool
    scores: list[RetrievalScore]


def evaluate_retrieval(
    served: ServedBundle,
    run: Path,
    *,
    minilm: Path | None = None,
    num_cases: int = 5000,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> RetrievalReport:
    """Asks all systems for what follows the queries of held-out steps.

    Args:
        served: the bundle.
        run: the run directory that it comes from, for its logs.
        minilm: directory of a sentence encoder.
        num_cases: steps to draw; all of them where there are fewer.
        seed: of the draw.
        report: called with what is being done.

    Raises:
        LeftOut: the bundle has no index or suggests nothing, or the log has no step after the cut.
        ValueError: there is no sentence encoder in `minilm`.
    """
    if served.retrieval is None:
        raise LeftOut("the bundle has no index")
    scenario = served.first_scenario(completes_prefix=False)
    mined, traffic = read_mined(run), read_traffic(run)
    steps = [s for s in traffic.steps if s.target in mined.counts]
    if not steps:
        raise LeftOut("no session goes on after the validation cut to a query that is known")
    cases = random.Random(seed).sample(steps, min(num_cases, len(steps)))
    known = mined.log(traffic)
    adjacency, bm25, tfidf = Adjacency(known), Bm25(mined.counts), NearestNeighbour(known)
    k = NUM_RETRIEVED
    systems: dict[str, Retrieve] = {
        SERVED: lambda qs: [r.texts[:k] for r in served.retrieved(scenario, [*map(Asked, qs)])],
        ADJACENCY: lambda qs: [adjacency.suggest(q, k) for q in qs],
        BM25: lambda qs: [bm25.suggest(q, k) for q in qs],
        TFIDF: lambda qs: [tfidf.suggest(q, k) for q in qs],
    }
    if minilm is not None:
        from train.retrieval.encoder import Encoder  # and torch

        report(f"embedding {len(mined.counts)} queries by {minilm}")
        systems[MINILM] = nearest_by(Encoder.of_checkpoint(str(minilm)), sorted(mined.counts))
    hits = {}
    for name, retrieve in systems.items():
        report(f"{len(cases)} steps by {name}")
        hits[name] = found(cases, retrieve)
    slice_of = popularity_slices(mined.counts)
    slice_U = np.array([slice_of.get(case.query, COLD) for case in cases])
    scores: list[RetrievalScore] = []
    for name in (ALL, HEAD, TORSO, TAIL, COLD):
        chosen_U = slice_U == name if name != ALL else np.full(len(cases), True)
        if chosen_U.any():
            scores += [_score(name, s, hit_U[chosen_U], hits[SERVED][chosen_U])
                       for s, hit_U in hits.items()]  # fmt: skip
    return RetrievalReport(is_simulated=mined.is_simulated, scores=scores)


def found(cases: Sequence[Step], retrieve: Retrieve) -> Floats:
    """Returns 1.0 where the next query is among those retrieved, else 0.0, float64 (U)."""
    queries = sorted({case.query for case in cases})
    texts_of = dict(zip(queries, map(set, retrieve(queries)), strict=True))
    return np.array([float(case.target in texts_of[case.query]) for case in cases])


def popularity_slices(counts: Mapping[str, int]) -> dict[str, str]:
    """Returns which slice each known query belongs to; one that crosses a third is above it."""
    total, before, slice_of = sum(counts.values()), 0, {}
    for query in sorted(counts, key=lambda q: (-counts[q], q)):
        slice_of[query] = HEAD if 3 * before < total else TORSO if 3 * before < 2 * total else TAIL
        before += counts[query]
    return slice_of


def nearest_by(encoder: Embedder, known: Sequence[str]) -> Retrieve:
    """Returns exact search among `known` by cosine, never the query itself."""
    known_QD = encoder.embed(known)

    def retrieve(queries: Sequence[str]) -> list[list[str]]:
        lists: list[list[str]] = []
        for query, query_D in zip(queries, encoder.embed(queries), strict=True):
            order = np.argsort(-(known_QD @ query_D), kind="stable")[: NUM_RETRIEVED + 1]
            near = (known[int(row)] for row in order)
            lists.append([t for t in near if t != query][:NUM_RETRIEVED])
        return lists

    return retrieve


def _score(name: str, system: str, hit_U: Floats, served_U: Floats) -> RetrievalScore:
    return RetrievalScore(
        slice=name,
        system=system,
        num_cases=len(hit_U),
        recall=mean_interval(hit_U),
        served_less_this=difference_interval(served_U, hit_U),
    )
