"""What tests of examples and of the sampler share."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from engine.formats.manifest import PromptSpec
from engine.formats.prompt import ANSWER, COOCCURRING, SESSION
from engine.formats.vocabulary import FIRST_TEXT_ID
from train.generation.examples import ExampleConfig
from train.generation.sampler import ListPrompt, Sampler
from train.settings import default_scenarios

SCENARIOS = [s.spec([1.0, 0.5]) for s in default_scenarios()]
V = 256  # ids of the sampler's models
SIZES = {
    "vocab_size": V, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128,
}  # fmt: skip


def configured(cold_share: float = 0.0, *, samples_completions: bool = False) -> ExampleConfig:
    prompt = PromptSpec(side_information_kinds=[SESSION, ANSWER, COOCCURRING])
    return ExampleConfig(
        scenarios=SCENARIOS,
        prompt=prompt,
        cold_share=cold_share,
        max_contexts_per_query=64,
        samples_completions=samples_completions,
    )


def model_of(config: Any, vocabulary: int = V) -> Any:
    """Returns a model with weights that are large enough to make its choices differ."""
    for name, size in {**SIZES, "vocab_size": vocabulary}.items():
        setattr(config, name, size)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return model_of(LlamaConfig(head_dim=16))


@pytest.fixture(scope="module")
def sampler(model: Any) -> Sampler:
    return Sampler(model)


def prompts_of(num: int, seed: int = 0, num_slots: int = 3) -> list[ListPrompt]:
    """Returns prompts of different lengths, limits and ranges."""
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, count: int) -> list[int]:
        return torch.randint(low, high, (count,), generator=generator).tolist()

    return [
        ListPrompt(
            integers(0, V, length),
            integers(4, 20, num_slots),
            integers(1, 8, num_slots),
            (first, min(V, first + size)),
        )
        for length, first, size in zip(
            integers(1, 14, num), integers(FIRST_TEXT_ID, V, num), integers(1, 90, num), strict=True
        )
    ]
