"""At temperature 0 lists are those that the reference writes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from engine.formats.vocabulary import EOS_ID, SEP_ID
from tests.train.generation.conftest import model_of, prompts_of
from train.generation.reference import decode
from train.generation.sampler import ListPrompt, Sampler

MAX_TIE_GAP = 1e-3


def check_greedy(model: Any, sampler: Sampler, prompts: Sequence[ListPrompt], mode: str) -> int:
    """Compares draws at temperature 0 with the reference; returns how many sequences were equal."""
    lists = sampler.sample(prompts, range(len(prompts)), mode=mode, temperature=0, chunk_size=5)
    num_equal = 0
    for prompt, ids_SN, logprobs_SN, ended_S in zip(
        prompts, lists.ids[:, 0], lists.logprobs[:, 0], lists.ended[:, 0], strict=True
    ):
        expected = decode(
            model, list(prompt.ids), prompt.slots, prompt.max_new_tokens,
            prompt.first_token_range, mode,
        )  # fmt: skip
        rows = zip(expected, ids_SN.tolist(), logprobs_SN, ended_S.tolist(), strict=True)
        for one, ids, logprobs_N, ended in rows:
            if min(one.gaps) < MAX_TIE_GAP:
                continue
            num_equal += 1
            assert ids == one.ids + [0] * (len(ids) - len(one.ids))
            assert float(logprobs_N.sum()) == pytest.approx(one.logprob, abs=1e-3)
            assert ended == (one.ids[-1] == EOS_ID or (mode != "list" and one.ids[-1] == SEP_ID))
    return num_equal


@pytest.mark.parametrize("mode", ["slots", "list"])
@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(head_dim=16),
        LlamaConfig(head_dim=32, attention_bias=True, mlp_bias=True),
        LlamaConfig(
            head_dim=16,
            tie_word_embeddings=True,
            rope_scaling={
                "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        ),
        Qwen2Config(),
        Qwen3Config(head_dim=32),
    ],
    ids=["llama", "biases", "tied, scaled positions", "qwen2", "qwen3"],
)  # fmt: skip
def test_temperature_0_is_the_reference(config: Any, mode: str) -> None:
    model = model_of(config)
    num_equal = check_greedy(model, Sampler(model), prompts_of(12), mode)
    assert num_equal > 30


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["slots", "list"])
def test_temperature_0_is_the_reference_on_500_prompts(
    model: Any, sampler: Sampler, mode: str
) -> None:
    assert check_greedy(model, sampler, prompts_of(500, seed=5), mode) > 1450


def as_beams(prompts: Sequence[ListPrompt], num_alone: int) -> list[ListPrompt]:
    """Gives all sequences but the first `num_alone` the same start and limit."""
    return [
        p._replace(
            slots=[*p.slots[:num_alone], *[25] * (len(p.slots) - num_alone)],
            max_new_tokens=[*p.max_new_tokens[:num_alone], *[p.max_new_tokens[-1]] * 9][
                : len(p.slots)
            ],
        )
        for p in prompts
    ]


@pytest.mark.parametrize("num_alone", [0, 1])
def test_beams_at_temperature_0_are_those_of_the_reference(
    model: Any, sampler: Sampler, num_alone: int
) -> None:
    prompts = as_beams(prompts_of(20, seed=2, num_slots=5), num_alone)
    num_equal = check_greedy(model, sampler, prompts, "beam")
    assert num_equal > 60


def test_further_lists_of_beams_hold_the_next_best_texts(sampler: Sampler) -> None:
    prompts = as_beams(prompts_of(6, seed=3, num_slots=4), 1)
    wider = [
        p._replace(
            slots=[*p.slots, *[p.slots[-1]] * 3],
            max_new_tokens=[*p.max_new_tokens, *[p.max_new_tokens[-1]] * 3],
        )
        for p in prompts
    ]
    lists = sampler.sample(prompts, [0] * 6, mode="beam", num_lists=2, temperature=0)
    both = sampler.sample(wider, [0] * 6, mode="beam", temperature=0)
    assert torch.equal(lists.ids[:, :, 1:].flatten(1, 2), both.ids[:, 0, 1:])
    assert torch.equal(lists.ids[:, 0, 0], lists.ids[:, 1, 0])


def test_prompts_that_differ_in_which_sequences_are_beams_are_refused(sampler: Sampler) -> None:
    first, second = prompts_of(2, num_slots=2)
    prompts = [first._replace(slots=[17, 17]), second._replace(slots=[16, 18])]
    with pytest.raises(ValueError, match="which sequences are beams"):
        sampler.sample(prompts, [0, 0], mode="beam", temperature=0)
