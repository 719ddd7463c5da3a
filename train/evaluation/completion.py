"""How well a bundle completes what is typed, against what a search team has without it.

Test queries are of two kinds. *Seen*: searches after the validation cut whose query was searched
before it, too, and is k-anonymous, drawn as often as they were made. *Unseen*: given queries; those
that occur anywhere in the log are left out. Of each, one prefix is asked, of 1 to 10 characters and
shorter than the query, its length drawn evenly with a seed (`prefix_of`).

MRR@10 is the mean of 1 / (place of the true query among the first ten), 0 where it is not there;
success@10 the share of prefixes where it is. A suggestion is the true query if both are equal after
normalisation. The systems:

- *engine*: what is served, log and generated candidates ranked by the click model;
- *generator*: its own texts, those that more slots wrote first;
- *most popular*, *suffix completion*: see `train.evaluation.baselines`;
- *character model*: see `train.evaluation.char_model`; trained on the k-anonymous queries, each
  once: weighted by their searches, unseen queries come lower.

All know the same queries and counts, those of the index, which include the searches after the cut.
"""

# U test queries
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from engine.answering.candidates import key_of
from engine.formats.text import normalise, normalise_prefix
from train.evaluation.baselines import MostPopular, SearchLog, SuffixCompletion
from train.evaluation.char_model import CharModel
from train.evaluation.intervals import Floats, Interval, mean_interval, ratio_interval
from train.evaluation.scripts import SCRIPTS, script_of
from train.evaluation.served import Asked, LeftOut, ServedBundle
from train.evaluation.traffic import Traffic, read_mined, read_traffic

ENGINE, GENERATOR = "engine", "generator"
POPULAR, SUFFIX, CHARACTERS = "most_popular", "suffix_completion", "character_model"
SEEN, UNSEEN = "seen", "unseen"
NUM_SUGGESTIONS = 10
MAX_PREFIX = 10
BANDS = {"1-3": (1, 3), "4-6": (4, 6), "7-10": (7, 10)}  # characters of a prefix
_LEAST_OF_SCRIPT = 30  # test queries
_LEAST_RATIO = {SEEN: 1.0, UNSEEN: 1.3}  # of the MRR of the engine to that of its rival
Complete = Callable[[Sequence[str]], list[list[str]]]


class Case(msgspec.Struct, frozen=True):
    """What was typed, and what the user had in mind."""

    prefix: str
    query: str


class CompletionScore(msgspec.Struct, frozen=True, kw_only=True):
    """One system on one kind of test queries; intervals are over test queries."""

    slice: str
    system: str
    num_queries: int
    mrr: Interval
    success: Interval
    mrr_by_length: dict[str, Interval]  # by characters of the prefix
    mrr_by_script: dict[str, Interval]  # of the query; scripts with few test queries are left out


class Goal(msgspec.Struct, frozen=True, kw_only=True):
    """A paired ratio of MRRs and what it should be at least."""

    slice: str
    rival: str
    ratio: Interval
    at_least: float
    verdict: str  # "met" or "missed" by the whole interval, else "open"


class CompletionReport(msgspec.Struct, frozen=True, kw_only=True):
    """All scores and goals.

    Attributes:
        is_simulated: whether searches, and so popularity and `seen`, are simulated.
        seen_share: searches after the cut that `seen` is drawn from.
        num_in_log: by slice, given queries that were left out because the log has them.
        num_by_script: by slice and script, test queries.
        left_out: slice without a test query -> why.
    """

    is_simulated: bool
    seen_share: float
    num_in_log: dict[str, int]
    num_by_script: dict[str, dict[str, int]]
    scores: list[CompletionScore]
    goals: list[Goal]
    left_out: dict[str, str]


def evaluate_completion(
    served: ServedBundle,
    run: Path,
    *,
    unseen: Mapping[str, Sequence[str]],
    num_cases: int = 2000,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> CompletionReport:
    """Asks all systems for completions of all prefixes.

    Args:
        served: the bundle.
        run: the run directory that it comes from, for its logs.
        unseen: slice -> queries that users of the log should never have searched.
        num_cases: test queries of each slice; seen ones are drawn with replacement.
        seed: of draws and prefixes.
        report: called with what is being done.

    Raises:
        LeftOut: the bundle does not complete, or no slice has a test query.
    """
    mined, traffic = read_mined(run), read_traffic(run)
    systems = completion_systems(served, mined.log())
    seen = {q: n for q, n in traffic.after.items() if q in mined.counts and q in traffic.before}
    tests = {SEEN: [] if not seen else drawn(seen, num_cases, seed)}
    num_in_log: dict[str, int] = {}
    for name, queries in unseen.items():
        kept = never_searched(queries, traffic)
        num_in_log[name] = len({normalise(q) for q in queries}) - len(kept)
        tests[name] = random.Random(seed).sample(kept, min(num_cases, len(kept)))
    scores: list[CompletionScore] = []
    goals: list[Goal] = []
    num_by_script: dict[str, dict[str, int]] = {}
    left_out: dict[str, str] = {}
    for name, queries in tests.items():
        cases = cases_of(queries, seed)
        if not cases:
            left_out[name] = (
                "no known query longer than a character was searched before and after the "
                "validation cut"
                if name == SEEN
                else "the log has all of its queries that are longer than a character"
            )
            continue
        num_by_script[name] = dict(Counter(script_of(case.query) for case in cases))
        places = {}
        for system, complete in systems.items():
            report(f"{name}: {len(cases)} completions by {system}")
            places[system] = reciprocal_ranks(cases, complete)
            scores.append(_score(name, system, cases, places[system]))
        goals.append(_goal(name, places))
    if not scores:
        raise LeftOut("; ".join(f"{name}: {why}" for name, why in left_out.items()))
    return CompletionReport(
        is_simulated=mined.is_simulated,
        seen_share=sum(seen.values()) / max(1, traffic.after.total()),
        num_in_log=num_in_log,
        num_by_script=num_by_script,
        scores=scores,
        goals=goals,
        left_out=left_out,
    )


def completion_systems(served: ServedBundle, known: SearchLog) -> dict[str, Complete]:
    """Returns each system: prefixes in, for each up to ten distinct texts out, best first.

    Raises:
        LeftOut: the bundle does not complete.
    """
    scenario, num = served.first_scenario(completes_prefix=True), NUM_SUGGESTIONS
    popular, suffix = MostPopular(known), SuffixCompletion(known)
    characters = CharModel(known.counts)

    def generated(prefixes: Sequence[str]) -> list[list[str]]:
        written = served.written(scenario, [Asked(p) for p in prefixes])
        return [
            _by_votes([c.text for c in (*texts.finished, *texts.cut)], prefix)
            for prefix, texts in zip(prefixes, written, strict=True)
        ]

    systems: dict[str, Complete] = {
        ENGINE: lambda ps: served.texts(scenario, [Asked(p) for p in ps], num),
        POPULAR: lambda ps: [popular.suggest(p, num, completes_prefix=True) for p in ps],
        SUFFIX: lambda ps: [suffix.suggest(p, num) for p in ps],
        CHARACTERS: lambda ps: [characters.complete(p, num) for p in ps],
    }
    if served.bundle.generator is not None:
        systems[GENERATOR] = generated
    return systems


def never_searched(queries: Iterable[str], traffic: Traffic) -> list[str]:
    """Returns the normalised queries that nobody searched, sorted, without repeats.

    A query that differs from a searched one in punctuation only counts as searched.
    """
    searched = {key_of(q) for counts in (traffic.before, traffic.after) for q in counts}
    return sorted({q for q in map(normalise, queries) if q and key_of(q) not in searched})


def drawn(counts: Mapping[str, int], num: int, seed: int) -> list[str]:
    """Returns `num` queries, each drawn as often as it was searched, with replacement."""
    queries = sorted(counts)
    return random.Random(seed).choices(queries, [counts[q] for q in queries], k=num)


def cases_of(queries: Sequence[str], seed: int) -> list[Case]:
    """Returns each query with one prefix; queries too short to have one are left out."""
    cases = [(prefix_of(q, f"{seed} {i} {q}"), q) for i, q in enumerate(queries)]
    return [Case(prefix, query) for prefix, query in cases if prefix]


def prefix_of(query: str, seed: str) -> str:
    """Returns a prefix of 1 to 10 characters, shorter than the query, each length equally likely.

    A trailing space stays: it was typed. Empty for a query of one character.
    """
    longest = min(MAX_PREFIX, len(query) - 1)
    if longest < 1:
        return ""
    return normalise_prefix(query[: random.Random(seed).randint(1, longest)])


def reciprocal_ranks(cases: Sequence[Case], complete: Complete) -> Floats:
    """Returns 1 / place of the true query among the first ten suggestions, else 0, float64 (U)."""
    prefixes = sorted({case.prefix for case in cases})
    place_of: dict[str, dict[str, int]] = {}
    for prefix, texts in zip(prefixes, complete(prefixes), strict=True):
        distinct = list(dict.fromkeys(map(normalise, texts)))[:NUM_SUGGESTIONS]
        place_of[prefix] = {text: place for place, text in enumerate(distinct, start=1)}
    places = [place_of[case.prefix].get(case.query) for case in cases]
    return np.array([0.0 if p is None else 1 / p for p in places])


def _score(name: str, system: str, cases: Sequence[Case], rank_U: Floats) -> CompletionScore:
    length_U = np.array([len(case.prefix) for case in cases])
    scripts = np.array([script_of(case.query) for case in cases])
    of_script = {script: scripts == script for script in SCRIPTS}
    bands = {b: (length_U >= low) & (length_U <= high) for b, (low, high) in BANDS.items()}
    return CompletionScore(
        slice=name,
        system=system,
        num_queries=len(cases),
        mrr=mean_interval(rank_U),
        success=mean_interval((rank_U > 0).astype(np.float64)),
        mrr_by_length={b: mean_interval(rank_U[of]) for b, of in bands.items() if of.any()},
        mrr_by_script={
            s: mean_interval(rank_U[of])
            for s, of in of_script.items()
            if of.sum() >= min(_LEAST_OF_SCRIPT, len(cases))
        },
    )


def _goal(name: str, rank_of: Mapping[str, Floats]) -> Goal:
    """Returns the engine's MRR over that of its rival: of unseen queries, the better of two."""
    rivals = (POPULAR,) if name == SEEN else (SUFFIX, CHARACTERS)
    rival = max(rivals, key=lambda system: rank_of[system].mean())
    at_least = _LEAST_RATIO[SEEN if name == SEEN else UNSEEN]
    ratio = ratio_interval(rank_of[ENGINE], rank_of[rival])
    verdict = "met" if ratio.low >= at_least else "missed" if ratio.high < at_least else "open"
    return Goal(slice=name, rival=rival, ratio=ratio, at_least=at_least, verdict=verdict)


def _by_votes(texts: Sequence[str], prefix: str) -> list[str]:
    """Returns distinct texts, those written most often first, but never the prefix itself."""
    votes: dict[str, int] = {}
    for text in texts:
        votes[text] = votes.get(text, 0) + 1
    ranked = sorted(votes, key=lambda text: -votes[text])
    return [text for text in ranked if key_of(text) != key_of(prefix)][:NUM_SUGGESTIONS]
