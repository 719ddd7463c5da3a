"""Draws the next token: temperature, nucleus, inverse transform sampling. Knows nothing of models.

One uniform number a draw, in place of one a token: with 16,000 tokens noise would take about as
long as the model.

# R rows, K draws of each row, V ids, C groups of W ids
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

_GROUP = 128


class Choice(NamedTuple):
    """What was drawn; (R, K) each."""

    ids: Tensor  # int64
    logprobs: Tensor  # float32: log softmax of the logits as they are
    draw_logprobs: Tensor  # float32: log of the probability with which it was drawn


def choose(
    logits_RV: Tensor, uniforms_RK: Tensor, *, temperature: float = 1.0, top_p: float = 1.0
) -> Choice:
    """Draws K ids of each row.

    Args:
        logits_RV: float32; -inf where an id is not allowed. Overwritten.
        uniforms_RK: float64 in [0, 1): the same numbers draw the same ids.
        temperature: logits are divided by it; 0 takes the best id, the lowest of equal ones.
        top_p: of the most probable ids (after the temperature), so many as are needed for this
            share of the probability; all as probable as the last one kept are kept.

    Raises:
        ValueError: logits are NaN or infinite, or a row allows no id.
    """
    shifted_RV = logits_RV.sub_(logits_RV.amax(-1, keepdim=True))
    weights_RV = shifted_RV.exp()
    total_R1 = weights_RV.sum(-1, keepdim=True)
    if not bool(total_R1.isfinite().all()):
        raise ValueError(
            "the model gives logits that are NaN or infinite, or no id is allowed: "
            "its weights may have diverged in training"
        )
    if temperature == 0:
        ids_RK = shifted_RV.argmax(-1, keepdim=True).expand(uniforms_RK.shape)
        logprobs_RK = shifted_RV.gather(-1, ids_RK) - total_R1.log()
        return Choice(ids_RK, logprobs_RK, torch.zeros_like(logprobs_RK))
    if temperature != 1:
        weights_RV = torch.mul(shifted_RV, 1 / temperature, out=weights_RV).exp_()
    if top_p < 1:
        weights_RV.mul_(weights_RV >= nucleus_threshold(weights_RV, top_p))
    ids_RK = _inverse(weights_RV, uniforms_RK)
    chosen_RK = shifted_RV.gather(-1, ids_RK)
    drawn_total_R1 = weights_RV.sum(-1, keepdim=True)
    return Choice(
        ids_RK, chosen_RK - total_R1.log(), chosen_RK / temperature - drawn_total_R1.log()
    )


def nucleus_threshold(weights_RV: Tensor, top_p: float) -> Tensor:
    """Returns float32 (R, 1): the greatest weight w such that all from w up have the share top_p.

    Weights are not negative and at most 1. Halves the range of float32 numbers, in the order of
    their bits, until one is left; sorting 16,000 ids takes longer than the model.
    """
    wanted_R1 = top_p * weights_RV.sum(-1, keepdim=True)
    low_R1 = torch.zeros_like(wanted_R1, dtype=torch.int32)  # reaches the share
    high_R1 = torch.ones_like(wanted_R1).view(torch.int32) + 1  # does not
    for _ in range(30):  # 2 ** 30 is more than the bits of 1.0
        middle_R1 = (low_R1 + high_R1) // 2
        is_above_RV = weights_RV >= middle_R1.view(torch.float32)
        reaches_R1 = (weights_RV * is_above_RV).sum(-1, keepdim=True) >= wanted_R1
        low_R1 = torch.where(reaches_R1, middle_R1, low_R1)
        high_R1 = torch.where(reaches_R1, high_R1, middle_R1)
    return low_R1.view(torch.float32)


def _inverse(weights_RV: Tensor, uniforms_RK: Tensor) -> Tensor:
    """Returns int64 (R, K): where the running sum of weights passes each share of the total.

    In two levels, groups of ids and ids of a group: running sums of 16,000 float32 numbers would
    be slow and inexact. An id of weight 0 is never returned.
    """
    size = weights_RV.shape[1]
    groups_RCW = pad(weights_RV, (0, -size % _GROUP)).unflatten(-1, (-1, _GROUP))
    bounds_RC = groups_RCW.sum(-1).double().cumsum(-1)
    target_RK = uniforms_RK * bounds_RC[:, -1:]
    group_RK = torch.searchsorted(bounds_RC, target_RK, right=True)
    end_RK = bounds_RC.gather(-1, group_RK)
    start_RK = pad(bounds_RC, (1, 0)).gather(-1, group_RK)
    share_RK = ((target_RK - start_RK) / (end_RK - start_RK)).clamp_(0, 1 - 2**-53)
    rows = torch.arange(len(weights_RV), device=weights_RV.device)[:, None]
    inside_RKW = groups_RCW[rows, group_RK].double().cumsum(-1)
    target_RK1 = share_RK[..., None] * inside_RKW[..., -1:]
    within_RK = torch.searchsorted(inside_RKW, target_RK1, right=True)[..., 0]
    return group_RK * _GROUP + within_RK
