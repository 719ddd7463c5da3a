"""Whether a round of alignment counts: what its lists for held-out prompts must do.

The reward must rise by more than chance: the lower bound of its mean ratio over scenarios is above
1, paired by prompt, resampled by query, at a level that is shared out over the looks that a round
gets. Scenarios with a handful of queries tell nothing of chance and are left out of it. What must
not fall is compared as it is, in all scenarios. Knows nothing of models.
"""

# U held-out prompts, C clusters of them, R resamples
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from train.alignment.quality import Measured

STEPS = (1.0, 0.5, 0.25)  # parts of the way from the old weights to the new ones that are tried
_LEVEL = 0.05  # chance that a round is taken, by any of these looks, which gains nothing
_NUM_RESAMPLES = 2000
# Of a scenario whose gain is bounded. With fewer, many resamples hold none of its queries, and
# what has a single query passes by chance about every second time.
_LEAST_QUERIES = 8
_LEAST_RATIO = 0.97  # of a scenario's reward after a round to that before; less is no noise
# The same of the clicked texts that are found, over all scenarios. Few held-out panels have clicks:
# a tighter bound refuses what helps, for one text more or less.
_LEAST_FOUND = 0.8
Floats = NDArray[np.float64]


class Asked(NamedTuple):
    """What held-out prompts are of."""

    scenario_U: Sequence[str]
    query_U: Sequence[str]


def refusal(asked: Asked, before: Measured, after: Measured, max_kl: float) -> str:
    """Returns why a policy is not taken in place of the one before; empty if it is.

    Args:
        asked: the prompts that both were measured on.
        before: the policy that the round began with.
        after: the one it came to.
        max_kl: nats a list that it may move.
    """
    then, now = before.by_scenario, after.by_scenario
    ratios = {name: float(_ratio(now[name].reward, q.reward)) for name, q in then.items()}
    bound = least_gain(asked, before.reward_U, after.reward_U)
    if bound is None:
        return "too few held-out prompts to tell"
    if min(ratios.values()) < _LEAST_RATIO or not bound > 1:
        each = ", ".join(f"{name} x {ratio:.3f}" for name, ratio in ratios.items())
        return f"{each}; on average at least x {bound:.3f}"
    found = fmean(q.found for q in now.values())
    if found < _LEAST_FOUND * fmean(q.found for q in then.values()):
        return f"finds only {found:.3f} of what was clicked"
    kl = max(q.kl for q in now.values())
    return f"{kl:.1f} nats a list" if kl > max_kl else ""


def least_gain(asked: Asked, before_U: Floats, after_U: Floats) -> float | None:
    """Returns the lower bound of the mean over scenarios of reward after / before.

    Scenarios with fewer than 8 queries are left out; None if that leaves none. The bootstrap is
    that of `train.evaluation.intervals`, with one clustering for all scenarios: prompts of one
    query are resampled together.
    """
    _, cluster_U = np.unique(np.array(asked.query_U), return_inverse=True)
    num = int(cluster_U.max()) + 1
    drawn_RC = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), _NUM_RESAMPLES)
    ratios: list[Floats] = []
    scenario_U = np.array(asked.scenario_U)
    for name in dict.fromkeys(asked.scenario_U):
        own_U = scenario_U == name
        if len(np.unique(cluster_U[own_U])) < _LEAST_QUERIES:
            continue
        then_C, now_C = (
            np.bincount(cluster_U[own_U], reward_U[own_U], num) for reward_U in (before_U, after_U)
        )
        ratios.append(_ratio(drawn_RC @ now_C, drawn_RC @ then_C))
    if not ratios:
        return None
    return float(np.quantile(np.mean(ratios, axis=0), _LEVEL / len(STEPS)))


def _ratio(now: ArrayLike, then: ArrayLike) -> Floats:
    """Returns now / then; 1 where both are 0, as of a scenario whose lists are worth nothing."""
    return np.where(np.equal(now, then), 1.0, now / np.maximum(then, np.finfo(np.float64).tiny))
