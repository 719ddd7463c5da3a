"""Objectives against values computed by hand, and the laws that hold for all of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.alignment.objectives import OBJECTIVES, ctr_dpo, dpo, lipo, pl, sdpo

LN2, LN3 = math.log(2), math.log(3)


def of(values):
    return torch.tensor([values], dtype=torch.float64)


def test_lists_that_are_equal_under_policy_and_reference_cost_the_entropy_of_a_guess():
    s, reward = of([0.0, 0.0, 0.0]), of([0.3, 0.2, 0.1])
    assert pl(s, reward).item() == pytest.approx(LN3 + LN2)  # 3! orders are equally likely
    assert dpo(s, reward).item() == pytest.approx(LN2)
    assert sdpo(s, reward).item() == pytest.approx(LN3)  # 1 of 3


def test_plackett_luce_by_hand():
    # exp(s) is 3, 2 and 1; the order by reward is second, first, third.
    s, reward = of([LN3, LN2, 0.0]), of([0.2, 0.9, 0.1])
    assert pl(s, reward).item() == pytest.approx(-math.log(2 / 6) - math.log(3 / 4))


def test_plackett_luce_does_not_order_lists_of_equal_reward():
    s = of([LN3, LN2, 0.0]).requires_grad_()
    loss = pl(s, of([0.5, 0.5, 0.1]))
    assert loss.item() == pytest.approx(-math.log(3 / 4) - math.log(2 / 3))
    (gradient,) = torch.autograd.grad(loss.sum(), s)
    assert gradient[0, :2].tolist() == pytest.approx([3 / 4 - 1, 2 / 3 - 1])


def test_lipo_by_hand():
    # psi scaled is 1, 0.5, 0: gains 1, sqrt(2) - 1, 0. Ranks by s are 2, 1, 3.
    s, reward = of([1.0, 2.0, 0.0]), of([0.03, 0.02, 0.01])
    discount = {rank: 1 / math.log(1 + rank) for rank in (1, 2, 3)}
    gains = (1.0, math.sqrt(2) - 1, 0.0)

    def pair(better, worse, rank_better, rank_worse):
        weight = (gains[better] - gains[worse]) * abs(discount[rank_better] - discount[rank_worse])
        return weight * math.log(1 + math.exp(s[0, worse] - s[0, better]))

    expected = pair(0, 1, 2, 1) + pair(0, 2, 2, 3) + pair(1, 2, 1, 3)
    assert lipo(s, reward).item() == pytest.approx(expected)


def test_dpo_and_sdpo_by_hand():
    s, reward = of([1.0, 0.5, -1.0]), of([0.1, 0.9, 0.05])
    assert dpo(s, reward).item() == pytest.approx(math.log(1 + math.exp(-1.0 - 0.5)))
    losers = math.exp(1.0 - 0.5) + math.exp(-1.0 - 0.5)
    assert sdpo(s, reward).item() == pytest.approx(math.log(1 + losers))


def test_ctr_dpo_weighs_prompts_by_their_gap():
    s = torch.tensor([[0.5, 0.0], [0.5, 0.0]], dtype=torch.float64)
    reward = torch.tensor([[0.4, 0.1], [0.2, 0.1]], dtype=torch.float64)
    plain = math.log(1 + math.exp(-0.5))
    assert ctr_dpo(s, reward).tolist() == pytest.approx([1.5 * plain, 0.5 * plain])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@settings(max_examples=40, deadline=None)
@given(
    s=st.lists(st.floats(-3, 3), min_size=4, max_size=4),
    order=st.permutations(range(4)),
    shift=st.floats(-5, 5),
)
def test_laws_of_all_objectives(name, s, order, shift):
    objective = OBJECTIVES[name]
    reward = torch.arange(4, 0, -1, dtype=torch.float64)
    loss = objective(of(s), reward[None])
    assert loss.shape == (1,)
    assert loss.item() >= 0
    # Neither a constant on all lists nor their order in the batch means anything. LiPO breaks
    # ties of s by place, so only clearly different ones may be moved.
    if len({round(x, 6) for x in s}) == 4:
        assert objective(of(s) + shift, reward[None]).item() == pytest.approx(loss.item(), abs=1e-9)
        permuted = objective(of(s)[:, order], reward[None, order])
        assert permuted.item() == pytest.approx(loss.item(), abs=1e-9)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_step_against_the_gradient_prefers_what_is_worth_more(name):
    s = torch.tensor([[0.3, -0.2, 0.1, 0.0]], dtype=torch.float64, requires_grad=True)
    reward = of([0.9, 0.5, 0.2, 0.1])
    (gradient,) = torch.autograd.grad(OBJECTIVES[name](s, reward).sum(), s)
    assert gradient[0, 0] < 0 < gradient[0, 3]
    assert gradient.sum().item() == pytest.approx(0.0, abs=1e-9)
