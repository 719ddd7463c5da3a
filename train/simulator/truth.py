"""The frozen truth of a simulated world: the attraction of any string after any query.

It scores what a model invents as well as what is logged, knows no log, and shares no model with
training. With intents from `intents`, well-formedness WF from `wellformed` and list effects from
`clicks`:

    attraction = A * WF(c) * (0.015 + 0.985 * match) * repeat * theme
                 * exp(0.30 * e_q - 0.045) * exp(0.20 * e_c - 0.02),   at most 0.7

- A: 0.45 for a suggestion, 0.42 for a completion, 0.45 for a clarification option.
- e_q is a hidden standard normal of (scenario, query or prefix), e_c one of the candidate. No
  feature reveals e_q; e_c also drives simulated popularity, so logs reveal it for seen queries.
- repeat = 0.15 if an earlier query of the session has the candidate's content words, else 1.
- theme = `1 + 0.4 * cos+(candidate, mean of the session's earlier queries)`, 1 without any.

`match` by scenario:

- *suggestion*: the mixture of moves in `intents`. A copy of the query, in any word order or number,
  adds nothing and drops nothing: its match is 0.
- *completion*: 0 attraction, without floor, unless the candidate extends the prefix (starts with
  it and is longer). Prefix and candidate are normalised; a trailing space of the prefix counts: it
  says that the last word is complete. Let w be the candidate's word at the place of the partial
  word t, v the word before, w2 the word after w, if any. `match = sqrt(P(w | v, w starts with t)) *
  P(w2 | w)^(1/4) * e * exp(0.25 * e_c)`, at most 1. If t is itself the whole word w, the next word
  takes the place of w, so that "red" and "red " agree on what follows. e is 0.5 if nothing follows
  w, 0.25 if only function words do, otherwise `extension` of the words that follow (compatible,
  desired, not too many).
- *clarification*: `0.9 * specialise + 0.25 * facet + 0.15 * parallel`: an option narrows the query
  down; a bare facet ("for women") is understood but worth less.

A clarification panel has two more effects on all its options: `0.85 + 0.35 * k`, k the mean over
pairs of options of `smooth(cos(added words); 0, 0.5)` (options of one facet go together), and
`1 + 0.25 * u`, u = 0 without a well-formed question, 0.5 with one, 1 if it also names a content
word of the query. Well-formed: 3 to 16 words, at most 120 characters, starts with an interrogative
or auxiliary verb, ends with a question mark, repeats no word but function words.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from train.simulator import clicks, text
from train.simulator.clicks import ClickModel
from train.simulator.intents import MAX_WORDS, Intents
from train.simulator.wellformed import WellFormedness

Scenario = Literal["suggestion", "completion", "clarification"]
SCENARIOS: tuple[Scenario, ...] = ("suggestion", "completion", "clarification")
FORMULA_VERSION = 1  # part of the fingerprint: raise it with any change of a formula or constant

_CEILING = {"suggestion": 0.45, "completion": 0.42, "clarification": 0.45}
_FLOOR = 0.015
_CEILING_OF_ALL = 0.7
_QUESTION_START_LIST = (
    "are can could did do does for how in is on should to what when where which who whom whose why "
    "will would"
)
_QUESTION_STARTS = frozenset(_QUESTION_START_LIST.split())


@dataclass(frozen=True, slots=True)
class Truth:
    """One world's truth. Deterministic; scores are cached, so an instance is not thread-safe."""

    intents: Intents
    wellformed: WellFormedness
    seed: int
    click_model: ClickModel
    definition_sha256: str  # of the real queries, the word space and all drawn arrays
    _wellformedness: dict[str, float] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Returns the sha256 of everything that defines this truth."""
        definition = {
            "formula_version": FORMULA_VERSION,
            "seed": self.seed,
            "click_model": self.click_model,
            "definition_sha256": self.definition_sha256,
        }
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()

    def attraction(
        self,
        scenario: str,
        query: str,
        candidates: Sequence[str],
        *,
        session_queries: Sequence[str] = (),
    ) -> np.ndarray:
        """Returns P(click | examined, alone), float64 (len(candidates),), in [0, 0.7].

        Args:
            scenario: one of `SCENARIOS`.
            query: the query, or for a completion the typed prefix; a trailing space counts.
            candidates: any strings.
            session_queries: earlier queries of the session, oldest first.

        Raises:
            ValueError: if the scenario is unknown.
        """
        sessions = [tuple(session_queries)] * len(candidates)
        return self.attraction_pairs(
            scenario, [query] * len(candidates), list(candidates), sessions
        )

    def attraction_pairs(
        self,
        scenario: str,
        queries: Sequence[str],
        candidates: Sequence[str],
        sessions: Sequence[Sequence[str]] | None = None,
    ) -> np.ndarray:
        """Returns `attraction` of P (query, candidate) pairs at once, float64 (P,)."""
        _check_scenario(scenario)
        if not len(queries) == len(candidates):
            raise ValueError(f"{len(queries)} queries for {len(candidates)} candidates")
        if not candidates:
            return np.zeros(0)
        shown = [text.normalised(candidate) for candidate in candidates]
        asked = [_normalised_prefix(q) if scenario == "completion" else text.normalised(q)
                 for q in queries]  # fmt: skip
        match = (
            self._completion_match(asked, shown)
            if scenario == "completion"
            else self._move_match(scenario, asked, shown)
        )
        readable = self.wellformedness(shown)
        ceiling = _CEILING[scenario]
        query_effect = self._effects([q.rstrip() for q in asked], f"query:{scenario}", 0.30)
        candidate_effect = self._effects(shown, "candidate", 0.20)
        value = ceiling * readable * np.where(match < 0, 0.0, _FLOOR + (1 - _FLOOR) * match)
        value = value * query_effect * candidate_effect
        if sessions is not None and any(sessions):
            value = value * self._session_factor(shown, sessions)
        return np.clip(value, 0.0, _CEILING_OF_ALL)

    def wellformedness(self, texts: Sequence[str]) -> np.ndarray:
        """Returns how much each text reads like a real query, float64 (len(texts),) in [0, 1]."""
        texts = [text.normalised(t) for t in texts]
        missing = [t for t in dict.fromkeys(texts) if t not in self._wellformedness]
        if missing:
            if len(self._wellformedness) > 2_000_000:
                self._wellformedness.clear()
                missing = list(dict.fromkeys(texts))
            scores = self.wellformed.score(missing).tolist()
            self._wellformedness.update(zip(missing, scores, strict=True))
        return np.array([self._wellformedness[t] for t in texts])

    def popularity(self, texts: Sequence[str]) -> np.ndarray:
        """Returns simulated log-popularity scores, float64: no source carries real ones.

        `0.8 * e_c + 0.4 * mean appeal-free log frequency of the words - 0.25 * (words - 2)`.
        """
        normal = [text.normalised(t) for t in texts]
        model = self.wellformed.model
        frequency = np.array(
            [np.mean([np.log(model.unigram(w)) for w in t.split()] or [-14.0]) for t in normal]
        )
        length = np.array([len(t.split()) for t in normal])
        hidden = text.hidden_normals(normal, self.seed, "candidate")
        return 0.8 * hidden + 0.4 * (frequency + 9.0) / 2.0 - 0.25 * (length - 2)

    def click_probabilities(
        self,
        scenario: str,
        query: str,
        listing: Sequence[str],
        *,
        session_queries: Sequence[str] = (),
        auxiliary_text: str = "",
    ) -> np.ndarray:
        """Returns P(click) of each item shown at its place, float64 (len(listing),)."""
        return self.list_click_probabilities(
            scenario, [query], [listing], sessions=[session_queries], questions=[auxiliary_text]
        )[0]

    def list_click_probabilities(
        self,
        scenario: str,
        queries: Sequence[str],
        listings: Sequence[Sequence[str]],
        *,
        sessions: Sequence[Sequence[str]] | None = None,
        questions: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """Returns `click_probabilities` of R lists at once, one float64 array a list."""
        attraction_RN = self.attraction_after_fatigue(
            scenario, queries, listings, sessions=sessions, questions=questions
        )
        clicked_RN = clicks.click_probabilities(attraction_RN, scenario, self.click_model)
        return [row[: len(listing)] for row, listing in zip(clicked_RN, listings, strict=True)]

    def attraction_after_fatigue(
        self,
        scenario: str,
        queries: Sequence[str],
        listings: Sequence[Sequence[str]],
        *,
        sessions: Sequence[Sequence[str]] | None = None,
        questions: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Returns P(click | examined) within R lists, float64 (R, longest list), 0 where empty."""
        _check_scenario(scenario)
        num_lists, width = len(listings), max(map(len, listings), default=0)
        attraction_RN = np.zeros((num_lists, width))
        if not width:
            return attraction_RN
        row_of = [row for row, listing in enumerate(listings) for _ in listing]
        column_of = [column for listing in listings for column in range(len(listing))]
        flat = [candidate for listing in listings for candidate in listing]
        attraction_RN[row_of, column_of] = self.attraction_pairs(
            scenario,
            [queries[row] for row in row_of],
            flat,
            None if sessions is None else [sessions[row] for row in row_of],
        )
        asked = [text.normalised(query) for query in queries]
        shown = [text.normalised(candidate) for candidate in flat]
        distinct = list(dict.fromkeys([*asked, *shown]))
        at = {t: index for index, t in enumerate(distinct)}
        ids = self.intents.table(distinct).ids
        # Texts without content words are compared by identity: a word id of their own.
        empty = np.flatnonzero(ids[:, 0] < 0)
        ids[empty, 0] = int(ids.max(initial=0)) + 1 + np.arange(len(empty))
        words_RNL = np.full((num_lists, width, MAX_WORDS), -1, dtype=np.int64)
        words_RNL[row_of, column_of] = ids[[at[t] for t in shown]]
        context_RL = ids[[at[t] for t in asked]]
        attraction_RN *= clicks.freshness(words_RNL, context_RL)
        if scenario == "clarification":
            attraction_RN *= self._facet_factor(words_RNL, context_RL)[:, None]
            if questions is not None:
                quality = [question_quality(q, a) for q, a in zip(questions, asked, strict=True)]
                attraction_RN *= 1 + 0.25 * np.array(quality)[:, None]
        return np.clip(attraction_RN, 0.0, _CEILING_OF_ALL)

    def _effects(self, texts: list[str], salt: str, scale: float) -> np.ndarray:
        normals = text.hidden_normals(texts, self.seed, salt)
        return np.exp(scale * normals - scale**2 / 2)

    def _move_match(self, scenario: str, asked: list[str], shown: list[str]) -> np.ndarray:
        distinct = list(dict.fromkeys([*asked, *shown]))
        at = {t: index for index, t in enumerate(distinct)}
        q = np.array([at[t] for t in asked])
        c = np.array([at[t] for t in shown])
        moves = self.intents.moves(self.intents.table(distinct), q, c)
        if scenario == "suggestion":
            return moves.match
        return np.minimum(0.9 * moves.specialise + 0.25 * moves.facet + 0.15 * moves.parallel, 1.0)

    def _completion_match(self, prefixes: list[str], shown: list[str]) -> np.ndarray:
        """Returns match float64 (P,), -1 where the candidate does not extend the prefix."""
        probability = np.full(len(shown), -1.0)
        anchors = [""] * len(shown)
        has_more = np.zeros(len(shown), dtype=bool)
        for i, (prefix, candidate) in enumerate(zip(prefixes, shown, strict=True)):
            if not prefix.strip() or not candidate.startswith(prefix) or candidate == prefix:
                continue
            tokens = candidate.split()
            place = prefix.count(" ")
            typed = prefix.rsplit(" ", 1)[-1]
            if typed and tokens[place] == typed and place + 1 < len(tokens):
                place, typed = place + 1, ""
            before = tokens[place - 1] if place else "<s>"
            probability[i] = self.wellformed.model.completion_probability(
                tokens[place], before, typed
            )
            if place + 1 < len(tokens):
                following = self.wellformed.model.probability(tokens[place + 1], tokens[place])
                probability[i] *= math.sqrt(following)
            is_new_word = not typed
            anchors[i] = " ".join(tokens[: place if is_new_word else place + 1])
            has_more[i] = is_new_word or place + 1 < len(tokens)
        rows = np.flatnonzero((probability >= 0) & has_more)
        extension = np.full(len(shown), 0.5)
        if len(rows):
            distinct = list(dict.fromkeys([*(anchors[i] for i in rows), *(shown[i] for i in rows)]))
            at = {t: index for index, t in enumerate(distinct)}
            table = self.intents.table(distinct)
            q = np.array([at[anchors[i]] for i in rows])
            c = np.array([at[shown[i]] for i in rows])
            moves = self.intents.moves(table, q, c)
            # Only function words follow: nothing to desire, half as good as the plain word.
            is_bare = ~((table.ids[c] >= 0).sum(axis=1) > (table.ids[q] >= 0).sum(axis=1))
            extension[rows] = np.where(is_bare, 0.25, moves.extension)
        effect = np.exp(0.25 * text.hidden_normals(shown, self.seed, "candidate"))
        match = np.sqrt(np.maximum(probability, 0.0)) * extension * effect
        return np.where(probability < 0, -1.0, np.minimum(match, 1.0))

    def _session_factor(self, shown: list[str], sessions: Sequence[Sequence[str]]) -> np.ndarray:
        past = [tuple(text.normalised(q) for q in session) for session in sessions]
        distinct = list(dict.fromkeys([*shown, *(q for queries in set(past) for q in queries)]))
        at = {t: index for index, t in enumerate(distinct)}
        vectors = self.intents.table(distinct).vectors
        theme_of: dict[tuple[str, ...], tuple[np.ndarray, set[frozenset[str]]]] = {}
        factor = np.ones(len(shown))
        for i, (candidate, queries) in enumerate(zip(shown, past, strict=True)):
            if not queries:
                continue
            if queries not in theme_of:
                mean = vectors[[at[q] for q in queries]].mean(axis=0)
                mean = mean / max(float(np.linalg.norm(mean)), 1e-6)
                theme_of[queries] = mean, {frozenset(text.content_stems(q)) for q in queries}
            mean, seen = theme_of[queries]
            factor[i] = 1 + 0.4 * max(0.0, float(vectors[at[candidate]] @ mean))
            if frozenset(text.content_stems(candidate)) in seen:
                factor[i] *= 0.15
        return factor

    def _facet_factor(self, words_RNL: np.ndarray, context_RL: np.ndarray) -> np.ndarray:
        space = self.intents.space
        known = len(space.stems)
        is_added = (words_RNL >= 0) & (words_RNL < known)
        is_added &= ~(words_RNL[:, :, :, None] == context_RL[:, None, None, :]).any(axis=3)
        rows = space.vectors[np.where(is_added, words_RNL, known)].sum(axis=2)
        rows = rows / np.maximum(np.linalg.norm(rows, axis=2, keepdims=True), 1e-6)
        cosine = np.einsum("rnd,rmd->rnm", rows, rows).astype(np.float64)
        step = np.clip(cosine / 0.5, 0.0, 1.0)
        step = step * step * (3 - 2 * step)
        is_item = (words_RNL >= 0).any(axis=2)
        num_items = is_item.sum(axis=1)
        diagonal = np.einsum("rnn->r", step)
        pairs = np.maximum(num_items * (num_items - 1), 1)
        return 0.85 + 0.35 * (step.sum(axis=(1, 2)) - diagonal) / pairs


def question_quality(question: str, query: str) -> float:
    """Returns u of the module's text: 0, 0.5 or 1."""
    question = text.normalised(question)
    if not question.endswith("?") or len(question) > 120:
        return 0.0
    tokens = text.words(question)
    content = [w for w in tokens if w not in text.FUNCTION_WORDS]
    if not 3 <= len(tokens) <= 16 or tokens[0] not in _QUESTION_STARTS:
        return 0.0
    if len(set(content)) < len(content):
        return 0.0
    names_query = set(text.content_stems(question)) & set(text.content_stems(query))
    return 1.0 if names_query else 0.5


def _normalised_prefix(prefix: str) -> str:
    core = text.normalised(prefix)
    return core + " " if core and prefix[-1].isspace() else core


def _check_scenario(scenario: str) -> None:
    if scenario not in SCENARIOS:
        raise ValueError(f"unknown scenario {scenario!r}: expected one of {', '.join(SCENARIOS)}")
