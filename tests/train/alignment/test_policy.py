"""The loss on preferences: what it starts from, where it pushes, and what it leaves alone."""

import math
from pathlib import Path
from zlib import crc32

import pytest
import torch
from transformers import AutoModelForCausalLM

from train.alignment.policy import PreferenceBatch, PreferenceBatches, PreferenceLoss
from train.alignment.preferences import prefer
from train.alignment.prompts import PromptSource
from train.alignment.rollouts import Drawer, Worth
from train.generation.generator import read_prompts
from train.generation.likelihood import list_logprobs
from train.generation.sampler import Sampler
from train.settings import AlignmentConfig


@pytest.fixture(scope="module")
def model(trained_run: Path):
    return AutoModelForCausalLM.from_pretrained(trained_run / "generator", dtype=torch.float32)


@pytest.fixture(scope="module")
def source(trained_run: Path) -> PromptSource:
    prompts = read_prompts(trained_run)
    return PromptSource(
        trained_run / "mined", prompts, mode="slots", cold_share=0.5, max_edges=32, seed=0
    )


def batch_of(model, source: PromptSource, first_preferred: int = 0) -> PreferenceBatch:
    """Three lists each of four prompts, as they were drawn, with made-up rewards."""
    asked = [p for p in source.draw("train", 12, 0) if p.scenario.name == "suggestion"][:4]
    drawn = [p.drawn for p in asked]
    lists = Sampler(model).sample(drawn, [5] * 4, num_lists=3)
    return PreferenceBatch(
        prompts=drawn,
        ids=lists.ids,
        reference=lists.logprobs.sum(3),
        reward=torch.tensor([[0.3, 0.2, 0.1]] * 4),
        first_preferred=first_preferred,
    )


def loss_of(model, batch: PreferenceBatch, **changes) -> torch.Tensor:
    config = AlignmentConfig(**{"objective": "dpo", "anchor_weight": 0.0, **changes})
    return PreferenceLoss(model, config)(batch)["loss"]


def test_the_policy_starts_as_its_own_reference(model, source: PromptSource) -> None:
    batch = batch_of(model, source)
    assert loss_of(model, batch).item() == pytest.approx(math.log(2), abs=1e-4)
    assert loss_of(model, batch, objective="pl").item() == pytest.approx(math.log(6), abs=1e-3)


def test_references_are_those_of_the_slots_that_texts_stand_in(
    model, source: PromptSource, trained_run: Path
) -> None:
    """Composed lists move texts to other slots than those that they were drawn in."""
    vocabulary = read_prompts(trained_run).renderer.vocabulary
    prompts = [p for p in source.draw("train", 12, 0) if p.scenario.name == "suggestion"][:4]
    draw = Drawer(vocabulary, mode="slots", bf16=False, seed=0)
    preferences = []
    for drawn in draw(model, prompts, num_lists=4, seed=0, temperature=1.0):
        texts = {t for texts_S in drawn.texts_KS for own in texts_S for t in own}
        value = {t: 0.01 + crc32(t.encode()) % 97 / 200 for t in sorted(texts)}
        found = prefer(
            drawn,
            Worth(value, value, dict.fromkeys(texts, True)),
            [1.0, 0.7, 0.5],
            vocabulary.bytes_of,
            confidence=0.0,
            num_kept=4,
            min_gap=0.01,
        )
        assert found is not None
        preferences.append(found)
    assert any(p.reference_JS.isnan().any() for p in preferences)
    for batch in PreferenceBatches(model, preferences, 2, 0):
        with torch.no_grad():
            expected = list_logprobs(model, batch.prompts, batch.ids).sum(3)
        torch.testing.assert_close(batch.reference, expected, atol=1e-3, rtol=1e-4)


def test_the_anchor_is_the_loss_of_the_best_list_per_token(model, source: PromptSource) -> None:
    batch = batch_of(model, source)
    with torch.no_grad():
        logprobs = list_logprobs(model, batch.prompts, batch.ids)[:, 0]
    expected = -(logprobs.sum() / (batch.ids[:, 0] != 0).sum()).item()
    difference = loss_of(model, batch, anchor_weight=2.0) - loss_of(model, batch)
    assert difference.item() == pytest.approx(2 * expected, rel=1e-4)


def test_a_step_makes_better_lists_likelier_than_worse_ones(trained_run: Path, source) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained_run / "generator", dtype=torch.float32)
    batch = batch_of(model, source)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    loss_of(model, batch).backward()
    optimizer.step()
    with torch.no_grad():
        moved = list_logprobs(model, batch.prompts, batch.ids).sum((2, 3))
    gained = moved - batch.reference.sum(2)
    assert (gained[:, 0] > gained[:, 2]).all()


def test_auxiliary_texts_are_anchored_and_not_preferred(model, source: PromptSource) -> None:
    batch = batch_of(model, source, first_preferred=1)
    other = batch.reference.clone()
    other[:, :, 0] += 3 * torch.randn(other[:, :, 0].shape, generator=torch.manual_seed(0))
    changed = PreferenceBatch(
        prompts=batch.prompts,
        ids=batch.ids,
        reference=other,
        reward=batch.reward,
        first_preferred=1,
    )
    assert loss_of(model, changed).item() == pytest.approx(loss_of(model, batch).item())
