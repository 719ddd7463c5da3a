"""How a shown list becomes clicks: examination, fatigue, and two click models. It knows no query.

Position-based (`pbm`): `P(click at i) = gamma_i * a_i`, clicks independent, `gamma_1 = 1`.
Cascade (`cascade`, a dependent-click model): the user reads from the top; at each item clicks
with probability a_i and goes on with 0.92 after no click, 0.35 after one.

Fatigue, in both: near-duplicates share attraction. With `sim_ij` in [0, 1] the weighted Jaccard
similarity of content words (words of the query or prefix count 0.3), stepped smoothly from 0.35
to 0.9, an item keeps `prod over j above i of (1 - sim_ij)` of its attraction.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

ClickModel = Literal["pbm", "cascade"]

# gamma_p = p ** -eta: steep for a drop-down list, flat for a row of options.
EXAMINATION_POWER = {"suggestion": 0.6, "completion": 0.75, "clarification": 0.3}
GO_ON, GO_ON_AFTER_CLICK = 0.92, 0.35

# R lists, N positions, L words


def examination(scenario: str, num_positions: int) -> np.ndarray:
    """Returns gamma float64 (num_positions,) of the position-based model, gamma[0] = 1."""
    return np.arange(1, num_positions + 1, dtype=np.float64) ** -EXAMINATION_POWER[scenario]


def freshness(words_RNL: np.ndarray, context_RK: np.ndarray) -> np.ndarray:
    """Returns the share of attraction that each position keeps, float64 (R, N).

    Args:
        words_RNL: word ids of the listed texts, distinct in a text, -1 where there is none. A
            row of -1 is an empty place: it neither shares nor takes.
        context_RK: word ids of the query or prefix, -1 where there is none.
    """
    is_word_RNL = words_RNL >= 0
    in_context_RNL = (words_RNL[:, :, :, None] == context_RK[:, None, None, :]).any(axis=3)
    weight_RNL = np.where(is_word_RNL, np.where(in_context_RNL, 0.3, 1.0), 0.0)
    num_lists, num_positions, _ = words_RNL.shape
    totals_RN = weight_RNL.sum(axis=2)
    kept_RN = np.ones((num_lists, num_positions))
    for i in range(1, num_positions):
        for j in range(i):
            equal_RLL = words_RNL[:, i, :, None] == words_RNL[:, j, None, :]
            common_R = (equal_RLL.any(axis=2) * weight_RNL[:, i]).sum(axis=1)
            union_R = totals_RN[:, i] + totals_RN[:, j] - common_R
            similarity_R = np.where(union_R > 0, common_R / np.maximum(union_R, 1e-9), 0.0)
            step_R = np.clip((similarity_R - 0.35) / 0.55, 0.0, 1.0)
            kept_RN[:, i] *= 1.0 - step_R * step_R * (3 - 2 * step_R)
    return kept_RN


def click_probabilities(
    attraction_RN: np.ndarray, scenario: str, click_model: ClickModel
) -> np.ndarray:
    """Returns P(click) at each position, float64 (R, N), from attraction after fatigue."""
    if click_model == "pbm":
        return attraction_RN * examination(scenario, attraction_RN.shape[1])
    clicks_RN = np.empty_like(attraction_RN)
    reached_R = np.ones(attraction_RN.shape[0])
    for i in range(attraction_RN.shape[1]):
        clicks_RN[:, i] = reached_R * attraction_RN[:, i]
        reached_R = reached_R * (
            attraction_RN[:, i] * GO_ON_AFTER_CLICK + (1 - attraction_RN[:, i]) * GO_ON
        )
    return clicks_RN


def draw(
    attraction_RN: np.ndarray, scenario: str, click_model: ClickModel, rng: np.random.Generator
) -> np.ndarray:
    """Samples clicks, bool (R, N), whose probabilities are those of `click_probabilities`."""
    uniform_RN = rng.random(attraction_RN.shape)
    if click_model == "pbm":
        return uniform_RN < attraction_RN * examination(scenario, attraction_RN.shape[1])
    clicked_RN = np.zeros(attraction_RN.shape, dtype=bool)
    is_reading_R = np.ones(attraction_RN.shape[0], dtype=bool)
    for i in range(attraction_RN.shape[1]):
        clicked_RN[:, i] = is_reading_R & (uniform_RN[:, i] < attraction_RN[:, i])
        go_on_R = np.where(clicked_RN[:, i], GO_ON_AFTER_CLICK, GO_ON)
        is_reading_R &= rng.random(len(is_reading_R)) < go_on_R
    return clicked_RN
