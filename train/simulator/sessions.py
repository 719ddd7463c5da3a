"""Simulated users and what they search; it knows no panel and no click.

Popularity is simulated: logged queries are ranked by `Truth.popularity` and drawn with weights
`(rank + 10) ** -0.9` (Zipf-Mandelbrot). A user has three topics (clusters of the hidden word
space) and a Pareto-distributed activity. A session starts at a popular query, in seven of ten cases
of one of the user's topics, and is a walk led by hidden intent: after each query the user stops
(0.35), switches topic (0.10) or follows an intent to v with probability proportional to
`attraction(u, v) ** 1.5 * exp(0.4 * popularity(v))` over real queries v that share words or
meaning with u, which specialises, moves in parallel, drifts to what is related or generalises.
Gaps within a session are log-normal around 45 s, at most 20 min; sessions of a user are more than
30 min apart; one in ten keeps the session id of the one before, as cookies do.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from train.simulator.corpus import Corpus
from train.simulator.truth import Truth

MOVES = ("specialise", "parallel", "related", "generalise")
_NUM_TOPICS = 64
_POOL_A_WORD, _POOL_NEAREST = 24, 16
_NUM_NEXT = 16
_STOP, _SWITCH = 0.35, 0.10
_OWN_TOPIC = 0.7
_MAX_STEPS = 20
_NOTHING = -2
_INACTIVITY_S = 30 * 60

# Q logged queries, E transitions, S sessions, M searches


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Where users go from each of the Q logged queries.

    Attributes:
        popularity: float64 (Q,), probability that a session starts there.
        topic: int64 (Q,), cluster of each query.
        starts: int64 (Q+1,), transitions of query u are `starts[u]:starts[u + 1]`.
        targets: int64 (E,), query ids.
        cumulative: float64 (E,), cumulative probability within each u.
        kinds: int8 (E,), index into `MOVES`, the strongest move.
        sharing: Q int64 arrays, queries that share a word with u (a sample) or narrow it down.
    """

    popularity: np.ndarray
    topic: np.ndarray
    starts: np.ndarray
    targets: np.ndarray
    cumulative: np.ndarray
    kinds: np.ndarray
    sharing: list[np.ndarray]


class Searches(NamedTuple):
    """M searches, ordered by user and time.

    Attributes:
        query: int64 (M,), id of the logged query.
        user: int64 (M,).
        visit: int64 (M,), what the session id stands for.
        time_s: float64 (M,), seconds since the log's start.
        kind: int8 (M,), index into `MOVES`, -1 for a session's start or a topic switch.
        step: int64 (M,), how many searches of the same walk came before.
    """

    query: np.ndarray
    user: np.ndarray
    visit: np.ndarray
    time_s: np.ndarray
    kind: np.ndarray
    step: np.ndarray


def learn(truth: Truth, corpus: Corpus, *, seed: int) -> Behaviour:
    """Returns the behaviour that follows from a truth."""
    rng = np.random.default_rng([seed, 6])
    queries = corpus.logged
    num_queries = len(queries)
    table = truth.intents.table(queries)
    score = truth.popularity(queries)
    rank = np.empty(num_queries)
    rank[np.argsort(-score, kind="stable")] = np.arange(num_queries)
    popularity = (rank + 10.0) ** -0.9
    topic = _topics(table.vectors, rng)
    sharing = _sharing(table.ids, truth.intents.space.idf, rng)
    nearest = _nearest(table.vectors, topic)
    narrower = _narrower(table.ids)
    sharing = [np.union1d(a, b) for a, b in zip(sharing, narrower, strict=True)]
    pools = [np.union1d(a, b) for a, b in zip(sharing, nearest, strict=True)]
    sources = np.repeat(np.arange(num_queries), [len(pool) for pool in pools])
    targets = np.concatenate(pools) if pools else np.zeros(0, dtype=np.int64)
    is_other = sources != targets
    sources, targets = sources[is_other], targets[is_other]
    moves = truth.intents.moves(table, sources, targets)
    weight = (moves.match * truth.wellformedness(queries)[targets]) ** 1.5
    weight = np.where(moves.match > 0.04, weight * np.exp(0.4 * score[targets]), 0.0)
    kinds = np.argmax(
        [moves.specialise, moves.parallel, moves.related, moves.generalise], axis=0
    ).astype(np.int8)

    # The strongest targets of each source: sort by (source, -weight), cut by rank within source.
    order = np.lexsort((-weight, sources))
    order = order[weight[order] > 0]
    first = np.searchsorted(sources[order], np.arange(num_queries))
    order = order[np.arange(len(order)) - first[sources[order]] < _NUM_NEXT]
    sources, targets, weight, kinds = sources[order], targets[order], weight[order], kinds[order]
    starts = np.searchsorted(sources, np.arange(num_queries + 1))
    running = np.concatenate([[0.0], np.cumsum(weight)])
    totals = running[starts[1:]] - running[starts[:-1]]
    cumulative = (running[1:] - running[starts[sources]]) / np.maximum(totals[sources], 1e-300)
    return Behaviour(
        popularity / popularity.sum(), topic, starts, targets, cumulative, kinds, sharing
    )


def walk(
    behaviour: Behaviour, *, num_searches: int, num_users: int, num_days: int, seed: int
) -> Searches:
    """Simulates users until they made `num_searches` searches, in whole sessions."""
    rng = np.random.default_rng([seed, 7])
    num_topics = int(behaviour.topic.max()) + 1
    shares = np.bincount(behaviour.topic, behaviour.popularity, num_topics)
    activity = rng.pareto(1.6, num_users) + 0.3
    topics = rng.choice(num_topics, (num_users, 3), p=shares / shares.sum())
    num_sessions = num_searches  # more than needed: a session has two searches and more
    user = rng.choice(num_users, num_sessions, p=activity / activity.sum())
    by_topic = _ByTopic(behaviour)
    query_SK = np.zeros((num_sessions, _MAX_STEPS), dtype=np.int64)
    kind_SK = np.full((num_sessions, _MAX_STEPS), _NOTHING, dtype=np.int8)
    query_SK[:, 0] = by_topic.draw(topics[user], rng)
    kind_SK[:, 0] = -1
    alive = np.arange(num_sessions)
    for step in range(1, _MAX_STEPS):
        current = query_SK[alive, step - 1]
        luck = rng.random(len(alive))
        has_next = behaviour.starts[current + 1] > behaviour.starts[current]
        is_switch = luck < _STOP + _SWITCH
        goes_on = (luck >= _STOP) & (has_next | is_switch)
        alive, current, is_switch = alive[goes_on], current[goes_on], is_switch[goes_on]
        if not len(alive):
            break
        target, kind = _follow(behaviour, current, rng)
        switched = by_topic.draw(topics[user[alive]], rng)
        query_SK[alive, step] = np.where(is_switch, switched, target)
        kind_SK[alive, step] = np.where(is_switch, np.int8(-1), kind)
    length = (kind_SK > _NOTHING).sum(axis=1)
    num_kept = min(int(np.searchsorted(np.cumsum(length), num_searches)) + 1, num_sessions)
    kept = np.arange(num_kept)
    # Most users sleep at night: a day's sessions follow a raised cosine with its top at 15:00.
    hour = (15 + 24 * (rng.beta(2.5, 2.5, num_kept) - 0.5)) % 24
    start_s = rng.integers(0, num_days, num_kept) * 86_400.0 + hour * 3600
    gaps = np.minimum(np.exp(rng.normal(np.log(45), 1.0, (num_kept, _MAX_STEPS))), 20 * 60)
    gaps[:, 0] = 0.0
    offset_SK = np.cumsum(gaps, axis=1)
    duration_s = offset_SK[kept, length[:num_kept] - 1]
    order = np.lexsort((start_s, user[:num_kept]))
    visit = np.zeros(num_kept, dtype=np.int64)
    keeps_id = rng.random(num_kept) < 0.1
    previous_user, free_s, num_visits = -1, 0.0, 0
    for session in order.tolist():
        is_same_user = int(user[session]) == previous_user
        if is_same_user:
            start_s[session] = max(start_s[session], free_s)
        if not (is_same_user and keeps_id[session]):
            num_visits += 1
        visit[session] = num_visits - 1
        previous_user = int(user[session])
        free_s = start_s[session] + duration_s[session] + _INACTIVITY_S + 60
    row = np.repeat(order, length[order])
    step = np.concatenate([np.arange(n) for n in length[order]])
    return Searches(
        query=query_SK[row, step],
        user=user[row],
        visit=visit[row],
        time_s=start_s[row] + offset_SK[row, step],
        kind=kind_SK[row, step],
        step=step,
    )


class _ByTopic:
    """Draws queries by popularity, within a topic or overall."""

    def __init__(self, behaviour: Behaviour) -> None:
        num_topics = int(behaviour.topic.max()) + 1
        self._order = np.argsort(behaviour.topic, kind="stable")
        self._running = np.concatenate([[0.0], np.cumsum(behaviour.popularity[self._order])])
        self._bounds = np.searchsorted(behaviour.topic[self._order], np.arange(num_topics + 1))

    def draw(self, topics: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns int64 (S,) queries for topics int64 (S, 3): one of them, or any query."""
        chosen = topics[np.arange(len(topics)), rng.integers(topics.shape[1], size=len(topics))]
        is_own = rng.random(len(topics)) < _OWN_TOPIC
        low = np.where(is_own, self._running[self._bounds[chosen]], 0.0)
        high = np.where(is_own, self._running[self._bounds[chosen + 1]], self._running[-1])
        at = np.searchsorted(self._running, low + rng.random(len(topics)) * (high - low), "right")
        return self._order[np.clip(at - 1, 0, len(self._order) - 1)]


def _follow(
    behaviour: Behaviour, current: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    # Row u's cumulative values lie in (0, 1]; adding u makes one sorted array of all rows.
    sources = np.repeat(np.arange(len(behaviour.starts) - 1), np.diff(behaviour.starts))
    at = np.searchsorted(sources + behaviour.cumulative, current + rng.random(len(current)))
    at = np.clip(at, behaviour.starts[current], np.maximum(behaviour.starts[current + 1] - 1, 0))
    at = np.minimum(at, len(behaviour.targets) - 1)
    return behaviour.targets[at], behaviour.kinds[at]


def _topics(vectors_QD: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Spherical k-means, ten rounds."""
    num_topics = min(_NUM_TOPICS, len(vectors_QD))
    centres = vectors_QD[rng.choice(len(vectors_QD), num_topics, replace=False)]
    assigned = np.zeros(len(vectors_QD), dtype=np.int64)
    for _ in range(10):
        assigned = (vectors_QD @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, assigned, vectors_QD)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 1e-6, sums / np.maximum(lengths, 1e-6), centres)
    return np.unique(assigned, return_inverse=True)[1]


def _sharing(ids_QL: np.ndarray, idf: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """For each query a sample of queries that share one of its three most telling words."""
    rows, columns = np.nonzero((ids_QL >= 0) & (ids_QL < len(idf) - 1))
    word = ids_QL[rows, columns]
    order = np.argsort(word, kind="stable")
    rows, word = rows[order], word[order]
    bounds = np.searchsorted(word, np.arange(len(idf) + 1))
    result: list[np.ndarray] = []
    for query in range(len(ids_QL)):
        known = [w for w in ids_QL[query] if 0 <= w < len(idf) - 1]
        known.sort(key=lambda w: -idf[w])
        picked = [np.zeros(0, dtype=np.int64)]
        for w in known[:3]:
            posting = rows[bounds[w] : bounds[w + 1]]
            if len(posting) > _POOL_A_WORD:
                posting = posting[rng.integers(len(posting), size=_POOL_A_WORD)]
            picked.append(posting)
        pool = np.unique(np.concatenate(picked))
        result.append(pool[pool != query])
    return result


def _narrower(ids_QL: np.ndarray) -> list[np.ndarray]:
    """For each query up to 30 queries that hold all its words and one or two more."""
    sets = [tuple(sorted(w for w in row if w >= 0)) for row in ids_QL.tolist()]
    found: dict[tuple[int, ...], list[int]] = {stems: [] for stems in sets}
    for query, stems in enumerate(sets):
        if not 2 <= len(stems) <= 6:
            continue
        for num_left_out in (1, 2):
            for kept in itertools.combinations(stems, len(stems) - num_left_out):
                narrower = found.get(kept)
                if kept and narrower is not None and len(narrower) < 30:
                    narrower.append(query)
    return [np.array(found[stems], dtype=np.int64) for stems in sets]


def _nearest(vectors_QD: np.ndarray, topic: np.ndarray) -> list[np.ndarray]:
    """For each query the nearest queries of its topic in the hidden word space."""
    result: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(topic)
    order = np.argsort(topic, kind="stable")
    bounds = np.searchsorted(topic[order], np.arange(int(topic.max()) + 2))
    for low, high in itertools.pairwise(bounds.tolist()):
        members = order[low:high]
        similarity = vectors_QD[members] @ vectors_QD[members].T
        num = min(_POOL_NEAREST + 1, len(members))
        top = np.argpartition(-similarity, num - 1, axis=1)[:, :num]
        for row, query in enumerate(members.tolist()):
            result[query] = members[top[row]]
    return result
