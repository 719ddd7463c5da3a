"""Training examples of the generator, for all scenarios at once.

An example is a request as it would be served, and the list that would have been right, best
first; for completion in beam form, what the user wanted and a sample of all with that prefix.
Side information from the index is left out of some (cold start), exact in some, and taken from
similar queries in the others, which is what serving does for queries it does not know; so the
model learns to use it but not merely to copy. Knows nothing of tokens or models.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from heapq import heappop, heappush
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from engine.formats.manifest import PromptSpec, ScenarioSpec
from engine.formats.prompt import ANSWER, COOCCURRING, SESSION, SideInformation
from engine.formats.text import match_key, normalise_prefix
from engine.formats.words import words_of
from train.generation.associations import Associations, Clicks, known_in_training
from train.mining.mine import CONTEXTS
from train.mining.shown import IMPRESSIONS

Context = tuple[tuple[str, tuple[str, ...]], list[str]]  # query and session; what followed
_EXACT_SHARE = 0.6  # of the examples with side information; the others get similar queries' lists
_BATCH_ROWS = 20_000


class Example(NamedTuple):
    """A request and the response it should get; all texts normalised."""

    scenario: str
    query: str
    side_information: list[SideInformation]  # in the order it is read: what matters most last
    auxiliary_text: str | None
    suggestions: list[str]  # distinct, best first as far as one is better


class Source(NamedTuple):
    """What an example is made from."""

    scenario: str
    query: str  # of a completing scenario: the whole query, or the prefix if `is_typed`
    session_queries: tuple[str, ...]  # oldest first
    further: tuple[SideInformation, ...]  # other side information, e.g. an answer
    wanted: tuple[str, ...]  # what this user wanted, best first
    auxiliary_text: str | None
    is_typed: bool
    is_clicked: bool = False  # what was wanted was clicked on the scenario's panel


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleConfig:
    """What the examples depend on beside the mined tables."""

    scenarios: Sequence[ScenarioSpec]
    prompt: PromptSpec
    cold_share: float  # of examples without side information from the index
    max_contexts_per_query: int
    # Completions beside the wanted one: a sample of all with that prefix, or the most searched. A
    # sample suits beams; in slots and lists every place must learn a text of its own.
    samples_completions: bool = False


class ExampleMaker:
    """Makes examples from sources. The same source and random state give the same example."""

    def __init__(self, config: ExampleConfig, associations: Associations) -> None:
        """Takes the configuration and the look-ups."""
        self.config = config
        self._scenarios = {s.name: s for s in config.scenarios}
        self._associations = associations

    def __call__(self, source: Source, rng: random.Random) -> Example | None:
        """Returns an example, or None if nothing is left to suggest."""
        spec = self._scenarios[source.scenario]
        query = source.query
        if spec.completes_prefix and not source.is_typed:
            query = normalise_prefix(query[: rng.randrange(1, len(query))])
        num_wanted = spec.num_slots - spec.has_auxiliary_text
        if spec.completes_prefix:
            # The engine looks up what is searched most, and a generator that knows that by heart
            # has little to say about prefixes that nobody typed.
            known, most = self._associations, 2 * num_wanted
            others = (
                known.sample_starting_with(query, most, rng)
                if self.config.samples_completions
                else known.starting_with(query, most)
            )
            wanted = [t for t in source.wanted if t.startswith(query)]
            suggestions = distinct([*wanted, *others], {query}, num_wanted)
        else:
            suggestions = self._suggestions(source, num_wanted)
        if not suggestions:
            return None
        session = [SideInformation(SESSION, t) for t in source.session_queries]
        is_cold = rng.random() < self.config.cold_share
        found = [] if is_cold else self._retrieved(source, query, rng)
        cooccurring = [SideInformation(COOCCURRING, t) for t in reversed(found)]
        side_information = [*cooccurring, *source.further, *session]
        return Example(source.scenario, query, side_information, source.auxiliary_text, suggestions)

    def _suggestions(self, source: Source, num_wanted: int) -> list[str]:
        spec, known = self._scenarios[source.scenario], self._associations
        query = source.query
        best = [s.text for s in known.best_next(query)]
        if spec.has_auxiliary_text:  # options narrow the query down
            narrower = known.specialisations(query, num_wanted)
            is_narrower = set(words_of(query)).issubset
            best = [*(t for t in best if is_narrower(words_of(t))), *narrower, *best]
        excluded = {query, *source.session_queries}
        found = distinct([*source.wanted, *best], excluded, num_wanted)
        if len(found) < num_wanted:  # rare queries: what narrows them down or resembles them
            fill = [*known.specialisations(query, num_wanted), *known.similar(query, num_wanted)]
            found = distinct([*found, *fill], excluded, num_wanted)
        return found

    def _retrieved(self, source: Source, query: str, rng: random.Random) -> list[str]:
        """Returns what the engine's look-up might find for a query or prefix, best first."""
        known, k = self._associations, self.config.prompt.max_cooccurring
        if self._scenarios[source.scenario].completes_prefix:
            last = source.session_queries[-1:]
            following = known.following(last[0]) if last else []
            fitting = [t for t in following if t.startswith(query)]
            return distinct([*fitting, *known.starting_with(query, k + 1)], {query}, k)
        own = known.following(query, k) if rng.random() < _EXACT_SHARE else []
        if len(own) == k:
            return own
        neighbours = known.similar(query, 6)
        rng.shuffle(neighbours)
        near: list[str] = []
        for neighbour in neighbours[:3]:
            following = known.following(neighbour, 2)
            near += [neighbour, *following] if rng.random() < 0.5 else following
        return distinct([*own, *near], {query}, k)


def read_sources(
    mined: Path, config: ExampleConfig, split: str, seed: int, *, further: Iterable[Source] = ()
) -> list[Source]:
    """Returns the sources of a split ("train" or "valid"), in a random order fixed by the seed.

    Args:
        mined: tables of the log.
        config: what is made.
        split: which searches.
        seed: of the order.
        further: sources beside those of the log.
    """
    contexts = _contexts(mined, config, split)
    sources = list(further)
    for spec in config.scenarios:
        if spec.completes_prefix:
            sources += [
                Source(spec.name, target, (*session, query), (), (target,), None, False)
                for (query, session), targets in contexts
                for target in targets
                if len(target) > 1
            ]
            # What is rare is told apart by its spelling, so each query counts once more; many are
            # searched alone, and occur in no context.
            sources += [
                Source(spec.name, text, (), (), (text,), None, False)
                for text in (known_in_training(mined) if split == "train" else ())
                if len(text) > 1
            ]
        elif not spec.has_auxiliary_text:
            sources += [
                Source(spec.name, query, session, (), tuple(targets), None, False)
                for (query, session), targets in contexts
            ]
    sources += _clicked_sources(mined, config, split)
    random.Random(seed).shuffle(sources)
    return sources


def read_clicks(mined: Path, split: str, specs: Sequence[ScenarioSpec]) -> list[Clicks]:
    """Returns clicks and views per (query, text) over the scenarios that do not complete."""
    path = mined / IMPRESSIONS
    if not path.exists():
        return []
    seen = {s.name: s.position_ctr for s in specs if not s.completes_prefix}
    clicks: Counter[tuple[str, str]] = Counter()
    views: defaultdict[tuple[str, str], float] = defaultdict(float)
    columns = ["scenario", "query", "text", "position", "clicked"]
    for batch in pq.ParquetFile(path).iter_batches(columns=[*columns, "split"]):
        for row in batch.to_pylist():
            rates = seen.get(row["scenario"])
            if rates is None or row["split"] != split:
                continue
            pair = row["query"], row["text"]
            clicks[pair] += row["clicked"]
            views[pair] += rates[min(row["position"], len(rates)) - 1]
    return [Clicks(q, t, n, max(views[q, t], n)) for (q, t), n in clicks.items() if n]


def distinct(texts: Iterable[str], excluded: Iterable[str], k: int) -> list[str]:
    """Returns the first k texts that count as different, from one another and `excluded`."""
    seen = {match_key(t) for t in excluded}
    found: list[str] = []
    for text in texts:
        if len(found) == k:
            break
        key = match_key(text)
        if key not in seen:
            seen.add(key)
            found.append(text)
    return found


def _contexts(mined: Path, config: ExampleConfig, split: str) -> list[Context]:
    """Returns ((query, session), what followed, most often first), capped per query."""
    rows = pq.read_table(mined / CONTEXTS, filters=[("split", "==", split)])  # sorted by query
    kept: list[Context] = []
    for query, own in groupby(_rows(rows), key=itemgetter("query")):
        followed: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for row in own:
            followed[_last_distinct(row["session_queries"], query)][row["target"]] += row["weight"]
        by_weight = sorted(followed.items(), key=lambda f: (-f[1].total(), f[0]))
        for session, found in by_weight[: config.max_contexts_per_query]:
            targets = sorted(found, key=lambda target: (-found[target], target))
            kept.append(((query, session), targets))
    return kept


def _clicked_sources(mined: Path, config: ExampleConfig, split: str) -> list[Source]:
    """Returns a source per request that got clicks, the newest ones of each query."""
    path = mined / IMPRESSIONS
    if not path.exists():
        return []
    specs = {s.name: s for s in config.scenarios}
    rows = pq.read_table(path, filters=[("split", "==", split)]).sort_by(
        [("request_id", "ascending"), ("position", "ascending")]
    )
    newest: defaultdict[tuple[str, str], list[tuple[datetime, str, Source]]] = defaultdict(list)
    for request_id, request in groupby(_rows(rows), key=itemgetter("request_id")):
        shown = list(request)
        first = shown[0]
        spec, query = specs[first["scenario"]], first["query"]
        wanted = tuple(r["text"] for r in shown if r["clicked"])
        if not wanted:
            continue
        items = [SideInformation(i["kind"], i["text"]) for i in first["side_information"]]
        session = _last_distinct([i.text for i in items if i.kind == SESSION], query)
        further = [i for i in items if i.kind not in (SESSION, COOCCURRING)]
        further.sort(key=lambda i: i.kind == ANSWER)  # as an engine does
        auxiliary = first["auxiliary_text"] if spec.has_auxiliary_text else None
        source = Source(
            spec.name,
            query,
            session,
            tuple(further),
            wanted,
            auxiliary,
            spec.completes_prefix,
            True,
        )
        own = newest[spec.name, query]
        heappush(own, (first["time"], request_id, source))
        if len(own) > config.max_contexts_per_query:
            heappop(own)
    return [source for own in newest.values() for _, _, source in own]


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yields rows; of a large table, few at a time are objects."""
    for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
        yield from batch.to_pylist()


def _last_distinct(session_queries: Iterable[str], query: str) -> tuple[str, ...]:
    """Returns the session's distinct queries but `query`, by when they were last searched."""
    last = dict.fromkeys(reversed([t for t in session_queries if t != query]))
    return tuple(reversed(last))
