"""How much a string reads like a query that people type; knows nothing of what anyone wants.

Word probabilities are an interpolated Kneser-Ney bigram (Chen & Goodman 1999, one discount
0.75) over real queries that never occur in a log:
`P(w|v) = max(c(v,w) - d, 0) / c(v) + d * |followers of v| / c(v) * Pcont(w)`.
Unseen words fall back to a character 4-gram. A logistic regression over few features of these
(`_features`) tells other held-out real queries from made-up nonsense: words drawn at random,
shuffled words, stuffed, joined, cut, misspelt or repeated ones. Its logit z becomes
`1 / (1 + exp(-(z - z20) / T))` with `z20` the 20 % quantile of the real ones and T such that
their median gets 0.95; that is multiplied by `UNSEEN * exp(min(0, spelling))` for each word never
seen in any real query, since misspelt words are wrong suggestions even where they look like words,
and by `DANGLING` where the text stops at a word such as "for".
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from train.simulator import text
from train.simulator.vectors import WordSpace

_DISCOUNT = 0.75
_START, _END = "<s>", "</s>"
_NUM_FEATURES = 10
UNSEEN = 0.4
DANGLING = 0.15
_DANGLING_WORD_LIST = "a an and at by de for from in of or the to und with y & -"
_DANGLING_WORDS = frozenset(_DANGLING_WORD_LIST.split())


class BigramModel:
    """An interpolated Kneser-Ney bigram over words, with a character model for unseen ones."""

    def __init__(self, queries: list[str]) -> None:
        followers: dict[str, Counter[str]] = defaultdict(Counter)
        num_before: Counter[str] = Counter()
        unigrams: Counter[str] = Counter()
        for query in queries:
            before = _START
            for word in (*query.split(), _END):
                counts = followers[before]
                if word not in counts:
                    num_before[word] += 1
                counts[word] += 1
                unigrams[word] += 1
                before = word
        self._followers = dict(followers)
        self._totals = {word: counts.total() for word, counts in followers.items()}
        # One part in a hundred of the mass is kept for words never seen.
        num_bigrams, num_words = num_before.total(), unigrams.total()
        self._continuation = {w: 0.99 * n / num_bigrams for w, n in num_before.items()}
        self._unigram = {w: 0.99 * n / num_words for w, n in unigrams.items()}
        self._sorted = sorted(w for w in num_before if w != _END)
        self._cumulative = np.concatenate(
            [[0.0], np.cumsum([self._continuation[w] for w in self._sorted])]
        )
        self._chars, self._char_contexts, self._typical = _char_model(unigrams)
        self._mass_cache: dict[tuple[str, str], float] = {}
        self._follower_ranges: dict[str, tuple[list[str], np.ndarray]] = {}

    def is_known(self, word: str) -> bool:
        """Returns whether the word occurred at all."""
        return word in self._continuation

    def probability(self, word: str, before: str = _START) -> float:
        """Returns P(word | the word before); unseen words get at most 1e-6."""
        backed_off = self._continuation.get(word)
        if backed_off is None:
            backed_off = 1e-6 * min(1.0, math.exp(self.spelling(word)))
        counts = self._followers.get(before)
        if counts is None:
            return backed_off
        total = self._totals[before]
        seen = max(counts.get(word, 0) - _DISCOUNT, 0.0) / total
        return seen + _DISCOUNT * len(counts) / total * backed_off

    def unigram(self, word: str) -> float:
        """Returns P(word) regardless of context, 1e-6 if unseen."""
        return self._unigram.get(word, 1e-6)

    def completion_probability(self, word: str, before: str, typed: str) -> float:
        """Returns P(word | the word before, the word starts with `typed`)."""
        key = (before, typed)
        mass = self._mass_cache.get(key)
        if mass is None:
            mass = _mass_between(self._sorted, self._cumulative, typed)
            counts = self._followers.get(before)
            if counts is not None:
                if before not in self._follower_ranges:
                    words = sorted(w for w in counts if w != _END)
                    seen = np.cumsum([0.0, *(counts[w] - _DISCOUNT for w in words)])
                    self._follower_ranges[before] = words, seen
                seen = _mass_between(*self._follower_ranges[before], typed)
                mass = (seen + _DISCOUNT * len(counts) * mass) / self._totals[before]
            mass += 1e-5
            if len(self._mass_cache) < 1 << 20:
                self._mass_cache[key] = mass
        return min(1.0, self.probability(word, before) / mass)

    def spelling(self, word: str) -> float:
        """Returns the mean log-probability a character, relative to that of a typical word."""
        padded = f"^^^{word}$"
        total = 0.0
        for end in range(4, len(padded) + 1):
            gram = padded[end - 4 : end]
            total += math.log(
                (self._chars.get(gram, 0) + 0.02) / (self._char_contexts.get(gram[:3], 0) + 1.2)
            )
        return total / (len(padded) - 3) - self._typical


@dataclass(frozen=True, slots=True)
class WellFormedness:
    """The calibrated score of a string, in (0, 1); real queries get about 1, nonsense about 0."""

    model: BigramModel
    space: WordSpace
    id_of: dict[str, int]
    weights: np.ndarray  # float64 (F,)
    centre: float
    scale: float

    def score(self, texts: list[str]) -> np.ndarray:
        """Returns float64 (len(texts),) for normalised texts; an empty text gets 0."""
        features = _features(texts, self.model, self.space, self.id_of)
        logits = features @ self.weights
        scores = 1.0 / (1.0 + np.exp(-np.clip((logits - self.centre) / self.scale, -30, 30)))
        return scores * np.array([self._unseen_factor(t) for t in texts])

    def _unseen_factor(self, query: str) -> float:
        factor, word = (1.0 if query else 0.0), ""
        for word in query.split():
            if not self.model.is_known(word):
                factor *= UNSEEN * math.exp(min(0.0, self.model.spelling(word)))
        return factor * (DANGLING if word in _DANGLING_WORDS else 1.0)


def learn(
    model: BigramModel, space: WordSpace, id_of: dict[str, int], real: list[str], *, seed: int
) -> WellFormedness:
    """Fits the logistic regression on real queries that neither the bigram nor `space` saw."""
    rng = np.random.default_rng([seed, 3])
    if len(real) > 8000:
        real = [real[i] for i in rng.choice(len(real), 8000, replace=False)]
    vocabulary = [word for query in real for word in query.split()]
    nonsense = [_corrupted(query, real, vocabulary, rng) for query in real]
    features = _features([*real, *nonsense], model, space, id_of)
    labels = np.concatenate([np.ones(len(real)), np.zeros(len(nonsense))])
    weights = np.zeros(_NUM_FEATURES)
    for _ in range(15):  # iteratively reweighted least squares with a small ridge
        p = 1.0 / (1.0 + np.exp(-np.clip(features @ weights, -30, 30)))
        gradient = features.T @ (labels - p) - 0.5 * weights
        hessian = (features * (p * (1 - p))[:, None]).T @ features + 0.5 * np.eye(_NUM_FEATURES)
        weights = weights + np.linalg.solve(hessian, gradient)
    low, middle = np.quantile(features[: len(real)] @ weights, [0.2, 0.5])
    scale = max((middle - low) / math.log(0.95 / 0.05), 1e-3)
    return WellFormedness(model, space, id_of, weights, float(low), float(scale))


def _corrupted(query: str, real: list[str], vocabulary: list[str], rng: np.random.Generator) -> str:
    tokens = query.split()
    kind = int(rng.integers(8))
    if kind <= 1 or (kind == 2 and len(tokens) < 3):  # words at random
        tokens = [vocabulary[i] for i in rng.integers(len(vocabulary), size=max(2, len(tokens)))]
    elif kind == 2:
        tokens = [tokens[i] for i in rng.permutation(len(tokens))]
    elif kind == 3:  # one foreign word
        at = int(rng.integers(len(tokens) + 1))
        tokens.insert(at, vocabulary[int(rng.integers(len(vocabulary)))])
    elif kind == 4:
        tokens += real[int(rng.integers(len(real)))].split()
    elif kind == 5:
        at = int(rng.integers(len(tokens)))
        tokens.insert(at + int(rng.integers(2)), tokens[at])
    elif kind == 6:  # a misspelt word
        at = max(range(len(tokens)), key=lambda i: len(tokens[i]))
        letters = list(tokens[at])
        for _ in range(2):
            where = int(rng.integers(len(letters)))
            letters[where] = "abcdefghijklmnopqrstuvwxyz"[int(rng.integers(26))]
        tokens[at] = "".join(letters)
    else:  # stuffed with whatever follows from several queries
        tokens += [vocabulary[i] for i in rng.integers(len(vocabulary), size=4)]
    return " ".join(tokens)


def _features(
    texts: list[str], model: BigramModel, space: WordSpace, id_of: dict[str, int]
) -> np.ndarray:
    features = np.zeros((len(texts), _NUM_FEATURES))
    features[:, 0] = 1.0
    pair_slot: list[int] = []
    pair_a: list[int] = []
    pair_b: list[int] = []
    slot_row: list[int] = []
    for row, query in enumerate(texts):
        tokens = query.split()
        if not tokens:
            continue
        logs, lifts, before = [], [], _START
        for token in tokens:
            probability = model.probability(token, before)
            logs.append(math.log(probability))
            lifts.append(logs[-1] - math.log(model.unigram(token)))
            before = token
        end_lift = math.log(model.probability(_END, before)) - math.log(model.unigram(_END))
        stems = [text.stem(w) for w in tokens]
        content = text.content_stems(query)
        num_odd = sum(not (c.isalnum() or c in " '.&-") for c in query)
        features[row, 1:] = (
            sum(logs) / len(logs) / 4.0,
            max(min(logs), -16.0) / 4.0,
            sum(lifts) / len(lifts),
            max(min(lifts), -6.0) / 2.0,
            max(end_lift, -4.0) / 2.0,
            float(len(set(stems)) < len(stems)),
            max(0, len(tokens) - 5) / 2.0 + 2.0 * num_odd / len(query),
            0.0,
            0.0,
        )
        ids = [id_of[s] for s in content[:8] if s in id_of]
        if len(ids) < 2:
            features[row, 8:] = 0.6
            continue
        for a in ids:
            slot_row.append(row)
            for b in ids:
                if a != b:
                    pair_slot.append(len(slot_row) - 1)
                    pair_a.append(a)
                    pair_b.append(b)
    if pair_a:
        # Coherence: each content word's best association within the query; mean and minimum.
        a, b = np.array(pair_a), np.array(pair_b)
        strength = space.ppmi(a, b).astype(np.float64)
        cosine = np.einsum("ed,ed->e", space.vectors[a], space.vectors[b])
        strength = np.maximum(strength / (strength + 1.5), 0.5 * np.maximum(cosine, 0.0))
        best = np.zeros(len(slot_row))
        np.maximum.at(best, pair_slot, strength)
        rows = np.array(slot_row)
        num_slots = np.bincount(rows, minlength=len(texts))
        means = np.bincount(rows, weights=best, minlength=len(texts)) / np.maximum(num_slots, 1)
        weakest = np.ones(len(texts))
        np.minimum.at(weakest, rows, best)
        features[num_slots > 0, 8] = means[num_slots > 0]
        features[num_slots > 0, 9] = weakest[num_slots > 0]
    return features


def _mass_between(words: list[str], cumulative: np.ndarray, typed: str) -> float:
    """Returns the mass of the sorted words that start with `typed`."""
    low = bisect_left(words, typed)
    high = bisect_left(words, typed + "\U0010ffff")
    return float(cumulative[high] - cumulative[low])


def _char_model(unigrams: Counter[str]) -> tuple[dict[str, int], dict[str, int], float]:
    grams: Counter[str] = Counter()
    contexts: Counter[str] = Counter()
    for word in unigrams:
        if word == _END:
            continue
        padded = f"^^^{word}$"
        for end in range(4, len(padded) + 1):
            grams[padded[end - 4 : end]] += 1
            contexts[padded[end - 4 : end - 1]] += 1
    total = sum(n * math.log((n + 0.02) / (contexts[g[:3]] + 1.2)) for g, n in grams.items())
    return dict(grams), dict(contexts), total / max(grams.total(), 1)
