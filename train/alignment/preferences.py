"""Which lists of a prompt are learnt from, and what each is worth.

A list in list form is one sequence, and is taken as it was drawn. Texts in slots do not see one
another, so lists can be composed of all texts that were drawn for a prompt: ranked by what each
adds to those before, times how often it was drawn, the best fill the best list, the next the
second, and so on; lists as they were drawn stand between them. Within a composed list texts lie in
bytewise order, as fine-tuning taught (`train.generation.responses`): were each slot given its own
best text, slots would learn to write the same one. In beam form all texts come from one
distribution, so what is learnt is their order: every text stands alone, as a list of its own.

What the policy is sure of counts for more than what it hardly ever writes: rewards alone would
prefer the rare texts that the click model overrates.

Knows nothing of models.
"""

# K lists of a prompt that were drawn, J that are kept, S sequences of a list, N new tokens,
# C texts
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.formats.prompt import spread
from train.alignment.prompts import AlignmentPrompt
from train.alignment.reward import list_reward, picks, ranking
from train.alignment.rollouts import Drawn, Worth


class Preference(NamedTuple):
    """Lists of one prompt with their rewards, best first.

    Sequences of <|pad|> alone are slots that a list does not use.
    """

    prompt: AlignmentPrompt
    ids_JSN: Tensor  # int64
    # float32: log pi of each sequence under the policy that drew it; nan where that drew it for
    # another slot
    reference_JS: Tensor
    reward_J: Tensor  # float32, strictly falling


class _Listing(NamedTuple):
    """A list: its texts, and the draw and place of each sequence; None for an unused slot."""

    texts: list[str]
    origin_S: list[tuple[int, int] | None]
    reward: float


def prefer(
    drawn: Drawn,
    worth: Worth,
    seen_P: Sequence[float],
    bytes_of: Callable[[Sequence[int]], bytes],
    *,
    confidence: float,
    num_kept: int,
    min_gap: float,
) -> Preference | None:
    """Returns the lists to learn from; None where all are worth about the same.

    Args:
        drawn: lists of a prompt, at least two.
        worth: of their texts.
        seen_P: p(seen) by position.
        bytes_of: token ids -> what they say; decides which slot a text belongs to.
        confidence: texts compete by reward * (how often they were drawn) ** confidence.
        num_kept: J at most, at least 2; fewer where fewer lists differ.
        min_gap: least difference of reward between the lists that are kept, relative to the best.
    """
    listings = [
        listing._replace(reward=reward_of(drawn.prompt, worth.reward, seen_P, listing.texts))
        for listing in _listings(drawn, worth, bytes_of, confidence)
    ]
    listings.sort(key=lambda listing: -listing.reward)
    return _preference(drawn, drawn.prompt, listings, num_kept, min_gap)


def prefer_texts(
    drawn: Drawn, worth: Worth, *, confidence: float, num_kept: int, min_gap: float
) -> Preference | None:
    """Returns texts in the order to be learnt, each as a list; for lists in beam form.

    A text is worth what it adds to those before it. The auxiliary text goes with the best one.

    Args:
        drawn: texts that were searched for.
        worth: of them.
        confidence: texts compete by reward * pi(text) ** confidence.
        num_kept: J at most, at least 2; fewer where fewer texts differ.
        min_gap: least difference between the texts that are kept, relative to the best.
    """
    place_of, auxiliary = _places(drawn), _auxiliary(drawn)
    first = int(drawn.prompt.scenario.has_auxiliary_text)
    listings = [
        _Listing([text], [*[None] * first, place_of[text]], added)
        for text, added in searched_texts(drawn, worth, confidence)
    ]
    if listings and auxiliary is not None:
        listings[0].origin_S[0] = auxiliary, 0
    asked = drawn.prompt.drawn
    alone = asked._replace(
        slots=[*asked.slots[:first], asked.slots[-1]],
        max_new_tokens=[*asked.max_new_tokens[:first], asked.max_new_tokens[-1]],
    )
    return _preference(drawn, drawn.prompt._replace(drawn=alone), listings, num_kept, min_gap)


def _preference(
    drawn: Drawn,
    prompt: AlignmentPrompt,
    listings: Sequence[_Listing],
    num_kept: int,
    min_gap: float,
) -> Preference | None:
    """Returns what is kept of lists, best first; None where fewer than two differ."""
    if not listings:
        return None
    best = max(listings[0].reward, np.finfo(np.float64).tiny)
    kept = _apart(listings, num_kept, min_gap * best)
    if len(kept) < 2:
        return None
    num_sequences, num_new = len(prompt.drawn.slots), drawn.ids_KSN.shape[2]
    ids_JSN = torch.zeros(len(kept), num_sequences, num_new, dtype=torch.int64)
    reference_JS = torch.zeros(len(kept), num_sequences)
    for ids_SN, reference_S, listing in zip(ids_JSN, reference_JS, kept, strict=True):
        for s, origin in enumerate(listing.origin_S):
            if origin is None:
                continue
            ids_SN[s] = drawn.ids_KSN[origin]
            is_its_own = prompt.drawn.slots[s] == drawn.prompt.drawn.slots[origin[1]]
            reference_S[s] = drawn.logprobs_KS[origin] if is_its_own else torch.nan
    reward_J = torch.tensor([listing.reward for listing in kept], dtype=torch.float32)
    return Preference(prompt, ids_JSN, reference_JS, reward_J)


def reward_of(
    prompt: AlignmentPrompt,
    values: dict[str, float],
    seen_P: Sequence[float],
    texts: Sequence[str],
) -> float:
    """Returns the reward of a list that holds some texts, by the values of texts."""
    p_C = np.array([values[t] for t in texts])
    return list_reward(p_C, texts, prompt.query, seen_P, prompt.scenario.num_suggestions)


def drawn_texts(drawn: Drawn, draw: int) -> list[str]:
    """Returns the texts of a list as it was drawn."""
    return [text for texts in drawn.texts_KS[draw] for text in texts]


def ranked_texts(drawn: Drawn, worth: Worth, confidence: float) -> list[str]:
    """Returns the distinct texts of a prompt, picked one by one by what they add to those before.

    Texts compete by reward * (how often they were drawn) ** confidence. A search has each once: see
    `searched_texts`.
    """
    texts = list(_places(drawn))
    count_of = Counter(t for texts_S in drawn.texts_KS for own in texts_S for t in own)
    value_C = np.array([worth.reward[t] * count_of[t] ** confidence for t in texts])
    return [texts[i] for i in ranking(value_C, texts, drawn.prompt.query)]


def searched_texts(drawn: Drawn, worth: Worth, confidence: float) -> list[tuple[str, float]]:
    """Returns the distinct texts of a search and what each adds to those before, best first.

    Texts compete by reward * pi(text) ** confidence.
    """
    place_of = _places(drawn)
    texts = list(place_of)
    logprob_C = np.array([float(drawn.logprobs_KS[place]) for place in place_of.values()])
    value_C = np.array([worth.reward[t] for t in texts]) * np.exp(confidence * logprob_C)
    return [(texts[i], added) for i, added in picks(value_C, texts, drawn.prompt.query)]


def composed(
    drawn: Drawn, worth: Worth, bytes_of: Callable[[Sequence[int]], bytes], confidence: float
) -> list[list[str]]:
    """Returns the distinct texts of a prompt as lists in slots, the best list first."""
    place_of = _places(drawn)
    in_order = ranked_texts(drawn, worth, confidence)
    size = drawn.ids_KSN.shape[1] - drawn.prompt.scenario.has_auxiliary_text
    return [
        sorted(
            in_order[start : start + size],
            key=lambda text: bytes_of(drawn.ids_KSN[place_of[text]].tolist()),
        )
        for start in range(0, len(in_order), size)
    ]


def _listings(
    drawn: Drawn, worth: Worth, bytes_of: Callable[[Sequence[int]], bytes], confidence: float
) -> list[_Listing]:
    """Returns lists that could be learnt from; their rewards are not set."""
    num_lists, num_slots = drawn.ids_KSN.shape[:2]
    listings = [
        _Listing(drawn_texts(drawn, k), [(k, s) for s in range(num_slots)], 0.0)
        for k in range(num_lists)
    ]
    if num_slots == 1:
        return listings
    place_of, auxiliary = _places(drawn), _auxiliary(drawn)
    first = int(drawn.prompt.scenario.has_auxiliary_text)
    for texts in composed(drawn, worth, bytes_of, confidence):
        origin_S: list[tuple[int, int] | None] = [None] * num_slots
        if auxiliary is not None:
            origin_S[0] = auxiliary, 0
        for s, text in zip(spread(range(first, num_slots), len(texts)), texts, strict=True):
            origin_S[s] = place_of[text]
        listings.append(_Listing(texts, origin_S, 0.0))
    return listings


def _places(drawn: Drawn) -> dict[str, tuple[int, int]]:
    """Returns the draw and the sequence that wrote each distinct text."""
    place_of: dict[str, tuple[int, int]] = {}
    for k, texts_S in enumerate(drawn.texts_KS):
        for s, texts in enumerate(texts_S):
            for text in texts:
                place_of.setdefault(text, (k, s))
    return place_of


def _auxiliary(drawn: Drawn) -> int | None:
    """Returns the draw whose auxiliary text is the likeliest; None if there is none."""
    if not drawn.prompt.scenario.has_auxiliary_text:
        return None
    complete = [k for k, text in enumerate(drawn.auxiliary_K) if text]
    return max(complete, key=lambda k: float(drawn.logprobs_KS[k, 0]), default=None)


def _apart(listings: Sequence[_Listing], num: int, min_gap: float) -> list[_Listing]:
    """Returns `num` lists from best to worst, evenly among those that differ by `min_gap`."""
    apart: list[_Listing] = []
    for listing in listings:
        if not apart or apart[-1].reward - listing.reward >= min_gap:
            apart.append(listing)
    if len(apart) < num:
        return apart
    return [apart[round(i * (len(apart) - 1) / (num - 1))] for i in range(num)]
