"""The loss on preferences: what it starts from, where it pushes, and what it leaves alone."""

import copy
import math
from pathlib import Path
from zlib import crc32

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.formats.vocabulary import FIRST_TEXT_ID, SEP_ID
from tests.train.conftest import topic_queries
from train.alignment.objectives import OBJECTIVES
from train.alignment.policy import PreferenceBatch, PreferenceBatches, PreferenceLoss
from train.alignment.preferences import Preference, prefer
from train.alignment.prompts import PromptSource, render
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


def batch_of(model, source: PromptSource) -> PreferenceBatch:
    """Three lists each of four prompts, as they were drawn, with made-up rewards."""
    asked = [p for p in source.draw("train", 12, 0) if p.scenario.name == "suggestion"][:4]
    drawn = [p.drawn for p in asked]
    lists = Sampler(model).sample(drawn, [5] * 4, num_lists=3)
    return PreferenceBatch(
        prompts=drawn,
        ids=lists.ids,
        is_preferred=lists.ids != 0,
        reference=lists.logprobs.sum((2, 3)),
        reward=torch.tensor([[0.3, 0.2, 0.1]] * 4),
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
            expected = list_logprobs(model, batch.prompts, batch.ids).sum((2, 3))
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
    gained = moved - batch.reference
    assert (gained[:, 0] > gained[:, 2]).all()


@pytest.mark.parametrize("mode", ["slots", "list"])
def test_auxiliary_texts_are_anchored_and_not_preferred(
    model, trained_run: Path, mode: str
) -> None:
    prompts = read_prompts(trained_run)
    queries = [queries[0] for queries in topic_queries()[:4]]
    asked = [render(prompts, mode, "clarification", query, []) for query in queries]
    draw = Drawer(prompts.renderer.vocabulary, mode=mode, bf16=False, seed=0)
    reward_J = torch.tensor([0.3, 0.2, 0.1])
    torch.manual_seed(0)
    preferences: list[Preference] = []
    for drawn in draw(model, asked, num_lists=3, seed=0, temperature=1.0):
        ids_KSN, logprobs_KS = drawn.ids_KSN, drawn.logprobs_KS
        if mode == "list":  # in which the model has not learnt to write several texts
            ids_KSN = torch.zeros_like(ids_KSN)
            ids_KSN[:, 0, :8] = torch.randint(FIRST_TEXT_ID, model.config.vocab_size, (3, 8))
            ids_KSN[:, 0, [2, 5]] = SEP_ID
            with torch.no_grad():
                logprobs_KS = list_logprobs(model, [drawn.prompt.drawn], ids_KSN[None])[0].sum(2)
        preferences.append(Preference(drawn.prompt, ids_KSN, logprobs_KS, reward_J))
    (batch,) = PreferenceBatches(model, preferences, 4, 0)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        then, now = (list_logprobs(m, batch.prompts, batch.ids) for m in (model, moved))
    s_BJ = torch.zeros(batch.reward.shape)
    num_others = 0
    for b, j, s in torch.cartesian_prod(*map(torch.arange, batch.ids.shape[:3])).tolist():
        ids_N = batch.ids[b, j, s].tolist()
        first = 0 if s else len(ids_N)
        if mode == "list" and SEP_ID in ids_N:
            first = ids_N.index(SEP_ID) + 1
        num_others += sum(i != 0 for i in ids_N[first:])
        s_BJ[b, j] += 0.3 * (now[b, j, s, first:] - then[b, j, s, first:]).sum()
    assert 0 < num_others < int((batch.ids != 0).sum())
    expected = OBJECTIVES["dpo"](s_BJ, batch.reward).mean().item()
    assert loss_of(moved, batch, beta=0.3).item() == pytest.approx(expected, abs=1e-4)
    best = -(now[:, 0].sum() / (batch.ids[:, 0] != 0).sum()).item()
    anchored = loss_of(moved, batch, beta=0.3, anchor_weight=1.0).item()
    assert anchored == pytest.approx(expected + best, abs=1e-4)
