"""The logging policy: what an imperfect production system of before showed. It knows no truth.

Candidates come from where such systems take them: queries that followed in the log, queries that
share words, what is popular, and a crude generator that recombines words of neighbours and is
sometimes wrong. They are ordered by a prior with much noise, so that logged lists hold good and bad
items at every position. A share of requests (`exploration_rate`) is explored: with an offset of 0
or 1 drawn evenly, each adjacent pair from that offset on is swapped with probability 1/2. Logged
propensity of an item is the marginal probability of its position given the policy's order:
`1 - rate * n / 4` if it stayed (n = number of neighbours it could be paired with), `rate / 4` if it
moved.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np

from train.simulator import text
from train.simulator.facets import FACETS, GENERAL_QUESTIONS, WEAK_QUESTIONS

LOG, GENERATED = "log", "generated"
NUM_SHOWN = {"suggestion": 8, "completion": 8, "clarification": 5}


class Candidate(NamedTuple):
    """A text, where it came from, and how much the policy likes it."""

    text: str
    source: str
    liking: float


class LoggingPolicy:
    """Makes candidate lists from the log alone.

    Args:
        queries: the Q distinct queries of the log.
        counts: int64 (Q,), how often each was searched.
        followers: for a query id, the ids that followed it in a session with their counts.
        sharing: for a query id, ids of queries that share a word with it.
        topic: int64 (Q,), a grouping of queries by which popular ones are picked.
        barred: word tuples of held-out queries, which the generator must not hit by chance.
    """

    def __init__(
        self,
        queries: list[str],
        counts: np.ndarray,
        followers: dict[int, Counter[int]],
        sharing: list[np.ndarray],
        topic: np.ndarray,
        barred: frozenset[tuple[str, ...]],
    ) -> None:
        self._queries = queries
        self._barred = barred
        self._log_counts = np.log1p(counts)
        self._followers = followers
        self._sharing = sharing
        self._order = sorted(range(len(queries)), key=queries.__getitem__)
        self._sorted = [queries[i] for i in self._order]
        by_count = np.argsort(-counts, kind="stable")
        self._popular = by_count[:200].tolist()
        self._popular_in: dict[int, list[int]] = defaultdict(list)
        for query in by_count.tolist():
            if len(self._popular_in[int(topic[query])]) < 30:
                self._popular_in[int(topic[query])].append(query)
        self._topic = topic
        self._tokens = [query.split() for query in queries]
        self._stems = [frozenset(text.content_stems(query)) for query in queries]
        after: dict[str, Counter[str]] = defaultdict(Counter)
        vocabulary: Counter[str] = Counter()
        for tokens in self._tokens:
            vocabulary.update(tokens)
            for first, second in itertools.pairwise(tokens):
                after[first][second] += 1
        self._after = {word: [w for w, _ in c.most_common(12)] for word, c in after.items()}
        self._vocabulary = [word for word, _ in vocabulary.most_common(20_000)]
        self._words_sorted = sorted(vocabulary)
        self._word_counts = vocabulary
        self._frequent: dict[str, list[str]] = {}

    def suggestions(self, query: int, rng: np.random.Generator) -> list[Candidate]:
        """Returns up to 8 distinct candidates for a query id, best liked first."""
        picked: list[Candidate] = []
        following = self._followers.get(query)
        if following:
            ids = [i for i, _ in following.most_common(10)]
            for i in rng.permutation(len(ids))[:3].tolist():
                liking = 1.2 + 0.4 * float(np.log(following[ids[i]]))
                picked.append(Candidate(self._queries[ids[i]], LOG, liking))
        neighbours = self._sharing[query]
        for i in _sample(neighbours, 4, rng):
            overlap = len(self._stems[i] & self._stems[query]) / max(len(self._stems[query]), 1)
            liking = 0.6 * overlap + 0.15 * float(self._log_counts[i])
            picked.append(Candidate(self._queries[i], LOG, liking))
        popular = self._popular_in[int(self._topic[query])]
        picked.append(Candidate(self._queries[popular[int(rng.integers(len(popular)))]], LOG, 0.4))
        if rng.random() < 0.4:
            some = self._popular[int(rng.integers(len(self._popular)))]
            picked.append(Candidate(self._queries[some], LOG, 0.3))
        for _ in range(3):
            made = self._recombined(self._tokens[query], neighbours, rng)
            picked.append(Candidate(made, GENERATED, 0.7))
        return self._ordered(picked, {self._queries[query]}, NUM_SHOWN["suggestion"], rng)

    def completions(self, prefix: str, rng: np.random.Generator) -> list[Candidate]:
        """Returns up to 8 distinct candidates that start with the prefix, best liked first."""
        low = bisect_left(self._sorted, prefix)
        high = bisect_left(self._sorted, prefix + "\U0010ffff")
        found = np.array(self._order[low:high], dtype=np.int64)
        picked: list[Candidate] = []
        if len(found):
            top = found[np.argsort(-self._log_counts[found], kind="stable")[:8]]
            picked += [
                Candidate(self._queries[i], LOG, 0.5 * float(self._log_counts[i]))
                for i in _sample(top, 5, rng) + _sample(found, 2, rng)
            ]
        for _ in range(3):
            made = self._completed(prefix, rng)
            if made.startswith(prefix):
                picked.append(Candidate(made, GENERATED, 1.0))
        return self._ordered(picked, {prefix.strip()}, NUM_SHOWN["completion"], rng)

    def options(self, query: int, rng: np.random.Generator) -> list[Candidate]:
        """Returns 0 or 2 to 5 distinct options for a query id, best liked first."""
        stems = self._stems[query]
        neighbours = self._sharing[query]
        narrower = [i for i in neighbours.tolist() if stems < self._stems[i]]
        if len(narrower) < 2:
            return []
        picked = [
            Candidate(self._queries[i], LOG, 1.0 + 0.2 * float(self._log_counts[i]))
            for i in _sample(np.array(narrower), 4, rng)
        ]
        others = [i for i in neighbours.tolist() if not stems < self._stems[i]]
        picked += [
            Candidate(self._queries[i], LOG, 0.6) for i in _sample(np.array(others, int), 1, rng)
        ]
        for _ in range(2):
            made = self._recombined(self._tokens[query], neighbours, rng)
            picked.append(Candidate(made, GENERATED, 0.8))
        if rng.random() < 0.15:
            bare = [w for w in self._tokens[narrower[0]] if text.stem(w) not in stems]
            picked.append(Candidate(" ".join(bare), GENERATED, 0.6))
        num = int(rng.integers(3, NUM_SHOWN["clarification"] + 1))
        options = self._ordered(picked, {self._queries[query]}, num, rng)
        return options if len(options) >= 2 else []

    def question(self, query: int, options: list[Candidate], rng: np.random.Generator) -> str:
        """Returns the question above the options; in one case of four none or a weak one."""
        luck = rng.random()
        if luck < 0.15:
            return ""
        if luck < 0.25:
            template = WEAK_QUESTIONS[int(rng.integers(len(WEAK_QUESTIONS)))]
            return template.format(query=self._queries[query])
        added = Counter(
            s for o in options for s in text.content_stems(o.text) if s not in self._stems[query]
        )
        support = [sum(n for s, n in added.items() if s in facet.stems) for facet in FACETS]
        best = int(np.argmax(support))
        templates = FACETS[best].questions if support[best] >= 2 else GENERAL_QUESTIONS
        template = templates[int(rng.integers(len(templates)))]
        return template.format(query=self._queries[query])

    def typed(self, query: str, rng: np.random.Generator) -> str:
        """Cuts a query anywhere before its end, early and middle cuts are the most frequent."""
        length = 1 + int(rng.beta(1.4, 1.8) * (len(query) - 1))
        length = max(1, min(length, len(query) - 1))
        while length > 1 and text.words(query[:length]) in self._barred:
            length -= 1
        return query[:length]

    def _ordered(
        self,
        picked: list[Candidate],
        excluded: set[str],
        num: int,
        rng: np.random.Generator,
    ) -> list[Candidate]:
        noise = rng.gumbel(0.0, 0.7, len(picked))
        ranked = sorted(
            zip(picked, noise.tolist(), strict=True), key=lambda pair: -(pair[0].liking + pair[1])
        )
        kept: list[Candidate] = []
        seen = set(excluded)
        for candidate, _ in ranked:
            is_barred = candidate.source == GENERATED and text.words(candidate.text) in self._barred
            if candidate.text and candidate.text not in seen and not is_barred:
                seen.add(candidate.text)
                kept.append(candidate)
        return kept[:num]

    def _recombined(
        self, tokens: list[str], neighbours: np.ndarray, rng: np.random.Generator
    ) -> str:
        """Adds or swaps in a word of a neighbour; one in four comes out wrong."""
        made = list(tokens)
        luck = rng.random()
        if luck < 0.08:
            made.insert(int(rng.integers(len(made) + 1)), self._any_word(rng))
        elif luck < 0.14:
            made = [made[i] for i in rng.permutation(len(made))] + [self._any_word(rng)]
        elif luck < 0.18:
            made += [self._any_word(rng) for _ in range(3)]
        elif luck < 0.22:
            made.append(made[int(rng.integers(len(made)))])
        elif len(neighbours):
            other = self._tokens[int(neighbours[int(rng.integers(len(neighbours)))])]
            shared = [w for w in other if w in tokens]
            new = [i for i, w in enumerate(other) if w not in tokens]
            if shared and new:
                anchor = shared[int(rng.integers(len(shared)))]
                i = new[int(rng.integers(len(new)))]
                piece = [other[i]]
                if i and other[i - 1] in text.FUNCTION_WORDS and other[i - 1] not in tokens:
                    piece.insert(0, other[i - 1])
                at = made.index(anchor)
                is_before = i < other.index(anchor)
                if rng.random() < 0.25 and len(made) > 1:  # a parallel move: swap a word
                    made[at - 1 if at else 1] = piece[-1]
                elif is_before:
                    made[at:at] = piece
                elif len(piece) > 1:
                    made += piece
                else:
                    made[at + 1 : at + 1] = piece
        return " ".join(made)

    def _completed(self, prefix: str, rng: np.random.Generator) -> str:
        """Finishes the last word by a frequent one and may add a word that often follows."""
        tokens = prefix.split(" ")
        typed = tokens[-1]
        if typed:
            frequent = self._frequent.get(typed)
            if frequent is None:
                low = bisect_left(self._words_sorted, typed)
                high = bisect_left(self._words_sorted, typed + "\U0010ffff")
                frequent = sorted(self._words_sorted[low:high], key=lambda w: -self._word_counts[w])
                self._frequent[typed] = frequent = frequent[:20]
            following = self._after.get(tokens[-2], []) if len(tokens) > 1 else []
            likely = [w for w in following if w.startswith(typed)]
            found = list(dict.fromkeys([*likely, *frequent]))
            if found:
                tokens[-1] = found[min(int(rng.geometric(0.5)) - 1, len(found) - 1)]
        else:
            tokens.pop()
        if not typed or rng.random() < 0.5:
            following = self._after.get(tokens[-1], []) if rng.random() < 0.85 else []
            word = (
                following[int(rng.integers(len(following)))] if following else self._any_word(rng)
            )
            tokens.append(word)
            if word in text.FUNCTION_WORDS and self._after.get(word):
                tokens.append(self._after[word][int(rng.integers(len(self._after[word])))])
        return " ".join(tokens)

    def _any_word(self, rng: np.random.Generator) -> str:
        return self._vocabulary[int(rng.integers(len(self._vocabulary)))]


def explored(
    num_items: int, rate: float, rng: np.random.Generator
) -> tuple[list[int], list[float]]:
    """Returns the shown order (indices into the policy's order) and each shown item's propensity.

    Args:
        num_items: length of the list.
        rate: share of explored requests, in [0, 1].
        rng: decides.
    """
    order = list(range(num_items))
    if rng.random() < rate:
        for left in range(int(rng.integers(2)), num_items - 1, 2):
            if rng.random() < 0.5:
                order[left], order[left + 1] = order[left + 1], order[left]
    propensities: list[float] = []
    for position, item in enumerate(order):
        num_neighbours = (item > 0) + (item < num_items - 1)
        stays = position == item
        propensities.append(1 - rate * num_neighbours / 4 if stays else rate / 4)
    return order, propensities


def _sample(ids: np.ndarray, num: int, rng: np.random.Generator) -> list[int]:
    if not len(ids):
        return []
    return list(dict.fromkeys(ids[rng.integers(len(ids), size=num)].tolist()))
