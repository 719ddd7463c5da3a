"""Rounds of alignment on a run where the truth is known: the second word of a text decides."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.train.conftest import ATTRACTION, word
from train.alignment.history import AlignmentMetrics
from train.alignment.prompts import PromptSource
from train.alignment.rollouts import read_lists
from train.alignment.rounds import align
from train.clicks.judge import Judge, Judgement
from train.clicks.uncertainty import load_uncertainty, save_uncertainty
from train.generation.generator import read_prompts, train_generator
from train.generation.sampler import Sampler
from train.models.backbone import shapes_of
from train.report.placebo import PlaceboJudge
from train.settings import AlignmentConfig, GeneratorConfig

WORTH = {word(90000 + i): a for i, a in enumerate(ATTRACTION)}
CONFIG = AlignmentConfig(
    num_rounds=1,
    num_prompts=192,
    num_valid_prompts=60,
    num_lists=6,
    num_kept=4,
    beta=0.1,
    anchor_weight=1.0,
    learning_rate=2e-3,
    batch_size=8,
    cold_share=1.0,
    objective="dpo",
)


class Indifferent:
    """A judge for whom nothing is worth anything."""

    def __call__(self, questions: Any, *, level: float) -> list[Judgement]:
        none = [np.zeros(len(asked.texts)) for asked in questions]
        return [Judgement(zeros, zeros, zeros > 0) for zeros in none]


def aligned(
    run: Path,
    output: Path,
    judge: Judge | None = None,
    is_guarded: bool = True,
    **changes: Any,
) -> AlignmentMetrics:
    fields = {f: getattr(CONFIG, f) for f in CONFIG.__struct_fields__}
    output.mkdir(exist_ok=True)
    return align(
        run,
        AlignmentConfig(**{**fields, **changes}),
        read_prompts(run),
        max_edges=32,
        seed=0,
        output=output,
        judge=judge,
        is_guarded=is_guarded,
        report=lambda _: None,
    )


def true_worth(run: Path, directory: Path, mode: str = "slots") -> float:
    """Mean attraction of the distinct texts that the generator would serve for held-out prompts."""
    prompts = read_prompts(run)
    source = PromptSource(run / "mined", prompts, mode=mode, cold_share=1.0, max_edges=32, seed=0)
    asked = [p for p in source.draw("valid", 90, 0) if p.scenario.name == "suggestion"]
    sampler = Sampler(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32))
    lists = sampler.sample([p.drawn for p in asked], [0] * len(asked), mode=mode, temperature=0)
    drawn = read_lists(prompts.renderer.vocabulary, asked, lists, is_list=False)
    worth = [
        sum(WORTH.get(t.split()[-1], 0.0) for t in {t for texts in d.texts_KS[0] for t in texts})
        for d in drawn
    ]
    return float(np.mean(worth))


@pytest.fixture(scope="module")
def once(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    output = tmp_path_factory.mktemp("aligned") / "aligned"
    return output, aligned(trained_run, output)


def test_a_round_raises_what_is_true_and_not_only_what_the_click_model_says(
    trained_run: Path, once: tuple[Path, AlignmentMetrics]
) -> None:
    output, metrics = once
    (done,) = metrics.rounds
    assert done.step > 0
    assert done.after["suggestion"].reward > done.before["suggestion"].reward
    before = true_worth(trained_run, trained_run / "generator")
    assert true_worth(trained_run, output) > 1.05 * before


def test_a_round_says_how_it_went(once: tuple[Path, AlignmentMetrics]) -> None:
    output, metrics = once
    (done,) = metrics.rounds
    assert done.num_lists == 6 * done.num_prompts
    assert 0 <= done.num_equal < done.num_prompts
    assert done.num_steps >= (done.num_prompts - done.num_equal) / 8
    assert 0 < done.after["suggestion"].kl < CONFIG.max_kl
    assert done.gap["suggestion"] > 0
    written = json.loads((output / "metrics.json").read_text())
    assert written["mode"] == "slots"
    assert len(written["rounds"]) == 1
    assert not list(output.glob("checkpoints/round_*"))


def test_an_interrupted_alignment_goes_on_with_the_next_round(
    trained_run: Path, tmp_path: Path
) -> None:
    settings = {"num_prompts": 64, "min_gap": 0.002}
    aligned(trained_run, tmp_path / "resumed", **settings)
    torn = tmp_path / "resumed/checkpoints/finished_2.partial"  # killed while it was written
    torn.mkdir()
    (torn / "config.json").write_text("{")
    (tmp_path / "resumed/model.safetensors").unlink()  # what counts is the checkpoint
    resumed = aligned(trained_run, tmp_path / "resumed", num_rounds=2, **settings)
    whole = aligned(trained_run, tmp_path / "whole", num_rounds=2, **settings)
    assert resumed.rounds[1].num_steps > 0
    assert [r.after for r in resumed.rounds] == [r.after for r in whole.rounds]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("resumed", "whole")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-6, rtol=0)


def test_a_round_that_leaves_its_reference_too_far_behind_is_refused(
    trained_run: Path, tmp_path: Path
) -> None:
    metrics = aligned(trained_run, tmp_path / "refused", max_kl=1e-3, learning_rate=5e-3)
    (done,) = metrics.rounds
    assert done.step == 0
    assert done.after == done.before
    assert "1 refused" in metrics.describe()
    before = load_file(trained_run / "generator/model.safetensors")
    for name, tensor in load_file(tmp_path / "refused/model.safetensors").items():
        assert torch.equal(tensor, before[name])


def test_without_a_guard_the_whole_way_is_taken_whatever_it_comes_to(
    trained_run: Path, tmp_path: Path
) -> None:
    (done,) = aligned(
        trained_run, tmp_path / "out", PlaceboJudge(seed=0), is_guarded=False, max_kl=1e-3
    ).rounds
    assert done.step == 1
    assert done.after["suggestion"].kl > 1e-3
    before = load_file(trained_run / "generator/model.safetensors")
    after = load_file(tmp_path / "out/model.safetensors")
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("objective", ["pl", "lipo", "sdpo", "ctr-dpo"])
def test_every_objective_raises_the_reward(
    trained_run: Path, tmp_path: Path, objective: str
) -> None:
    metrics = aligned(trained_run, tmp_path / "out", objective=objective)
    (done,) = metrics.rounds
    assert done.step > 0
    assert done.after["suggestion"].reward > done.before["suggestion"].reward


@pytest.fixture(scope="module")
def beam_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("beam") / "run"))
    shutil.rmtree(run / "generator")
    (run / "generator").mkdir()
    train_generator(
        run,
        GeneratorConfig(mode="beam", num_epochs=3, batch_size=32, learning_rate=5e-3),
        shape=shapes_of("tiny").generator,
        seed=0,
        output=run / "generator",
    )
    return run


def test_in_beam_form_the_texts_of_one_search_are_put_in_a_better_order(
    beam_run: Path, tmp_path: Path
) -> None:
    metrics = aligned(
        beam_run, tmp_path / "out", num_lists=2, num_kept=16, objective="pl", anchor_weight=0.0
    )
    (done,) = metrics.rounds
    assert metrics.mode == "beam"
    assert done.step > 0
    assert done.after["suggestion"].distinct == pytest.approx(8, abs=0.5)
    assert done.after["suggestion"].reward > done.before["suggestion"].reward
    before = true_worth(beam_run, beam_run / "generator", "beam")
    assert true_worth(beam_run, tmp_path / "out", "beam") > 1.05 * before


def test_a_round_that_forgets_what_users_clicked_is_refused(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = read_prompts(trained_run).renderer.vocabulary
    sampler = Sampler(
        AutoModelForCausalLM.from_pretrained(trained_run / "generator", dtype=torch.float32)
    )
    draw = PromptSource.draw

    def as_if_all_was_clicked(source: PromptSource, split: str, *rest: int) -> list[Any]:
        prompts = draw(source, split, *rest)
        clicked: list[Any] = []
        for prompt in prompts if split == "valid" else []:
            lists = sampler.sample([prompt.drawn], [0], temperature=0)
            (own,) = read_lists(vocabulary, [prompt], lists, is_list=False)
            texts = {t for texts in own.texts_KS[0] for t in texts} - {prompt.query}
            clicked.append(prompt._replace(clicked=tuple(texts)))
        return clicked or prompts

    monkeypatch.setattr(PromptSource, "draw", as_if_all_was_clicked)
    monkeypatch.setattr("train.alignment.guard._LEAST_FOUND", 0.999)
    (done,) = aligned(trained_run, tmp_path / "refused").rounds
    assert done.before["suggestion"].found == pytest.approx(1.0)
    assert done.step == 0


def changed(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may break."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_without_a_click_model_there_is_nothing_to_align_to(
    trained_run: Path, tmp_path: Path
) -> None:
    run = changed(trained_run, tmp_path)
    shutil.rmtree(run / "click_model")
    with pytest.raises(ValueError, match="there is no click model"):
        aligned(run, tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.0, "gives every .* text the same"), (float("nan"), "are not all numbers")],
)
def test_a_click_model_that_prefers_nothing_is_refused(
    trained_run: Path, tmp_path: Path, value: float, message: str
) -> None:
    run = changed(trained_run, tmp_path)
    path = run / "click_model/uncertainty.safetensors"
    uncertainty = load_uncertainty(run / "click_model")
    uncertainty.weight_E[:] = value
    path.unlink()
    save_uncertainty(uncertainty, run / "click_model")
    with pytest.raises(ValueError, match=message):
        aligned(run, tmp_path / "out")


def test_prompts_whose_lists_are_all_equal_are_counted_or_refused(
    trained_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"none of \d+ prompts has lists that differ"):
        aligned(trained_run, tmp_path / "out", Indifferent())


def test_a_later_round_without_anything_to_prefer_changes_nothing(
    trained_run: Path, once: tuple[Path, AlignmentMetrics], tmp_path: Path
) -> None:
    shutil.copytree(once[0], tmp_path / "more")
    metrics = aligned(trained_run, tmp_path / "more", Indifferent(), num_rounds=2)
    last = metrics.rounds[-1]
    assert last.num_equal == last.num_prompts
    assert (last.num_steps, last.step) == (0, 0.0)
    assert last.after == last.before
    first = load_file(once[0] / "model.safetensors")
    for name, tensor in load_file(tmp_path / "more/model.safetensors").items():
        assert torch.equal(tensor, first[name])


def test_a_generator_of_another_tokenizer_is_refused(trained_run: Path, tmp_path: Path) -> None:
    run = changed(trained_run, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(run / "generator")
    model.resize_token_embeddings(model.config.vocab_size + 64)
    model.save_pretrained(run / "generator")
    with pytest.raises(ValueError, match="they are not of one training run"):
        aligned(run, tmp_path / "out")


def test_broken_weights_are_named(trained_run: Path, tmp_path: Path) -> None:
    run = changed(trained_run, tmp_path)
    path = run / "generator/model.safetensors"
    weights = load_file(path)
    weights = {name: torch.full_like(t, float("nan")) for name, t in weights.items()}
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match="NaN or infinite"):
        aligned(run, tmp_path / "out")
