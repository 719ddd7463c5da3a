"""List-wise preference objectives, as pure functions.

All take `s = beta * (log pi(list) - log pi_ref(list))` of K lists a prompt and their rewards, and
return a loss a prompt. Rewards carry no gradient; lists of equal reward have no order between
them. Knows nothing of models, lists or where rewards come from.
"""

# B prompts, K lists of a prompt
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]


def pl(s_BK: Tensor, reward_BK: Tensor) -> Tensor:
    """Returns the Plackett-Luce negative log-likelihood of the order by reward, (B).

    `-sum_i (s_i - log sum_{j not before i} exp s_j)`, best first: equation 7 of LiPO (Liu et al.,
    NAACL 2025, arXiv 2402.01878), after Plackett (1975) and Luce (1959). A list is compared with
    those of strictly lower reward and itself, so equal ones do not push each other.
    """
    is_lower_BKK = reward_BK[:, :, None] > reward_BK[:, None, :]
    itself_KK = torch.eye(s_BK.shape[1], dtype=torch.bool, device=s_BK.device)
    rivals_BKK = s_BK[:, None, :].masked_fill(~(is_lower_BKK | itself_KK), -torch.inf)
    return (rivals_BKK.logsumexp(2) - s_BK).sum(1)


def lipo(s_BK: Tensor, reward_BK: Tensor) -> Tensor:
    """Returns the LiPO-lambda loss, (B).

    `sum over psi_i > psi_j of delta_ij * log(1 + exp(s_j - s_i))` with `delta_ij = |G_i - G_j| *
    |1 / D(rank i) - 1 / D(rank j)|`, `G = 2^psi - 1`, `D(r) = log(1 + r)`, ranks by s: equation 8
    of LiPO (arXiv 2402.01878). psi is the reward scaled to [0, 1] within the prompt: click
    probabilities are so small that their gains would all be equal.
    """
    low_B1, high_B1 = reward_BK.aminmax(dim=1, keepdim=True)
    gain_BK = 2 ** ((reward_BK - low_B1) / (high_B1 - low_B1).clamp(min=1e-12)) - 1
    rank_BK = s_BK.detach().argsort(dim=1, descending=True, stable=True).argsort(1) + 1
    discount_BK = 1 / torch.log1p(rank_BK.to(s_BK.dtype))
    gain_BKK = gain_BK[:, :, None] - gain_BK[:, None, :]
    discount_BKK = discount_BK[:, :, None] - discount_BK[:, None, :]
    # Pairs whose first list is the worse one have no gain to lose.
    weight_BKK = gain_BKK.clamp(min=0) * discount_BKK.abs()
    return (weight_BKK * F.softplus(s_BK[:, None, :] - s_BK[:, :, None])).sum((1, 2))


def dpo(s_BK: Tensor, reward_BK: Tensor) -> Tensor:
    """Returns the DPO loss of the best list against the worst, (B): `-log sigmoid(s_w - s_l)`.

    Rafailov et al., NeurIPS 2023, arXiv 2305.18290.
    """
    return F.softplus(_at(s_BK, reward_BK.argmin(1)) - _at(s_BK, reward_BK.argmax(1)))


def sdpo(s_BK: Tensor, reward_BK: Tensor) -> Tensor:
    """Returns the S-DPO loss of the best list against all that are worse, (B).

    `-log sigmoid(-log sum_l exp(s_l - s_w))`: Chen et al., NeurIPS 2024, arXiv 2406.09215.
    """
    is_worse_BK = reward_BK < reward_BK.amax(1, keepdim=True)
    best_B = _at(s_BK, reward_BK.argmax(1))
    losers_B = s_BK.masked_fill(~is_worse_BK, -torch.inf).logsumexp(1)
    return F.softplus(losers_B - best_B)


def ctr_dpo(s_BK: Tensor, reward_BK: Tensor) -> Tensor:
    """Returns DPO weighted by how much better the best list is, (B).

    The weight is the gap between best and worst reward over its mean in the batch, at most 4: a
    reconstruction of the CTR-weighted DPO of GQS (arXiv 2507.04072), whose formula is not public.
    """
    gap_B = reward_BK.amax(1) - reward_BK.amin(1)
    return (gap_B / gap_B.mean().clamp(min=1e-12)).clamp(max=4) * dpo(s_BK, reward_BK)


OBJECTIVES: dict[str, Objective] = {
    "pl": pl,
    "lipo": lipo,
    "dpo": dpo,
    "sdpo": sdpo,
    "ctr-dpo": ctr_dpo,
}


def _at(values_BK: Tensor, places_B: Tensor) -> Tensor:
    return values_BK.gather(1, places_B[:, None])[:, 0]
