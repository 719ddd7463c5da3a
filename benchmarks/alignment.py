"""Speed of drawing and learning in alignment, against transformers alone, on the same prompts.

    python -m benchmarks.alignment --run runs/demo --size small

Both hold the same model (random weights unless the run has a generator of that size), find texts
of the same logged prompts with a beam search, and learn from the same texts by the same objective
(`pl`). Ours reads a prompt once for all of its beams and, packed, once for all of its texts; the
reference's probabilities are those that texts were found with. The plain one calls `generate` with
as many returned sequences as beams, and then, as scripts for preference optimisation do, has a row
per text, prompt included, padded to the longest of its batch, and runs policy and reference on it
in every step. Steps alternate. The last line of stdout is JSON: medians, and `ratio_*` of times in
the same turn (above 1: ours is faster); `loss_difference` is what the two losses of a batch differ
by at most, and `texts_in_common` how many of the texts that one finds the other finds, too (random
weights have near ties, and the rival scores texts that are over differently).
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, set_seed

from benchmarks.plain.models import left_padded
from engine.execution.cpu import num_usable_cpus
from engine.formats.vocabulary import EOS_ID, NUM_CONTROL_IDS, SEP_ID
from train.alignment.objectives import pl
from train.alignment.policy import PreferenceBatch, PreferenceLoss
from train.alignment.prompts import PromptSource
from train.generation.generator import read_prompts
from train.generation.likelihood import list_logprobs
from train.generation.sampler import ListPrompt, Sampler
from train.models.backbone import llama_config, shapes_of
from train.retrieval.encoder import padded
from train.settings import AlignmentConfig, Size

_SCENARIO = "suggestion"  # its texts may begin with any id, so `generate` needs no constraint
_PAD = 0


def prompts_of(run: Path, num_prompts: int) -> list[ListPrompt]:
    """Returns logged prompts, without those of other panels, shortest first."""
    prompts = read_prompts(run)
    source = PromptSource(run / "mined", prompts, mode="beam", cold_share=0.3, max_edges=32, seed=0)
    found = source.draw("train", num_prompts * len(prompts.scenarios), 0)
    kept = [p.drawn for p in found if p.scenario.name == _SCENARIO][:num_prompts]
    if len(kept) < num_prompts:
        raise ValueError(f"{run}: has {len(kept)} prompts, {num_prompts} are needed")
    return sorted(kept, key=lambda p: len(p.ids))


def model_of(run: Path, size: Size, vocabulary: int) -> Any:
    """Returns the run's generator if it has one of that size, else a random one."""
    config = llama_config(shapes_of(size).generator, vocabulary)
    if (run / "generator/config.json").is_file():
        model: Any = AutoModelForCausalLM.from_pretrained(run / "generator", dtype=torch.float32)
        if model.config.hidden_size == config.hidden_size:
            return model
    set_seed(0)
    return LlamaForCausalLM(config)


def plain_texts(model: Any, prompts: Sequence[ListPrompt], width: int) -> Tensor:
    """Returns the texts that `generate` finds, int64 (B, width, N)."""
    rows, mask = left_padded([[*p.ids, p.slots[0]] for p in prompts])
    num_new = prompts[0].max_new_tokens[0]
    ends = [EOS_ID, SEP_ID]
    found = model.generate(
        rows,
        attention_mask=mask,
        num_beams=width,
        num_return_sequences=width,
        do_sample=False,
        length_penalty=0.0,
        max_new_tokens=num_new,
        eos_token_id=ends,
        pad_token_id=_PAD,
        suppress_tokens=[i for i in range(NUM_CONTROL_IDS) if i not in ends],
    )[:, rows.shape[1] :]
    texts = torch.full((len(found), num_new), _PAD)
    is_end = torch.isin(found, torch.tensor(ends))
    is_over = is_end.cumsum(1) - is_end.long() > 0  # it repeats the end where a batch goes on
    texts[:, : found.shape[1]] = found.masked_fill(is_over, _PAD)
    return texts.view(len(prompts), width, num_new)


def plain_loss(
    policy: Any, reference: Any, prompts: Sequence[ListPrompt], batch: PreferenceBatch, beta: float
) -> Tensor:
    """Returns the same loss as ours, a row per text, both models at once."""
    texts = [
        [[i for i in ids_N.tolist() if i != _PAD] for ids_N in ids_JSN[:, 0]]
        for ids_JSN in batch.ids
    ]
    rows = [
        [*p.ids, p.slots[0], *text] for p, own in zip(prompts, texts, strict=True) for text in own
    ]
    inputs = padded(rows)
    ids, length = inputs["input_ids"], inputs["input_ids"].shape[1]
    is_text = torch.zeros(ids.shape, dtype=torch.bool)
    lengths = [len(text) for own in texts for text in own]
    for row, (size, whole) in enumerate(zip(lengths, map(len, rows), strict=True)):
        is_text[row, whole - size : whole] = True

    first = int(is_text.nonzero()[:, 1].min())  # before it no row has a text: no logits needed

    def logprobs(model: Any) -> Tensor:
        output = model(**inputs, logits_to_keep=length - first + 1)
        logits = output.logits[:, :-1, NUM_CONTROL_IDS:]
        chosen = (ids[:, first:] - NUM_CONTROL_IDS).clamp(min=0)
        found = logits.log_softmax(-1).gather(2, chosen[:, :, None])[:, :, 0]
        return (found * is_text[:, first:]).sum(1).view(batch.reward.shape)

    with torch.no_grad():
        reference_BJ = logprobs(reference)
    return pl(beta * (logprobs(policy) - reference_BJ), batch.reward).mean()


class Step(NamedTuple):
    """What one step came to, with our way and the plain one."""

    took_s: dict[str, float]  # "draw_ours", "draw_plain", "learn_ours", "learn_plain"
    num_tokens: int  # of all texts
    loss_difference: float
    texts_in_common: float


class Contest:
    """Draws and learns with both, on the same prompts and weights."""

    def __init__(self, run: Path, size: Size, *, width: int, num_beams: int) -> None:
        """Loads the models.

        Args:
            run: that is mined.
            size: of the models.
            width: texts of a prompt.
            num_beams: of a search as it is served.

        Raises:
            ValueError: `width` is no multiple of `num_beams`.
        """
        if width % num_beams:
            raise ValueError(f"--width is {width}: a multiple of {num_beams}, the texts of a list")
        self._width, self._num_lists = width, width // num_beams
        vocabulary = read_prompts(run).renderer.vocabulary.size
        self._models: dict[str, Any] = {}
        for name, attention in (("ours", "eager"), ("plain", "sdpa")):  # each its faster one on CPU
            self._models[name] = model_of(run, size, vocabulary)
            self._models[name].set_attn_implementation(attention)
        self._references = {name: _moved(model) for name, model in self._models.items()}
        self._sampler = Sampler(self._models["ours"].eval())
        self._config = AlignmentConfig()
        self._loss_of = PreferenceLoss(self._models["ours"].train(), self._config)

    def step(self, prompts: Sequence[ListPrompt]) -> Step:
        """Returns how long a batch of prompts took, and whether both came to the same."""
        zeros, ours, plain = [0] * len(prompts), self._models["ours"], self._models["plain"]
        draw_ours_s, lists = _timed(
            lambda: self._sampler.sample(
                prompts, zeros, mode="beam", num_lists=self._num_lists, temperature=0.0
            )
        )
        draw_plain_s, rivals = _timed(lambda: plain_texts(plain, prompts, self._width))
        texts = lists.ids.flatten(1, 2)
        batch = self._batch(prompts, texts)
        learn_ours_s, loss = _timed(lambda: _learnt(self._loss_of(batch)["loss"]))
        learn_plain_s, rival = _timed(
            lambda: _learnt(
                plain_loss(plain, self._references["plain"], prompts, batch, beta=self._config.beta)
            )
        )
        for model in (ours, plain):
            model.zero_grad()
        return Step(
            took_s={
                "draw_ours": draw_ours_s,
                "draw_plain": draw_plain_s,
                "learn_ours": learn_ours_s,
                "learn_plain": learn_plain_s,
            },
            num_tokens=int((texts != _PAD).sum()),
            loss_difference=abs(float(loss - rival)),
            texts_in_common=_in_common(texts, rivals),
        )

    def _batch(self, prompts: Sequence[ListPrompt], texts: Tensor) -> PreferenceBatch:
        """Returns texts, (B, W, N), with a reward that falls by their order."""
        alone = [
            p._replace(slots=p.slots[:1], max_new_tokens=p.max_new_tokens[:1]) for p in prompts
        ]
        ids_BJSN = texts[:, :, None]
        with torch.no_grad():
            reference = list_logprobs(self._references["ours"], alone, ids_BJSN).sum((2, 3))
        reward = torch.arange(self._width, 0, -1.0).expand(len(alone), self._width)
        return PreferenceBatch(
            prompts=alone,
            ids=ids_BJSN,
            is_preferred=ids_BJSN != _PAD,
            reference=reference,
            reward=reward,
        )


def compare(arguments: argparse.Namespace) -> dict[str, float | int | str]:
    """Runs both and returns the figures."""
    torch.set_num_threads(arguments.threads)
    prompts = prompts_of(arguments.run, arguments.prompts * arguments.steps)
    size, num_beams = arguments.prompts, len(prompts[0].slots)
    contest = Contest(arguments.run, arguments.size, width=arguments.width, num_beams=num_beams)
    steps: list[Step] = []
    for number in (0, *range(arguments.steps)):  # the first batch twice: once to warm up
        steps.append(contest.step(prompts[number * size : (number + 1) * size]))
        print(f"step {len(steps) - 1}: {steps[-1].took_s}", file=sys.stderr)
    return {
        "size": arguments.size,
        "threads": arguments.threads,
        "prompts": size,
        "texts": arguments.width,
        "loss_difference": max(step.loss_difference for step in steps),
        "texts_in_common": round(statistics.fmean(step.texts_in_common for step in steps), 3),
        **_rates(steps[1:], num_texts=size * arguments.width, num_beams=num_beams),
    }


def _rates(steps: Sequence[Step], *, num_texts: int, num_beams: int) -> dict[str, float]:
    """Returns medians over steps."""
    num_tokens = [step.num_tokens for step in steps]
    times = {name: [step.took_s[name] for step in steps] for name in steps[0].took_s}
    figures = {"tokens_a_text": round(statistics.fmean(num_tokens) / num_texts, 2)}
    for who in ("ours", "plain"):
        draw_s, learn_s = times[f"draw_{who}"], times[f"learn_{who}"]
        times[f"both_{who}"] = [a + b for a, b in zip(draw_s, learn_s, strict=True)]
        rates = [n / s for n, s in zip(num_tokens, learn_s, strict=True)]
        figures[f"{who}_lists_per_s"] = round(num_texts / num_beams / statistics.median(draw_s), 2)
        figures[f"{who}_tokens_per_s"] = round(statistics.median(rates), 1)
    for part in ("draw", "learn", "both"):
        pairs = zip(times[f"{part}_plain"], times[f"{part}_ours"], strict=True)
        figures[f"ratio_{part}"] = round(statistics.median(p / o for p, o in pairs), 2)
    return figures


def _learnt(loss: Tensor) -> Tensor:
    """Returns the loss once its gradients are there."""
    loss.backward()
    return loss.detach()


def _in_common(ours: Tensor, plain: Tensor) -> float:
    """Returns the share of our texts, (B, W, N), that the rival has found as well."""
    shares = [
        len({*map(tuple, a)} & {*map(tuple, b)}) / len({*map(tuple, a)})
        for a, b in zip(ours.tolist(), plain.tolist(), strict=True)
    ]
    return statistics.fmean(shares)


def _moved(model: Any) -> Any:
    """Returns a model nearby: equal models have the same loss whatever their probabilities are."""
    moved = copy.deepcopy(model).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in moved.parameters():
            weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=random)
    return moved


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started_s = time.perf_counter()
    result = run()
    return time.perf_counter() - started_s, result


def main() -> None:
    """Reads the arguments, prints the JSON line."""
    parser = argparse.ArgumentParser(description="Speed of alignment against transformers alone.")
    parser.add_argument("--run", type=Path, required=True, help="a run that is mined")
    parser.add_argument("--size", default="small", choices=("tiny", "demo", "small"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=8, help="of a step (8)")
    parser.add_argument("--width", type=int, default=16, help="texts of a prompt (16)")
    parser.add_argument("--threads", type=int, default=num_usable_cpus())
    try:
        print(json.dumps(compare(parser.parse_args())))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
