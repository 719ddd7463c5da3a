"""What people want next after a query: the hidden half of the truth. It knows no list and no click.

A text is its set of content stems. For a query q and a candidate c, with weights idf(word):

- shared S, added A (in c only), dropped D (in q only), coverage `cov = idf(S) / idf(q)`
- association of an added word a with a word s: `r(a, s) = max(ppmi / (ppmi + 1.5), cos+ / 2)`;
  with a set: half the best, half the idf-weighted mean; 0.25 if the words of the set are unknown,
  0 if a is. `compat = min over a of sigmoid((r(a, S or q) - 0.41) / 0.06)`
- desire, the part that only behaviour reveals: `sigmoid(mean over a of
  (1.5 * sqrt(D) * <R v_q, v_a> + 0.9 * h_a + 0.5 * z_a) - 0.8)`, where R is a seeded random
  rotation of the word space, h_a a seeded normal of the word and z_a its standardised log
  frequency. Words near in meaning are wanted alike, after queries near in meaning alike.

Four moves, each in [0, 1] (`smooth(x; lo, hi)` is the cubic step, `size(A)` falls from 1 at two
words to 0.05 at five):

- specialise: `smooth(cov; .6, .95) * compat * desire * size`
- parallel: `tent(cov; .1, .45, .85) * smooth(cos(A, D); .15, .6) * compat * desire * size`
- related: `smooth(cos(q, c); .4, .8) * (1 - smooth(cov; .1, .5)) * desire * size`
- generalise: `tent(cov; .3, .65, .98) / 2` if nothing is added

`match = min(1, sum of w_k(q) * move_k)`, where `w_k` depends smoothly on the query:
`softmax(base + 1.2 * W v_q)`, divided by its maximum, W seeded. A query without known words gets
the base weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from train.simulator import text
from train.simulator.vectors import DIM, WordSpace

MAX_WORDS = 8  # content words of a text that count; real queries have 3 at the median

# P pairs of texts, L words of a text, T distinct texts, D vector dim
_BASE = np.array([1.0, 0.5, -0.1, -0.8])  # log-weights of specialise, parallel, related, generalise


class TextTable(NamedTuple):
    """Distinct texts as word ids.

    Attributes:
        ids: int64 (T, L), -1 where there is no word; an id above V stands for an unknown word.
        vectors: float32 (T, D), unit length or 0.
    """

    ids: np.ndarray
    vectors: np.ndarray


class Moves(NamedTuple):
    """Parts of the match of P pairs, each float64 (P,) in [0, 1]."""

    match: np.ndarray
    specialise: np.ndarray
    parallel: np.ndarray
    related: np.ndarray
    generalise: np.ndarray
    facet: np.ndarray  # a bare specialisation: the added words without the query's
    extension: np.ndarray  # compat * (0.3 + 0.7 * desire) * size of the added words


@dataclass(frozen=True, slots=True)
class Intents:
    """The frozen intents of one world.

    Attributes:
        space: the word space of real queries.
        id_of: id of each known stem.
        rotation: float32 (D, D), orthogonal.
        appeal: float64 (V+1,), `0.9 * h_a + 0.5 * z_a` of each known word.
        move_weights: float64 (4, D), W.
    """

    space: WordSpace
    id_of: dict[str, int]
    rotation: np.ndarray
    appeal: np.ndarray
    move_weights: np.ndarray

    def table(self, texts: list[str]) -> TextTable:
        """Returns normalised texts as ids; unknown words get ids of their own within the call."""
        known = len(self.space.stems)
        unknown: dict[str, int] = {}
        ids = np.full((len(texts), MAX_WORDS), -1, dtype=np.int64)
        for row, query in enumerate(texts):
            for column, stem in enumerate(text.content_stems(query)[:MAX_WORDS]):
                index = self.id_of.get(stem)
                if index is None:
                    index = unknown.setdefault(stem, known + len(unknown))
                ids[row, column] = index
        capped = np.minimum(np.where(ids < 0, known, ids), known)
        weights = np.where((ids >= 0) & (ids < known), self.space.idf[capped], 0.0)
        sums = np.einsum("tl,tld->td", weights.astype(np.float32), self.space.vectors[capped])
        return TextTable(ids, _unit(sums))

    def moves(self, table: TextTable, q: np.ndarray, c: np.ndarray) -> Moves:
        """Scores pairs (row q of the table, row c of the table), int64 (P,) each."""
        parts = [
            self._moves(table, q[start : start + 20_000], c[start : start + 20_000])
            for start in range(0, max(len(q), 1), 20_000)
        ]
        return Moves(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _moves(self, table: TextTable, q: np.ndarray, c: np.ndarray) -> Moves:
        space, known = self.space, len(self.space.stems)
        q_PL, c_PL = table.ids[q], table.ids[c]
        is_q_PL, is_c_PL = q_PL >= 0, c_PL >= 0
        equal_PLL = (q_PL[:, :, None] == c_PL[:, None, :]) & is_q_PL[:, :, None]
        shared_PL = equal_PLL.any(axis=2)
        added_PL = is_c_PL & ~equal_PLL.any(axis=1)
        dropped_PL = is_q_PL & ~shared_PL
        capped_q_PL = np.where(is_q_PL, np.minimum(q_PL, known), known)
        capped_c_PL = np.where(is_c_PL, np.minimum(c_PL, known), known)
        idf_q_PL = np.where(is_q_PL, space.idf[capped_q_PL], 0.0)
        total_P = idf_q_PL.sum(axis=1)
        coverage_P = np.where(shared_PL, idf_q_PL, 0.0).sum(axis=1) / np.maximum(total_P, 1e-9)
        num_added_P, num_dropped_P = added_PL.sum(axis=1), dropped_PL.sum(axis=1)

        anchor_PL = np.where(shared_PL.any(axis=1)[:, None], shared_PL, is_q_PL)
        compat_P = self._compatibility(
            capped_c_PL, added_PL, capped_q_PL, anchor_PL, num_added_P > 0
        )
        v_q_PD, v_c_PD = table.vectors[q], table.vectors[c]
        vectors_PLD = space.vectors[capped_c_PL]
        rotated_PD = v_q_PD @ self.rotation.T
        taste_PL = 1.5 * np.sqrt(DIM) * np.einsum("pd,pld->pl", rotated_PD, vectors_PLD)
        taste_PL = np.where(added_PL, taste_PL + self.appeal[capped_c_PL], 0.0)
        desire_P = _sigmoid(taste_PL.sum(axis=1) / np.maximum(num_added_P, 1) - 0.8)
        size_P = np.array([0.0, 1.0, 1.0, 0.6, 0.2, 0.05])[np.minimum(num_added_P, 5)]

        mean_added_PD = _unit(np.einsum("pl,pld->pd", added_PL.astype(np.float32), vectors_PLD))
        mean_dropped_PD = _unit(
            np.einsum("pl,pld->pd", dropped_PL.astype(np.float32), space.vectors[capped_q_PL])
        )
        swap_P = np.einsum("pd,pd->p", mean_added_PD, mean_dropped_PD).astype(np.float64)
        cosine_P = np.einsum("pd,pd->p", v_q_PD, v_c_PD).astype(np.float64)
        wanted_P = desire_P * size_P

        specialise_P = _smooth(coverage_P, 0.6, 0.95) * compat_P * wanted_P
        parallel_P = (
            _tent(coverage_P, 0.1, 0.45, 0.85) * _smooth(swap_P, 0.15, 0.6) * compat_P * wanted_P
        )
        related_P = _smooth(cosine_P, 0.4, 0.8) * (1 - _smooth(coverage_P, 0.1, 0.5)) * wanted_P
        is_shorter_P = (num_added_P == 0) & (num_dropped_P > 0)
        generalise_P = is_shorter_P * _tent(coverage_P, 0.3, 0.65, 0.98) / 2
        logits_PK = _BASE + 1.2 * v_q_PD @ self.move_weights.T
        weights_PK = np.exp(logits_PK - logits_PK.max(axis=1, keepdims=True))
        match_P = (
            weights_PK[:, 0] * specialise_P
            + weights_PK[:, 1] * parallel_P
            + weights_PK[:, 2] * related_P
            + weights_PK[:, 3] * generalise_P
        )
        return Moves(
            match=np.minimum(match_P, 1.0),
            specialise=specialise_P,
            parallel=parallel_P,
            related=related_P,
            generalise=generalise_P,
            facet=(coverage_P == 0) * compat_P * wanted_P,
            extension=compat_P * (0.3 + 0.7 * desire_P) * size_P,
        )

    def _compatibility(
        self,
        c_PL: np.ndarray,
        added_PL: np.ndarray,
        q_PL: np.ndarray,
        anchor_PL: np.ndarray,
        has_added_P: np.ndarray,
    ) -> np.ndarray:
        # Only pairs (added word, anchor word) that exist are looked up: a few of the 64 a row.
        space, known = self.space, len(self.space.stems)
        usable_PL = anchor_PL & (q_PL < known)
        row, a, s = np.nonzero(added_PL[:, :, None] & usable_PL[:, None, :])
        word_a, word_s = c_PL[row, a], q_PL[row, s]
        ppmi = space.ppmi(word_a, word_s).astype(np.float64)
        cosine = np.einsum("ed,ed->e", space.vectors[word_a], space.vectors[word_s])
        strength = np.maximum(ppmi / (ppmi + 1.5), np.maximum(cosine, 0.0) / 2)
        num_rows, num_columns = c_PL.shape
        slot = row * num_columns + a
        num_slots = num_rows * num_columns
        idf = space.idf[word_s]
        mean = np.bincount(slot, idf * strength, num_slots) / np.maximum(
            np.bincount(slot, idf, num_slots), 1e-9
        )
        best = np.zeros(num_slots)
        np.maximum.at(best, slot, strength)
        relation_PL = ((best + mean) / 2).reshape(num_rows, num_columns)
        relation_PL = np.where(usable_PL.any(axis=1, keepdims=True), relation_PL, 0.25)
        relation_PL = np.where(c_PL < known, relation_PL, 0.0)
        gate_PL = np.where(added_PL, _sigmoid((relation_PL - 0.41) / 0.06), 1.0)
        return np.where(has_added_P, gate_PL.min(axis=1), 0.0)


def draw(space: WordSpace, word_counts: np.ndarray, *, seed: int) -> Intents:
    """Draws the hidden intents of a world.

    Args:
        space: word space of V stems.
        word_counts: float64 (V,), number of real queries that hold each stem.
        seed: of the world.
    """
    rng = np.random.default_rng([seed, 4])
    rotation, triangular = np.linalg.qr(rng.standard_normal((DIM, DIM)))
    rotation = rotation * np.sign(np.diag(triangular))
    log_counts = np.log(word_counts)
    frequency = (log_counts - log_counts.mean()) / max(float(log_counts.std()), 1e-9)
    appeal = 0.9 * text.hidden_normals(space.stems, seed, "appeal") + 0.5 * frequency
    return Intents(
        space=space,
        id_of={stem: index for index, stem in enumerate(space.stems)},
        rotation=rotation.astype(np.float32),
        appeal=np.append(appeal, -2.0),
        move_weights=rng.standard_normal((4, DIM)),
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(lengths > 1e-6, rows / np.maximum(lengths, 1e-6), 0).astype(np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -30, 30)))


def _smooth(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _tent(x: np.ndarray, low: float, top: float, high: float) -> np.ndarray:
    return np.clip(np.minimum((x - low) / (top - low), (high - x) / (high - top)), 0.0, 1.0)
