"""Real sessions: does a system put the query that a user really asked next before others?

Each step of a session that changes the query is a test case. Fifty candidates are ranked: the true
next query, up to 25 queries of the log that are lexically nearest to the present one (by *tfidf*),
and the most searched queries of the log for the rest; neither the present query nor the true one is
among the 49. These rules were set before any result was seen. MRR is the mean reciprocal rank of
the true query, ties in random order; a session counts as the mean of its steps, and intervals are
over sessions. The systems rank by

- *most_popular*: searches in the log; *adjacency*: how often it followed before the cut;
- *bm25*, *tfidf*, *minilm*, *encoder*: similarity with the present query (words, character
  n-grams, sentence encoder, the bundle's encoder);
- *served*: place among what the engine takes from the index;
- *click_model*: the bundle's, with the session as side information.

The titles of what the user was shown for the present query stand in for an assistant's `answer`:
*answer* compares the click model, and lists of ten written or served, with and without it. Real
sessions here are few, and of a user study. Knows nothing of where they come from.
"""

# C candidates, S sessions
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from engine.answering.candidates import key_of
from engine.formats.prompt import ANSWER
from engine.formats.text import normalise
from train.evaluation.baselines import MostPopular, NearestNeighbour, SearchLog
from train.evaluation.bm25 import Bm25
from train.evaluation.files import opened_text, reading
from train.evaluation.intervals import Floats, Interval, difference_interval, mean_interval
from train.evaluation.retrieval import ADJACENCY, BM25, MINILM, SERVED, TFIDF, Embedder
from train.evaluation.served import Asked, LeftOut, ServedBundle
from train.evaluation.traffic import read_mined, read_traffic

ENCODER, CLICK_MODEL, POPULAR = "encoder", "click_model", "most_popular"
ENGINE, GENERATOR = "engine", "generator"
NUM_CANDIDATES, NUM_NEAREST, NUM_SUGGESTIONS = 50, 25, 10
_MAX_TITLES = 3


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What one user searched in turn, and titles of what was found for all but the last query."""

    queries: list[str]
    titles: list[list[str]] = []


class Case(NamedTuple):
    """A step of a session, texts normalised; `candidates[0]` is the true next query."""

    session: int
    asked: Asked  # without an answer
    answer: str
    candidates: tuple[str, ...]


class SessionScore(msgspec.Struct, frozen=True, kw_only=True):
    """One system's ranking of fifty candidates; the interval is over sessions."""

    system: str
    mrr: Interval


class AnswerEffect(msgspec.Struct, frozen=True, kw_only=True):
    """MRR with and without the answer: of fifty candidates, or @10 of a list."""

    system: str
    without: Interval
    with_answer: Interval
    difference: Interval  # with - without, paired


class SessionsReport(msgspec.Struct, frozen=True, kw_only=True):
    """All figures.

    Attributes:
        num_sessions: with at least one step.
        num_steps: test cases.
        known_share: steps whose true next query the index knows.
        scores: of rankings.
        answers: empty if the bundle's prompts have no answers.
    """

    num_sessions: int
    num_steps: int
    known_share: float
    scores: list[SessionScore]
    answers: list[AnswerEffect]


def read_sessions(path: Path) -> list[Session]:
    """Reads sessions, one JSON object a line, plain or gzip.

    Raises:
        ValueError: the file cannot be read, or a line is not a session; the message names it.
    """
    sessions: list[Session] = []
    with reading(path), opened_text(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                sessions.append(msgspec.json.decode(line, type=Session))
            except msgspec.MsgspecError as error:
                raise ValueError(f"{path}, line {number}: not a session: {error}") from None
    return sessions


def evaluate_sessions(
    served: ServedBundle,
    run: Path,
    sessions: Sequence[Session],
    *,
    minilm: Path | None = None,
    report: Callable[[str], None] = print,
) -> SessionsReport:
    """Ranks the candidates of each step by all systems.

    Args:
        served: the bundle.
        run: the run directory that it comes from, for its logs.
        sessions: real sessions.
        minilm: directory of a sentence encoder.
        report: called with what is being done.

    Raises:
        LeftOut: the bundle suggests nothing, or no session has a step.
        ValueError: there is no sentence encoder in `minilm`.
    """
    scenario = served.first_scenario(completes_prefix=False)
    mined, traffic = read_mined(run), read_traffic(run)
    known = mined.log(traffic)
    cases = cases_of(sessions, known)
    if not cases:
        raise LeftOut("no session has two different queries in a row")
    embedder = None
    if minilm is not None:
        from train.retrieval.encoder import Encoder  # and torch

        embedder = Encoder.of_checkpoint(str(minilm))
    session_of = [case.session for case in cases]
    scores: list[SessionScore] = []
    for name, rank in rankings(served, scenario, known, cases, embedder).items():
        report(f"{len(cases)} steps ranked by {name}")
        rank_U = np.array([expected_reciprocal_rank(rank(case)) for case in cases])
        scores.append(SessionScore(system=name, mrr=mean_interval(by_session(rank_U, session_of))))
    return SessionsReport(
        num_sessions=len(set(session_of)),
        num_steps=len(cases),
        known_share=sum(c.candidates[0] in mined.counts for c in cases) / len(cases),
        scores=scores,
        answers=_answers(served, scenario, cases, report),
    )


def cases_of(sessions: Iterable[Session], known: SearchLog) -> list[Case]:
    """Returns the steps of sessions with their candidates, by the rules at the top."""
    nearest, popular = NearestNeighbour(known), MostPopular(known)
    cases: list[Case] = []
    for number, session in enumerate(sessions):
        queries = [normalise(q) for q in session.queries]
        for at, (query, target) in enumerate(pairwise(queries)):
            if not query or not target or key_of(query) == key_of(target):
                continue
            others: dict[str, str] = {}  # by key
            taken = {key_of(query), key_of(target)}
            near = nearest.suggest(query, NUM_NEAREST + 2)
            near = [t for t in near if key_of(t) not in taken][:NUM_NEAREST]
            for text in (*near, *popular.suggest(query, 2 * NUM_CANDIDATES)):
                if key_of(text) not in taken and len(others) < NUM_CANDIDATES - 1:
                    others.setdefault(key_of(text), text)
            titles = session.titles[at] if at < len(session.titles) else []
            answer = normalise("; ".join(titles[:_MAX_TITLES]))
            asked = Asked(query, tuple(queries[:at]))
            cases.append(Case(number, asked, answer, (target, *others.values())))
    return cases


def rankings(
    served: ServedBundle,
    scenario: str,
    known: SearchLog,
    cases: Sequence[Case],
    embedder: Embedder | None,
) -> dict[str, Callable[[Case], Floats]]:
    """Returns each system: a case in, scores of its candidates out, float64 (C)."""
    bm25, tfidf = Bm25(known.counts), NearestNeighbour(known)

    def looked_up(figures: Mapping[str, float], case: Case) -> Floats:
        return np.array([float(figures.get(c, 0.0)) for c in case.candidates])

    def retrieved(case: Case) -> Floats:
        texts = served.retrieved(scenario, [case.asked])[0].texts
        return looked_up({t: 1 / place for place, t in enumerate(texts, start=1)}, case)

    systems: dict[str, Callable[[Case], Floats]] = {
        POPULAR: lambda case: looked_up(known.counts, case),
        ADJACENCY: lambda case: looked_up(known.followers.get(case.asked.query, {}), case),
        BM25: lambda case: bm25.scores(case.asked.query, case.candidates),
        TFIDF: lambda case: tfidf.similarities(case.asked.query, case.candidates),
    }
    if embedder is not None:
        systems[MINILM] = cosines(cases, embedder.embed)
    if served.bundle.encoder is not None:
        systems[ENCODER] = cosines(cases, served.embeddings)
    if served.retrieval is not None:
        systems[SERVED] = retrieved
    if served.bundle.click_model is not None:
        systems[CLICK_MODEL] = lambda case: _clicked(served, scenario, case, case.asked)
    return systems


def cosines(
    cases: Iterable[Case], embed: Callable[[list[str]], object]
) -> Callable[[Case], Floats]:
    """Returns what ranks these cases by cosine; each distinct text is embedded once.

    Args:
        cases: all that will be ranked.
        embed: texts in, a sequence of unit vectors out.
    """
    texts = sorted({text for case in cases for text in (case.asked.query, *case.candidates)})
    vectors = np.array(embed(texts), np.float64)
    row_of = {text: row for row, text in enumerate(texts)}

    def rank(case: Case) -> Floats:
        rows = [row_of[text] for text in case.candidates]
        return vectors[rows] @ vectors[row_of[case.asked.query]]

    return rank


def expected_reciprocal_rank(scores_C: Floats) -> float:
    """Returns 1 / rank of the first candidate, averaged over the places it may have among ties."""
    above = int((scores_C > scores_C[0]).sum())
    level = int((scores_C == scores_C[0]).sum())
    return float(np.mean(1 / np.arange(above + 1, above + level + 1)))


def by_session(value_U: Floats, session_of: Sequence[int]) -> Floats:
    """Returns the mean of each session's values, float64 (S)."""
    _, places = np.unique(session_of, return_inverse=True)
    return np.bincount(places, value_U) / np.bincount(places)


def _answers(
    served: ServedBundle, scenario: str, cases: Sequence[Case], report: Callable[[str], None]
) -> list[AnswerEffect]:
    if ANSWER not in served.bundle.manifest.prompt.side_information_kinds:
        return []
    without = [case.asked for case in cases]
    with_answer = [case.asked._replace(answer=case.answer) for case in cases]
    systems: dict[str, Callable[[Sequence[Asked]], list[float]]] = {}

    def clicked(asked: Sequence[Asked]) -> list[float]:
        scores = (_clicked(served, scenario, case, a) for case, a in zip(cases, asked, strict=True))
        return [expected_reciprocal_rank(scores_C) for scores_C in scores]

    def written(asked: Sequence[Asked]) -> list[float]:
        texts = served.written(scenario, asked)
        return _in_lists(cases, [[c.text for c in (*t.finished, *t.cut)] for t in texts])

    if served.bundle.click_model is not None:
        systems[CLICK_MODEL] = clicked
    if served.bundle.generator is not None:
        systems[GENERATOR] = written
        systems[ENGINE] = lambda a: _in_lists(cases, served.texts(scenario, a, NUM_SUGGESTIONS))
    effects: list[AnswerEffect] = []
    for name, reciprocal_ranks in systems.items():
        report(f"{len(cases)} steps by {name} with and without the answer")
        off_S, on_S = (
            by_session(np.array(reciprocal_ranks(asked)), [case.session for case in cases])
            for asked in (without, with_answer)
        )
        effects.append(
            AnswerEffect(
                system=name,
                without=mean_interval(off_S),
                with_answer=mean_interval(on_S),
                difference=difference_interval(on_S, off_S),
            )
        )
    return effects


def _clicked(served: ServedBundle, scenario: str, case: Case, asked: Asked) -> Floats:
    return served.click_probabilities(scenario, asked, case.candidates).astype(np.float64)


def _in_lists(cases: Sequence[Case], lists: Sequence[Sequence[str]]) -> list[float]:
    """Returns 1 / place of the true query among the first ten distinct texts, else 0."""
    ranks: list[float] = []
    for case, texts in zip(cases, lists, strict=True):
        distinct = list(dict.fromkeys(map(key_of, texts)))[:NUM_SUGGESTIONS]
        key = key_of(case.candidates[0])
        ranks.append(1 / (distinct.index(key) + 1) if key in distinct else 0.0)
    return ranks
