"""Which lists of a prompt are learnt from, and what each is worth.

Sequences of a list that do not see one another (slots, beams) can be exchanged: a list made of
sequences that were drawn into different lists is as much the policy's own as any, and its log pi
is the sum over its parts. So lists are composed: the best one of the best sequence of each slot,
the worst of the worst, those between of what stands between. They are further apart than drawn
lists, and tell each slot what was good about it. A list in list form is one sequence, and is taken
as it was drawn. Knows nothing of models.
"""

# K lists of a prompt that were drawn, J that are kept, S sequences of a list, N new tokens
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from train.alignment.prompts import AlignmentPrompt
from train.alignment.reward import freshness, list_reward
from train.alignment.rollouts import Drawn, Worth


class Preference(NamedTuple):
    """Lists of one prompt with their rewards, best first; J is the same for all prompts."""

    prompt: AlignmentPrompt
    ids_JSN: Tensor  # int64
    reference_JS: Tensor  # float32: log pi of each sequence under the policy that drew it
    reward_J: Tensor  # float32, strictly falling


class _Listing(NamedTuple):
    """A list as the draw that each of its sequences comes from."""

    draw_S: tuple[int, ...]
    reward: float


def prefer(
    drawn: Drawn, worth: Worth, seen_P: Sequence[float], *, num_kept: int, min_gap: float
) -> Preference | None:
    """Returns the lists to learn from; None where all that were drawn are worth about the same.

    Args:
        drawn: lists of a prompt, at least two.
        worth: of their texts.
        seen_P: p(seen) by position.
        num_kept: J, at least 2.
        min_gap: least difference of reward between the lists that are kept, relative to the best.
    """
    num_lists, num_slots = drawn.logprobs_KS.shape
    if num_slots == 1:
        choices = [(k,) for k in range(num_lists)]
    else:
        choices = [compose(drawn, worth, rank) for rank in range(num_lists)]
    listings = [_valued(drawn, worth, seen_P, choice) for choice in choices]
    listings.sort(key=lambda listing: -listing.reward)
    kept = _spread(listings, num_kept, min_gap * max(listings[0].reward, 1e-9))
    if len(kept) < num_kept:
        return None
    slots = range(num_slots)
    picks_JS = torch.tensor([listing.draw_S for listing in kept])
    return Preference(
        drawn.prompt,
        torch.stack([drawn.ids_KSN[picks_S, slots] for picks_S in picks_JS]),
        torch.stack([drawn.logprobs_KS[picks_S, slots] for picks_S in picks_JS]),
        torch.tensor([listing.reward for listing in kept], dtype=torch.float32),
    )


def reward_of(
    drawn: Drawn, values: dict[str, float], seen_P: Sequence[float], draw_S: Sequence[int]
) -> float:
    """Returns the reward of the list that takes sequence s from draw `draw_S[s]`."""
    texts = [t for s, k in enumerate(draw_S) for t in drawn.texts_KS[k][s]]
    return list_reward(
        np.array([values[t] for t in texts]),
        texts,
        drawn.prompt.query,
        seen_P,
        drawn.prompt.scenario.num_suggestions,
    )


def _valued(
    drawn: Drawn, worth: Worth, seen_P: Sequence[float], draw_S: tuple[int, ...]
) -> _Listing:
    return _Listing(draw_S, reward_of(drawn, worth.reward, seen_P, draw_S))


def compose(drawn: Drawn, worth: Worth, rank: int) -> tuple[int, ...]:
    """Returns a list put together slot by slot: what adds most to the slots before, 0 the best."""
    num_lists, num_slots = drawn.logprobs_KS.shape
    texts: list[str] = []
    choice: list[int] = []
    for s in range(num_slots):
        values: list[float] = []
        for k in range(num_lists):
            tried = [*texts, *drawn.texts_KS[k][s]]
            p_C = np.array([worth.reward[t] for t in tried])
            values.append(
                float((p_C * freshness(p_C, tried, drawn.prompt.query)).sum()) if tried else 0.0
            )
        k = int(np.argsort(-np.array(values), kind="stable")[rank])
        choice.append(k)
        texts += drawn.texts_KS[k][s]
    return tuple(choice)


def _spread(listings: Sequence[_Listing], num: int, min_gap: float) -> list[_Listing]:
    """Returns `num` lists from best to worst, evenly among those that differ by `min_gap`."""
    apart: list[_Listing] = []
    for listing in listings:
        if not apart or apart[-1].reward - listing.reward >= min_gap:
            apart.append(listing)
    if len(apart) < num:
        return apart
    return [apart[round(i * (len(apart) - 1) / (num - 1))] for i in range(num)]
