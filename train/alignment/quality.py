"""What a policy writes for held-out prompts, by the click model and by what was clicked there.

Knows nothing of how lists are drawn or judged, nor of how a policy learns.
"""

# B prompts, K lists of each, S sequences of a list, N new tokens, P positions
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from engine.answering.candidates import key_of
from train.alignment.preferences import drawn_texts, reward_of
from train.alignment.prompts import AlignmentPrompt
from train.alignment.rollouts import Drawer, Drawn, Worth
from train.generation.likelihood import list_logprobs

_CHUNK = 16  # prompts that are read at once


class PolicyQuality(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy writes for held-out prompts of one scenario, by the click model."""

    reward: float  # expected clicks on the list that it would serve (temperature 0)
    found: float  # share of the texts clicked on logged panels that is in that list
    distinct: float  # texts of that list that differ from one another and the query
    known_share: float  # of them, how many the log knows
    kl: float  # nats a drawn list between this policy and the round's reference


class Measured(NamedTuple):
    """What a policy writes for all held-out prompts."""

    by_scenario: dict[str, PolicyQuality]
    reward_U: NDArray[np.float64]  # of each prompt's list, in their order


class HeldOut:
    """Prompts that no round learns from, and what policies write for them."""

    def __init__(
        self,
        prompts: Sequence[AlignmentPrompt],
        draw: Drawer,
        judge: Callable[[Sequence[Drawn]], list[Worth]],
        seen: Mapping[str, Sequence[float]],
    ) -> None:
        """Takes the parts.

        Args:
            prompts: held out.
            draw: draws lists.
            judge: says what their texts are worth.
            seen: scenario -> p(seen) by position.
        """
        self.prompts, self._draw, self._judge, self._seen = prompts, draw, judge, seen

    def quality(self, model: Any, reference: Any | None) -> Measured:
        """Returns the quality of a model; `reference` is what its KL is from."""
        best = self._draw(model, self.prompts, num_lists=1, seed=-1, temperature=0.0)
        worth = self._judge(best)
        kl = {} if reference is None else self._kl(model, reference)
        distinct: list[tuple[AlignmentPrompt, float]] = []
        found: list[tuple[AlignmentPrompt, float]] = []
        known: list[tuple[AlignmentPrompt, float]] = []
        for d, w in zip(best, worth, strict=True):
            texts = [t for texts in d.texts_KS[0] for t in texts]
            keys = {key_of(t): w.is_known[t] for t in texts if w.p_seen[t] > 0}
            distinct.append((d.prompt, len(keys)))
            clicked = {key_of(t) for t in d.prompt.clicked}
            if clicked:
                found.append((d.prompt, len(clicked & keys.keys()) / len(clicked)))
            known.append((d.prompt, sum(keys.values()) / max(1, len(keys))))
        distinct_of, known_of = by_scenario(distinct), by_scenario(known)
        found_of, rewards = by_scenario(found), list_rewards(best, worth, self._seen)
        qualities = {
            name: PolicyQuality(
                reward=reward,
                found=found_of.get(name, 0.0),
                distinct=distinct_of[name],
                known_share=known_of[name],
                kl=kl.get(name, 0.0),
            )
            for name, reward in by_scenario(rewards).items()
        }
        return Measured(qualities, np.array([reward for _, reward in rewards]))

    def _kl(self, model: Any, reference: Any) -> dict[str, float]:
        """Returns the mean over lists drawn from the model of log pi - log pi_ref, by scenario."""
        drawn = self._draw(model, self.prompts, num_lists=1, seed=-2, temperature=1.0)
        differences: list[tuple[AlignmentPrompt, float]] = []
        for start in range(0, len(drawn), _CHUNK):
            part = drawn[start : start + _CHUNK]
            for name in dict.fromkeys(d.prompt.scenario.name for d in part):
                own = [d for d in part if d.prompt.scenario.name == name]
                ids_BKSN = torch.stack([d.ids_KSN for d in own])
                with torch.no_grad():
                    then = list_logprobs(reference, [d.prompt.drawn for d in own], ids_BKSN)
                for d, logprobs_KSN in zip(own, then, strict=True):
                    difference = float(d.logprobs_KS.sum() - logprobs_KSN.sum())
                    differences.append((d.prompt, difference))
        return by_scenario(differences)


def list_rewards(
    drawn: Sequence[Drawn], worth: Sequence[Worth], seen: Mapping[str, Sequence[float]]
) -> list[tuple[AlignmentPrompt, float]]:
    """Returns what the click model expects of each prompt's lists, the mean over them."""
    rewards: list[tuple[AlignmentPrompt, float]] = []
    for d, w in zip(drawn, worth, strict=True):
        seen_P = seen.get(d.prompt.scenario.name, ())
        own = [
            reward_of(d.prompt, w.p_seen, seen_P, drawn_texts(d, k)) for k in range(len(d.texts_KS))
        ]
        rewards.append((d.prompt, fmean(own)))
    return rewards


def by_scenario(values: Sequence[tuple[AlignmentPrompt, float]]) -> dict[str, float]:
    """Returns the mean of each scenario."""
    groups: dict[str, list[float]] = {}
    for prompt, value in values:
        groups.setdefault(prompt.scenario.name, []).append(value)
    return {name: fmean(own) for name, own in groups.items()}
