"""Drawn lists have the probabilities that one obvious forward pass a token gives them."""

import itertools
import math
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from engine.formats.vocabulary import EOS_ID, FIRST_TEXT_ID, NUM_CONTROL_IDS, SEP_ID
from tests.train.generation.conftest import V, model_of, prompts_of
from train.generation.likelihood import list_logprobs
from train.generation.sampler import ListPrompt, Sampler


@settings(max_examples=15, deadline=None)
@given(
    num_prompts=st.integers(1, 5),
    num_slots=st.integers(1, 4),
    num_lists=st.integers(1, 4),
    mode=st.sampled_from(["slots", "list", "beam"]),
    temperature=st.sampled_from([0.0, 0.5, 1.0]),
    top_p=st.sampled_from([0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_logprobs_equal_those_of_the_packed_model_in_any_shape(
    model: Any, sampler: Sampler, num_prompts: int, num_slots: int, num_lists: int, mode: str,
    temperature: float, top_p: float, seed: int,
) -> None:  # fmt: skip
    prompts = prompts_of(num_prompts, seed, num_slots)
    if mode == "beam":  # of one kind: a single beam, after sequences that start unlike it
        leads = range(20, 19 + num_slots)
        prompts = [p._replace(slots=[*leads, p.slots[-1]]) for p in prompts]
    lists = sampler.sample(
        prompts, torch.Generator().manual_seed(seed), mode=mode, num_lists=num_lists,
        temperature=temperature, top_p=top_p, chunk_size=2,
    )  # fmt: skip
    num_new = max(n for p in prompts for n in p.max_new_tokens)
    assert lists.ids.shape == (num_prompts, num_lists, num_slots, num_new)
    assert lists.ended.shape == lists.ids.shape[:3]
    # Checks, too, that no list holds control ids or begins outside of its range.
    again = list_logprobs(model, prompts, lists.ids)
    torch.testing.assert_close(lists.logprobs, again.detach(), atol=1e-4, rtol=0)
    ends = (EOS_ID,) if mode == "list" else (EOS_ID, SEP_ID)
    for prompt, ids_KSN, ended_KS in zip(prompts, lists.ids, lists.ended, strict=True):
        for ids_SN, ended_S in zip(ids_KSN.tolist(), ended_KS.tolist(), strict=True):
            for limit, ids, ended in zip(prompt.max_new_tokens, ids_SN, ended_S, strict=True):
                written = [i for i in ids if i]
                assert ended == (written[-1] in ends)
                assert not set(written[:-1]) & set(ends)
                assert len(written) <= limit
                assert ended or len(written) == limit
    assert not lists.logprobs[lists.ids == 0].any()
    assert not lists.draw_logprobs[lists.ids == 0].any()
    if temperature == 1 and top_p == 1:
        torch.testing.assert_close(lists.draw_logprobs, lists.logprobs, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def exact() -> tuple[Any, ListPrompt, dict[tuple[int, ...], float]]:
    """A model of six texts a step, and the probabilities of all texts of up to three tokens."""
    size = NUM_CONTROL_IDS + 8
    model = model_of(LlamaConfig(head_dim=16), size)
    prompt = ListPrompt([131, 4, 135], [5], [3], (FIRST_TEXT_ID, size))
    probabilities = dict[tuple[int, ...], float]()
    waiting: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while waiting:
        ids, probability = waiting.pop()
        with torch.inference_mode():
            logits_V = model(torch.tensor([[*prompt.ids, 5, *ids]])).logits[0, -1].double()
        allowed = range(FIRST_TEXT_ID if not ids else NUM_CONTROL_IDS, size)
        shares = logits_V[allowed.start :].softmax(-1).tolist()
        for token, share in zip(allowed, shares, strict=True):
            one = ((*ids, token), probability * share)
            if token in (EOS_ID, SEP_ID) or len(ids) == 2:
                probabilities[one[0]] = one[1]
            else:
                waiting.append(one)
    return model, prompt, probabilities


def chi_square(counts: Counter[Any], probabilities: dict[Any, float]) -> float:
    """Returns Pearson's statistic over its standard deviations; rare outcomes count as one."""
    total, rare = counts.total(), [0.0, 0.0]
    statistic, freedom = 0.0, -1
    for outcome, probability in probabilities.items():
        if probability * total < 5:
            rare[0] += counts[outcome]
            rare[1] += probability * total
        else:
            statistic += (counts[outcome] - probability * total) ** 2 / (probability * total)
            freedom += 1
    if rare[1] > 5:
        statistic, freedom = statistic + (rare[0] - rare[1]) ** 2 / rare[1], freedom + 1
    assert not counts.keys() - probabilities.keys()
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("mode", ["slots", "beam"])
def test_texts_are_drawn_as_often_as_enumeration_says(
    exact: tuple[Any, ListPrompt, dict[tuple[int, ...], float]], mode: str
) -> None:
    model, prompt, probabilities = exact
    assert sum(probabilities.values()) == pytest.approx(1)
    num_slots = 2  # begun alike: independent draws of one distribution
    twice = prompt._replace(slots=[5] * num_slots, max_new_tokens=[3] * num_slots)
    lists = Sampler(model).sample([twice], [11], num_lists=4_000, mode=mode)
    texts = [[tuple(i for i in ids if i) for ids in rows] for rows in lists.ids[0].tolist()]
    firsts = Counter(t[0] for rows in texts for t in rows)
    by_first = defaultdict[int, float](float)
    for ids, probability in probabilities.items():
        by_first[ids[0]] += probability
    assert abs(chi_square(firsts, dict(by_first))) < 4
    assert abs(chi_square(Counter(t for rows in texts for t in rows), probabilities)) < 4
    pairs = {
        (a[0], b[0]): p * q
        for (a, p), (b, q) in itertools.product([((k,), v) for k, v in by_first.items()], repeat=2)
    }
    assert abs(chi_square(Counter((a[0], b[0]) for a, b in texts), pairs)) < 4
    for ids_N, logprobs_N in zip(lists.ids[0, :50, 0], lists.logprobs[0, :50, 0], strict=True):
        text = tuple(i for i in ids_N.tolist() if i)
        assert math.exp(float(logprobs_N.sum())) == pytest.approx(probabilities[text], rel=1e-3)


def test_draws_do_not_depend_on_neighbours_or_chunks(sampler: Sampler) -> None:
    prompts = prompts_of(9, seed=3)
    together = sampler.sample(prompts, range(9), num_lists=4, chunk_size=4)
    again = sampler.sample(prompts, range(9), num_lists=4, chunk_size=4)
    for a, b in zip(together, again, strict=True):
        assert torch.equal(a, b)
    for number, prompt in enumerate(prompts):
        alone = sampler.sample([prompt], [number], num_lists=4)
        num_new = alone.ids.shape[-1]
        assert torch.equal(alone.ids[0], together.ids[number, ..., :num_new])
        torch.testing.assert_close(
            alone.logprobs[0], together.logprobs[number, ..., :num_new], atol=1e-5, rtol=0
        )


def test_a_generator_gives_each_prompt_a_stream_of_its_own(sampler: Sampler) -> None:
    prompt = prompts_of(1, seed=3)[0]._replace(max_new_tokens=[7, 7, 7])
    other = prompts_of(2, seed=4)[1]
    random = torch.Generator().manual_seed(1)
    first = sampler.sample([prompt, prompt], random, num_lists=8)
    assert not torch.equal(first.ids[0], first.ids[1])
    second = sampler.sample([prompt, prompt], random, num_lists=8)
    assert not torch.equal(first.ids, second.ids)
    random.manual_seed(1)
    changed = sampler.sample([other, prompt], random, num_lists=8)
    assert torch.equal(changed.ids[1], first.ids[1])


def test_gradients_of_a_list_are_those_of_one_pass_a_sequence(model: Any, sampler: Sampler) -> None:
    prompts = prompts_of(2, seed=6)
    lists = sampler.sample(prompts, [1, 2], num_lists=2)
    weight = model.model.layers[0].self_attn.k_proj.weight
    (packed,) = torch.autograd.grad(list_logprobs(model, prompts, lists.ids).sum(), weight)
    total = torch.zeros(())
    for prompt, ids_KSN in zip(prompts, lists.ids, strict=True):
        for ids_SN, (k, slot) in itertools.product(ids_KSN.tolist(), enumerate(prompt.slots)):
            written = [i for i in ids_SN[k] if i]
            given = [*prompt.ids, slot]
            logits_LV = model(torch.tensor([[*given, *written]])).logits[0]
            for place, token in enumerate(written):
                logits_V = logits_LV[len(given) + place - 1]
                start, end = (NUM_CONTROL_IDS, V) if place else prompt.first_token_range
                total = total + logits_V[start:end].log_softmax(-1)[token - start]
    (alone,) = torch.autograd.grad(total, weight)
    torch.testing.assert_close(packed, alone, atol=1e-3, rtol=1e-3)


def test_bfloat16_stays_near_float32(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.generation.sampler.has_fast_bf16", lambda: True)
    prompts = prompts_of(6, seed=7)
    lists = Sampler(model, bf16=True).sample(prompts, range(6), num_lists=4)
    gaps = (list_logprobs(model, prompts, lists.ids).detach() - lists.logprobs).abs()
    assert 1e-4 < float(gaps[lists.ids > 0].mean()) < 0.1  # rounded, and no more than that


def test_no_prompts_give_no_lists(model: Any, sampler: Sampler) -> None:
    lists = sampler.sample([], torch.Generator(), num_lists=3)
    assert lists.ids.shape == (0, 3, 0, 0)
    assert list_logprobs(model, [], lists.ids).shape == (0, 3, 0, 0)


GOOD = ListPrompt([200, 201], [4, 5], [3, 2], (FIRST_TEXT_ID, V))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"ids": []}, "prompt 1 is empty"),
        ({"ids": [200, V]}, "prompt 1 has an id outside of the vocabulary of 256"),
        ({"ids": [-1]}, "outside of the vocabulary"),
        ({"slots": [4, 999]}, "outside of the vocabulary"),
        ({"slots": [4]}, "prompt 1 has 1 slots, the first one 2"),
        ({"max_new_tokens": [3]}, "1 limits for 2 slots"),
        ({"max_new_tokens": [3, 0]}, "limit of 0 new tokens"),
        ({"first_token_range": (150, 150)}, "allows no first token"),
        ({"first_token_range": (0, NUM_CONTROL_IDS)}, "allows no first token"),
        ({"first_token_range": (V, V + 5)}, "allows no first token"),
    ],
)
def test_prompts_that_cannot_be_drawn_for_are_refused(
    sampler: Sampler, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        sampler.sample([GOOD, GOOD._replace(**changes)], [0, 1])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"mode": "both"}, "mode is 'both': use one of slots, list, beam"),
        ({"num_lists": 0}, "num_lists is 0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"random": [1, 2]}, "2 seeds for 1 prompts"),
    ],
)
def test_settings_out_of_range_are_refused(
    sampler: Sampler, settings: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        sampler.sample([GOOD], **{"random": [0], **settings})


def test_a_model_that_diverged_is_refused() -> None:
    model = model_of(LlamaConfig(head_dim=16))
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        Sampler(model).sample([GOOD], [0])


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        ([[[[140, 141], [150, 0]]]], r"shape \(1, 1, 2, 2\): 2 prompts of 2 slots"),
        ([[[[140, 0, 141], [150, 0, 0]]]] * 2, "between its tokens"),
        ([[[[140, 127, 0], [150, 0, 0]]]] * 2, "control ids"),
        ([[[[140, V, 0], [150, 0, 0]]]] * 2, "outside of the vocabulary"),
        ([[[[EOS_ID, 0, 0], [150, 0, 0]]]] * 2, "begins with an id outside"),
        ([[[[140, SEP_ID, SEP_ID], [150, 0, 0]]]] * 2, "begins with an id outside"),
    ],
)
def test_lists_that_are_never_drawn_are_refused(model: Any, ids: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        list_logprobs(model, [GOOD, GOOD], torch.tensor(ids))
