"""Ranking: from click logits to an order, and from an order to suggestions with probabilities.

Knows nothing of where candidates or logits come from.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.answering.answer import Question, Suggestion
from engine.answering.candidates import Candidate
from engine.config import RankingConfig
from engine.execution.models import Floats
from engine.formats.manifest import ClickModelSpec, ScenarioSpec
from engine.formats.words import words_of

PRIOR_P_SEEN = 0.1  # p(click | seen) claimed where nothing scores candidates
_SIMILAR = 0.5  # similarity above which two suggestions begin to say the same
QUERY_WORD_WEIGHT = 0.25  # words of the query say little about how two suggestions differ
_LOG_SHARE = 0.8  # of the likelihood of a completion, the rest is the generator's
_UNKNOWN = 0.001  # likelihood of a completion that neither of them knows


def ranked(
    question: Question,
    candidates: Sequence[Candidate],
    p_seen_C: Floats,
    *,
    is_scored: bool,
    is_best_first: bool,
    num_searches: float | None,
    config: RankingConfig,
    randomness: random.Random,
) -> tuple[Suggestion, ...]:
    """Returns the best candidates as suggestions, best first.

    Args:
        question: How many are wanted, and for what.
        candidates: In the order of the prior.
        p_seen_C: p(click | seen) of the first candidates.
        is_scored: Whether a model gave it; else completions go by how probable they are, and other
            candidates stay in their order.
        is_best_first: Whether the generator writes its most probable text first.
        num_searches: Of queries that begin as the question does, for a completion whose generator,
            if there is one, says how probable its texts are; else None.
        config: What else counts, and exploration.
        randomness: Of exploration.
    """
    likelihood_C = None
    if num_searches is not None:
        likelihood_C = completion_likelihoods(candidates, num_searches)
    if is_scored:
        scored = candidates[: len(p_seen_C)]
        if likelihood_C is None:
            preference_C = _preference(candidates, is_best_first, config)
        else:
            preference_C = np.power(likelihood_C, config.completion_weight, dtype=np.float32)
        order = diverse_order(
            p_seen_C * preference_C[: len(scored)],
            [c.text for c in scored],
            question.query,
            diversity=config.diversity,
            k=question.num_suggestions,
        )
        # Candidates beyond those that were scored only fill up.
        order += range(len(scored), len(candidates))
    elif likelihood_C is not None:
        order = np.argsort(-likelihood_C, kind="stable").tolist()
    else:
        order = list(range(len(candidates)))
    order = order[: question.num_suggestions]
    places, propensities = explored(len(order), config.exploration_rate, randomness)
    p_other = float(p_seen_C.min(initial=PRIOR_P_SEEN))  # of candidates that were not scored
    suggestions: list[Suggestion] = []
    for position, (place, propensity) in enumerate(zip(places, propensities, strict=True), 1):
        chosen = order[place]
        p_seen = float(p_seen_C[chosen]) if chosen < len(p_seen_C) else p_other
        candidate = candidates[chosen]
        p_click = click_probability(p_seen, question.scenario, position)
        suggestions.append(Suggestion(candidate.text, p_click, candidate.source, propensity))
    return tuple(suggestions)


def _preference(
    candidates: Sequence[Candidate], is_best_first: bool, config: RankingConfig
) -> Floats:
    """Returns what candidates compete by beside their click probability, float32 (C)."""
    searches_C = np.array([c.popularity for c in candidates], np.float32)
    preference_C = np.power(1 + searches_C, config.popularity_weight, dtype=np.float32)
    if is_best_first:
        preference_C *= trust([c.place for c in candidates], config.generator_weight)
    return preference_C


def completion_likelihoods(candidates: Sequence[Candidate], num_searches: float) -> Floats:
    """Returns how probable it is that each candidate is what is being typed, float32 (C).

    The log and the generator each have a distribution of what follows the prefix; theirs are mixed
    (.8 and .2). A text that the generator cut, or wrote in a further search, counts as the least
    probable of the others, and as no more than what these leave; one that neither knows has a
    thousandth.

    Args:
        candidates: Completions of one prefix.
        num_searches: Of all known queries with that prefix.
    """
    written = [math.exp(c.logprob) for c in candidates if c.logprob is not None]
    least = max(0.0, min([1 - sum(written), *written])) if written else 0.0
    likelihoods: list[float] = []
    for candidate in candidates:
        searched = candidate.popularity / max(num_searches, 1.0)
        if candidate.logprob is not None:
            generated = math.exp(candidate.logprob)
        else:
            generated = 0.0 if candidate.place is None else least
        likelihoods.append(_LOG_SHARE * searched + (1 - _LOG_SHARE) * generated + _UNKNOWN)
    return np.array(likelihoods, np.float32)


def trust(places: Sequence[int | None], weight: float) -> Floats:
    """Returns what the generator's order makes of each score: (1 + place) ** -weight, (C).

    A click model overrates texts unlike those that it learnt from, and what is picked is what it
    overrates most. What the generator finds probable is a second opinion.

    Args:
        places: Among the texts that the generator wrote, from 0, the most probable first; None for
            a candidate that it did not write, which would have come after them.
        weight: Of that opinion; 0: none.
    """
    num_written = 1 + max((p for p in places if p is not None), default=-1)
    place_C = np.array([num_written if p is None else p for p in places], np.float32)
    return (1 + place_C) ** np.float32(-weight)


def seen_probabilities(
    spec: ClickModelSpec, scenario: str, logits_C: Floats, is_known_C: NDArray[np.bool_]
) -> Floats:
    """Returns p(click | seen) of each candidate: sigmoid(slope * logit + intercept).

    Args:
        spec: Holds slopes and intercepts; 1 and 0 for a scenario it lacks.
        scenario: Name of the panel.
        logits_C: Of the click model.
        is_known_C: Which candidates the log knows; the others are calibrated apart.
    """
    known = spec.calibration.get(scenario, (1.0, 0.0))
    unknown = spec.unknown_calibration.get(scenario, known)
    slope_C, intercept_C = np.where(is_known_C[:, None], known, unknown).T
    return (1 / (1 + np.exp(-(slope_C * logits_C + intercept_C)))).astype(np.float32)


def diverse_order(
    scores_C: Floats, texts: Sequence[str], query: str, *, diversity: float, k: int
) -> list[int]:
    """Returns up to k places of candidates, picked one by one by score less repetition.

    A candidate loses `diversity` of its score if it says the same as one already picked, less if
    it is only similar, nothing below a similarity of one half (Jaccard of words, those of the query
    weighted by `QUERY_WORD_WEIGHT`). Ties go to the earlier candidate.
    """
    num_picks = min(k, len(texts))
    if diversity == 0:
        return np.argsort(-scores_C, kind="stable")[:num_picks].tolist()
    # A text is a set of words, one bit each: faster than arrays for so few texts.
    bits: dict[str, int] = {}
    asked = _mask(query, bits)
    masks = [_mask(text, bits) for text in texts]
    weights = [_weight(mask, asked) for mask in masks]
    scores: list[float] = scores_C.tolist()
    adjusted, repetitions = scores.copy(), [0.0] * len(scores)
    left, picks = list(range(len(scores))), list[int]()
    for _ in range(num_picks):
        pick = max(left, key=adjusted.__getitem__)
        picks.append(pick)
        left.remove(pick)
        for other in left:
            if common := masks[pick] & masks[other]:
                shared = _weight(common, asked)
                similarity = shared / (weights[pick] + weights[other] - shared)
                if similarity <= _SIMILAR:
                    continue
                repetition = (similarity - _SIMILAR) / (1 - _SIMILAR)
                if repetition > repetitions[other]:
                    repetitions[other] = repetition
                    adjusted[other] = scores[other] * (1 - diversity * repetition)
    return picks


def click_probability(p_seen: float, scenario: ScenarioSpec, position: int) -> float:
    """Returns p(click | shown at `position`), from 1: the chance to be seen there times p_seen."""
    ctr = scenario.position_ctr
    relative = ctr[min(position, len(ctr)) - 1] if ctr else 1.0
    return min(1.0, max(0.0, p_seen * relative))


def explored(num: int, rate: float, randomness: random.Random) -> tuple[list[int], list[float]]:
    """Returns an order of `num` suggestions and the probability that each is where it is.

    With probability `rate`, neighbours are paired up from the first or the second place on, and
    each pair is swapped or not by a fair coin (FairPairs: Radlinski and Joachims, AAAI 2006). So
    an item moves to each neighbouring place with probability rate / 4.
    """
    order = list(range(num))
    if rate > 0 and num > 1 and randomness.random() < rate:
        for left in range(randomness.randrange(2), num - 1, 2):
            if randomness.random() < 0.5:
                order[left], order[left + 1] = order[left + 1], order[left]
    move = rate / 4
    propensities = [
        move if original != place else 1 - move * ((place > 0) + (place < num - 1))
        for place, original in enumerate(order)
    ]
    return order, propensities


def _mask(text: str, bits: dict[str, int]) -> int:
    """Returns the words of a text as a set of bits; new words get the next one."""
    mask = 0
    for word in words_of(text):
        mask |= bits.setdefault(word, 1 << len(bits))
    return mask


def _weight(mask: int, asked: int) -> float:
    """Returns what words weigh together, those of the query less."""
    return mask.bit_count() - (1 - QUERY_WORD_WEIGHT) * (mask & asked).bit_count()
