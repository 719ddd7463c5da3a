"""List-wise alignment of the generator with the click model, in rounds.

A round draws lists for logged prompts from the policy as it is, has the click model judge their
texts, and updates the policy on which lists are worth more (GQR, arXiv 2504.10208, with the click
model as a process reward model over the texts of a list). What the round began with is its
reference. A round counts only as far as it helps on held-out prompts, still writes what users
clicked there, and stays near its reference (`guard.py`): of the way from old to new weights, the
longest part that does all three is taken.

Knows nothing of how prompts, rewards or losses are made.
"""

# J lists of a prompt that are learnt from
import copy
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from transformers import AutoModelForCausalLM, set_seed

from train.alignment.guard import STEPS, Asked, refusal
from train.alignment.history import AlignmentMetrics, Round, last_round, rounds_of, save
from train.alignment.policy import update
from train.alignment.preferences import Preference, prefer, prefer_texts
from train.alignment.prompts import PromptSource
from train.alignment.quality import HeldOut, Measured, by_scenario, list_rewards
from train.alignment.rollouts import Drawer, Drawn, Worth, judge_lists
from train.clicks.calibration import read_examination
from train.clicks.judge import ClickJudge, Judge
from train.generation.generator import METRICS, RunPrompts
from train.models.trained import load_trained
from train.settings import AlignmentConfig

T = TypeVar("T")
Report = Callable[[str], None]


class Aligner:
    """Aligns the generator of one run directory."""

    def __init__(
        self,
        prompts: RunPrompts,
        source: PromptSource,
        judge: Judge,
        seen: dict[str, list[float]],
        config: AlignmentConfig,
        *,
        mode: str,
        seed: int,
        is_guarded: bool = True,
        report: Report = print,
    ) -> None:
        """Takes the parts.

        Args:
            prompts: scenarios and vocabulary of the run.
            source: of prompts.
            judge: the click model.
            seen: scenario -> p(seen) by position.
            config: how to align.
            mode: "slots", "list" or "beam".
            seed: of what is drawn and of the order.
            is_guarded: whether rounds that do not help are taken back; else all count whole.
            report: called with what is being done.
        """
        self._vocabulary = prompts.renderer.vocabulary
        self._source, self._judge, self._seen = source, judge, seen
        self._config, self._mode, self._seed, self._report = config, mode, seed, report
        self._is_guarded = is_guarded
        self._draw = Drawer(self._vocabulary, mode=mode, bf16=config.bf16, seed=seed)
        valid = source.draw("valid", config.num_valid_prompts, 0)
        self._heldout = HeldOut(valid, self._draw, self._worth, seen)

    @property
    def is_first_process(self) -> bool:
        """Whether this process writes the results; the others hold the same ones."""
        return self._draw.is_first_process

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._draw.device

    def agreed(self, value: T) -> T:
        """Returns the first process' value to all, once all have come here."""
        return self._draw.agreed(value)

    def round(self, model: Any, number: int, checkpoints: Path) -> Round:
        """Runs one round and returns how it went; the model is changed in place.

        A later round whose lists are all worth the same has nothing to teach, and changes nothing.

        Raises:
            ValueError: in the first round, no prompt has lists that differ in reward.
        """
        config = self._config
        prompts = self._source.draw("train", config.num_prompts, number)
        self._report(f"round {number + 1}: {config.num_lists} lists for {len(prompts)} prompts")
        begun_s = time.monotonic()
        # In beam form the texts to put in order are those of one wide search.
        temperature = 0.0 if self._mode == "beam" else config.temperature
        drawn = self._draw(
            model, prompts, num_lists=config.num_lists, seed=number, temperature=temperature
        )
        drawn_s = time.monotonic()
        worth = self._draw.agreed(self._worth(drawn))
        preferences = [
            preference
            for d, w in zip(drawn, worth, strict=True)
            if (preference := self._prefer(d, w)) is not None
        ]
        if not preferences and number == 0:
            raise ValueError(
                f"none of {len(prompts)} prompts has lists that differ in "
                "reward: raise alignment.temperature or num_lists, lower min_gap, or look at the "
                "click model"
            )
        judged_s = time.monotonic()
        before = self._heldout.quality(model, None)
        num_steps, step, after = 0, 0.0, before
        update_s = 0.0
        if preferences:
            num_of = Counter(p.prompt.scenario.name for p in preferences)
            names = dict.fromkeys(p.scenario.name for p in prompts)
            each = ", ".join(f"{num_of[name]} {name}" for name in names)
            self._report(f"round {number + 1}: learning from {len(preferences)} prompts ({each})")
            started_s = time.monotonic()
            reference = copy.deepcopy(model).eval()
            num_steps = update(
                model,
                preferences,
                config,
                seed=self._seed + number,
                checkpoints=checkpoints / f"round_{number}",
            )
            update_s = time.monotonic() - started_s
            reference.to(model.device)  # the update may have moved the model to a GPU
            step, after = self._accepted(model, reference, before)
        return Round(
            num_prompts=len(prompts),
            num_equal=len(prompts) - len(preferences),
            num_lists=len(prompts) * config.num_lists,
            draw_s=round(drawn_s - begun_s, 2),
            judge_s=round(judged_s - drawn_s, 2),
            update_s=round(update_s, 2),
            num_steps=num_steps,
            mean_reward=by_scenario(list_rewards(drawn, worth, self._seen)),
            gap=by_scenario(
                [(p.prompt, float(p.reward_J[0] - p.reward_J[-1])) for p in preferences]
            ),
            before=before.by_scenario,
            after=after.by_scenario,
            step=step,
        )

    def _worth(self, drawn: Sequence[Drawn]) -> list[Worth]:
        config = self._config
        return judge_lists(
            self._judge, drawn, level=config.pessimism, relevance_floor=config.relevance_floor
        )

    def _prefer(self, drawn: Drawn, worth: Worth) -> Preference | None:
        config = self._config
        if self._mode == "beam":
            return prefer_texts(
                drawn,
                worth,
                confidence=config.confidence,
                num_kept=config.num_kept,
                min_gap=config.min_gap,
            )
        return prefer(
            drawn,
            worth,
            self._seen.get(drawn.prompt.scenario.name, ()),
            self._vocabulary.bytes_of,
            confidence=config.confidence,
            num_kept=config.num_kept,
            min_gap=config.min_gap,
        )

    def _accepted(self, model: Any, reference: Any, before: Measured) -> tuple[float, Measured]:
        """Sets the model to the longest part of the way that may be taken."""
        if not self._is_guarded:
            return 1.0, self._heldout.quality(model, reference)
        prompts = self._heldout.prompts
        asked = Asked([p.scenario.name for p in prompts], [p.query for p in prompts])
        new = {name: value.clone() for name, value in model.state_dict().items()}
        old = reference.state_dict()
        for step in STEPS:
            model.load_state_dict(
                {name: torch.lerp(old[name], value, step) for name, value in new.items()}
            )
            after = self._heldout.quality(model, reference)
            why_not = self._draw.agreed(refusal(asked, before, after, self._config.max_kl))
            if not why_not:
                return step, after
            self._report(f"{step:g} of the way is not taken: {why_not}")
        model.load_state_dict(old)
        return 0.0, before


def align(
    run: Path,
    config: AlignmentConfig,
    prompts: RunPrompts,
    *,
    max_edges: int,
    seed: int,
    output: Path,
    judge: Judge | None = None,
    is_guarded: bool = True,
    report: Report = print,
) -> AlignmentMetrics:
    """Aligns `run`/generator and writes the model and metrics.json into `output`.

    An interrupted call goes on with the round that it was in. Called by several processes of one
    process group, they share the work: each draws and learns from a part of the lists.

    Args:
        run: run directory with mined/, tokenizer.json, generator/ and click_model/.
        config: how to align.
        prompts: of the run.
        max_edges: of the index.
        seed: of all that is random.
        output: directory.
        judge: in place of the run's click model.
        is_guarded: whether rounds that do not help are taken back; else all count whole.
        report: called with what is being done.

    What only resuming needs stays in `output`/checkpoints.

    Raises:
        ValueError: there is no click model, it prefers nothing, no prompt has lists that differ,
            or generator and tokenizer are not of one run.
    """
    set_seed(seed)
    judge = judge or ClickJudge(run, max_edges=max_edges)
    seen = read_examination(run)
    taught = msgspec.json.decode((run / "generator" / METRICS).read_bytes())["mode"]
    mode = "slots" if taught == "both" else taught
    if mode != "beam" and not config.anchor_weight:
        report(
            f"alignment.anchor_weight is 0: without an anchor, lists in {mode} form end in texts "
            "that repeat one another; 1 is better"
        )
    source = PromptSource(
        run / "mined",
        prompts,
        mode=mode,
        cold_share=config.cold_share,
        max_edges=max_edges,
        seed=seed,
    )
    aligner = Aligner(
        prompts,
        source,
        judge,
        seen,
        config,
        mode=mode,
        seed=seed,
        is_guarded=is_guarded,
        report=report,
    )
    checkpoints = output / "checkpoints"
    last = aligner.agreed(last_round(checkpoints))
    done = rounds_of(last) if last else []
    model = _load(last or run / "generator", prompts.renderer.vocabulary.size)
    model.to(aligner.device)
    for number in range(len(done), config.num_rounds):
        done.append(aligner.round(model, number, checkpoints))
        metrics = AlignmentMetrics(mode=taught, objective=config.objective, rounds=done)
        if aligner.is_first_process:
            save(model, metrics, checkpoints)
        report(f"round {number + 1}: {done[-1].describe()}")
    if aligner.is_first_process and (last := last_round(checkpoints)):
        shutil.copytree(last, output, dirs_exist_ok=True)
    return AlignmentMetrics(mode=taught, objective=config.objective, rounds=done)


def _load(directory: Path, vocab_size: int) -> Any:
    model = load_trained(AutoModelForCausalLM, directory)
    if model.config.vocab_size != vocab_size:
        raise ValueError(
            f"{directory}: has {model.config.vocab_size} token embeddings, the tokenizer "
            f"{vocab_size}: they are not of one training run"
        )
    if not torch.cuda.is_available():
        model.set_attn_implementation("eager")  # faster backward, see train.generation.generator
    return model
