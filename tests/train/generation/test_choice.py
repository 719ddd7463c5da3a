"""Draws follow the probabilities that the logits state, exactly where that can be said exactly."""

import math

import pytest
import torch
from torch import Tensor

from train.generation.choice import choose, nucleus_threshold

LOGITS_V = torch.tensor([0.5, -1.0, 2.0, -torch.inf, 0.0, 1.0, 2.5, -3.0])


def drawn(logits_V: Tensor, num: int, seed: int = 0, **settings: float) -> Tensor:
    """Returns int64 (num) draws of one row."""
    generator = torch.Generator().manual_seed(seed)
    uniforms_1K = torch.rand(1, num, dtype=torch.float64, generator=generator)
    return choose(logits_V[None].clone(), uniforms_1K, **settings).ids[0]


def chi_square(ids: Tensor, probabilities_V: Tensor) -> float:
    """Returns Pearson's statistic over the standard deviations of its distribution."""
    counts_V = torch.bincount(ids, minlength=len(probabilities_V)).double()
    expected_V = probabilities_V.double() * len(ids)
    possible_V = expected_V > 0
    assert not counts_V[~possible_V].any()
    terms = (counts_V - expected_V)[possible_V] ** 2 / expected_V[possible_V]
    freedom = int(possible_V.sum()) - 1
    return (float(terms.sum()) - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    ids = drawn(LOGITS_V, 100_000, temperature=temperature)
    assert abs(chi_square(ids, (LOGITS_V / temperature).softmax(-1))) < 4


def test_draws_follow_the_softmax_over_many_groups_of_ids() -> None:
    logits_V = torch.randn(600, generator=torch.Generator().manual_seed(1)) * 2
    logits_V[256:400] = -torch.inf  # a whole group without any weight
    assert abs(chi_square(drawn(logits_V, 200_000), logits_V.softmax(-1))) < 4


def test_uniform_numbers_are_mapped_in_the_order_of_ids() -> None:
    logits_RV = torch.tensor([[0.2, 0.0, 0.3, 0.5]] * 2).log()
    rows = [[0.0, 0.199, 0.201], [0.499, 0.501, 1 - 2**-53]]
    uniforms_RK = torch.tensor(rows, dtype=torch.float64)
    assert choose(logits_RV, uniforms_RK).ids.tolist() == [[0, 0, 2], [2, 3, 3]]


def test_the_ends_of_the_range_never_give_an_id_without_weight() -> None:
    generator = torch.Generator().manual_seed(2)
    logits_RV = torch.randn(500, 300, generator=generator) * 30
    logits_RV[:, ::2] = -torch.inf
    logits_RV[:, :120] = logits_RV[:, 270:] = -torch.inf
    uniforms_RK = torch.tensor([0.0, 2**-60, 0.5, 1 - 2**-30, 1 - 2**-53], dtype=torch.float64)
    choice = choose(logits_RV.clone(), uniforms_RK.expand(500, 5))
    assert logits_RV.gather(-1, choice.ids).isfinite().all()
    assert choice.draw_logprobs.isfinite().all()


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_nucleus_is_the_one_that_sorting_gives(top_p: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits_RV = torch.randn(50, 400, generator=generator) * 3
    probabilities_RV = logits_RV.double().softmax(-1)
    ranked_RV, order_RV = probabilities_RV.sort(-1, descending=True)
    # An id is in the nucleus if those before it have not reached the share.
    kept_RV = torch.zeros(50, 400, dtype=torch.bool).scatter(
        -1, order_RV, ranked_RV.cumsum(-1) - ranked_RV < top_p
    )
    weights_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)).exp()
    assert torch.equal(weights_RV >= nucleus_threshold(weights_RV, top_p), kept_RV)
    generator.manual_seed(4)
    uniforms_RK = torch.rand(50, 2000, dtype=torch.float64, generator=generator)
    choice = choose(logits_RV.clone(), uniforms_RK, top_p=top_p)
    assert kept_RV.gather(-1, choice.ids).all()
    renormalised_RV = torch.where(kept_RV, probabilities_RV, 0)
    renormalised_RV /= renormalised_RV.sum(-1, keepdim=True)
    torch.testing.assert_close(
        choice.draw_logprobs.exp(), renormalised_RV.gather(-1, choice.ids).float()
    )
    torch.testing.assert_close(
        choice.logprobs, logits_RV.log_softmax(-1).gather(-1, choice.ids), atol=1e-5, rtol=1e-5
    )


def test_nucleus_applies_after_the_temperature() -> None:
    # At temperature 1 the best id has .84 of the probability, at 100 about a third.
    logits_V = torch.tensor([3.0, 1.0, 0.0])
    assert set(drawn(logits_V, 1000, top_p=0.8).tolist()) == {0}
    assert set(drawn(logits_V, 1000, top_p=0.8, temperature=100).tolist()) == {0, 1, 2}


def test_equally_probable_ids_are_kept_together() -> None:
    weights_1V = torch.tensor([[0.25, 1.0, 0.25, 0.0, 0.125]])
    assert nucleus_threshold(weights_1V, 0.7).tolist() == [[0.25]]
    assert nucleus_threshold(weights_1V, 0.5).tolist() == [[1.0]]


@pytest.mark.parametrize("temperature", [0.0, 1e-4])
def test_a_low_temperature_takes_the_best_id(temperature: float) -> None:
    assert set(drawn(LOGITS_V, 1000, temperature=temperature).tolist()) == {6}


def test_a_high_temperature_takes_all_ids_alike() -> None:
    allowed_V = LOGITS_V.isfinite()
    ids = drawn(LOGITS_V, 100_000, temperature=1e6)
    assert abs(chi_square(ids, allowed_V / allowed_V.sum())) < 4


def test_at_temperature_0_the_draw_is_certain_and_the_logprob_is_the_models() -> None:
    choice = choose(LOGITS_V[None].clone(), torch.zeros(1, 2).double(), temperature=0)
    assert choice.draw_logprobs.tolist() == [[0, 0]]
    torch.testing.assert_close(choice.logprobs[0, 0], LOGITS_V.log_softmax(-1)[6])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad: float, temperature: float) -> None:
    logits_RV = torch.zeros(3, 200)
    logits_RV[1, 150] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        choose(logits_RV, torch.zeros(3, 1).double(), temperature=temperature)


def test_a_row_without_allowed_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="no id is allowed"):
        choose(torch.full((1, 4), -torch.inf), torch.zeros(1, 1).double())
