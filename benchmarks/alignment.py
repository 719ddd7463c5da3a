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
from typing import Any

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
    source = PromptSource(run / "mined", prompts, mode="beam", cold_share=0.3, seed=0)
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


def compare(arguments: argparse.Namespace) -> dict[str, float | int | str]:
    """Runs both and returns the figures."""
    torch.set_num_threads(arguments.threads)
    vocabulary = read_prompts(arguments.run).renderer.vocabulary.size
    prompts = prompts_of(arguments.run, arguments.prompts * arguments.steps)
    size = arguments.prompts
    batches = [prompts[i * size : (i + 1) * size] for i in range(arguments.steps)]
    models: dict[str, Any] = {}
    for name, attention in (("ours", "eager"), ("plain", "sdpa")):  # each its faster one on CPU
        models[name] = model_of(arguments.run, arguments.size, vocabulary)
        models[name].set_attn_implementation(attention)
    references = {name: _moved(model) for name, model in models.items()}
    sampler = Sampler(models["ours"].eval())
    config = AlignmentConfig()
    loss_of = PreferenceLoss(models["ours"].train(), config)
    num_beams = len(prompts[0].slots)
    width = arguments.width
    if width % num_beams:
        raise ValueError(f"--width is {width}: a multiple of {num_beams}, the texts of a list")
    times: dict[str, list[float]] = {}
    num_tokens, differences, in_common = [], [], []
    for number, own in enumerate([batches[0], *batches]):
        drawn, took = {}, {}
        took["draw_ours"], lists = _timed(
            lambda own=own: sampler.sample(
                own, [0] * len(own), mode="beam", num_lists=width // num_beams, temperature=0.0
            )
        )
        drawn["ours"] = lists.ids.flatten(1, 2)
        took["draw_plain"], drawn["plain"] = _timed(
            lambda own=own: plain_texts(models["plain"], own, width)
        )
        alone = [p._replace(slots=p.slots[:1], max_new_tokens=p.max_new_tokens[:1]) for p in own]
        ids_BJSN = drawn["ours"][:, :, None]
        with torch.no_grad():
            then = list_logprobs(references["ours"], alone, ids_BJSN).sum(3)
        reward = torch.arange(width, 0, -1.0).expand(len(alone), width)
        batch = PreferenceBatch(
            prompts=alone, ids=ids_BJSN, reference=then, reward=reward, first_preferred=0
        )

        def learn_ours(batch: PreferenceBatch = batch) -> Tensor:
            loss = loss_of(batch)["loss"]
            loss.backward()
            return loss.detach()

        took["learn_ours"], loss = _timed(learn_ours)

        def learn_plain(own: Any = own, batch: Any = batch) -> Tensor:
            loss = plain_loss(models["plain"], references["plain"], own, batch, config.beta)
            loss.backward()
            return loss.detach()

        took["learn_plain"], rival = _timed(learn_plain)
        differences.append(abs(float(loss - rival)))
        in_common.append(_in_common(drawn["ours"], drawn["plain"]))
        for model in models.values():
            model.zero_grad()
        if number:  # the first is for warming up
            num_tokens.append(int((ids_BJSN != _PAD).sum()))
            for name, seconds in took.items():
                times.setdefault(name, []).append(seconds)
        print(f"step {number}: {took}", file=sys.stderr)
    figures: dict[str, float | int | str] = {
        "size": arguments.size,
        "threads": arguments.threads,
        "prompts": arguments.prompts,
        "texts": width,
        "tokens_a_text": round(sum(num_tokens) / (len(num_tokens) * arguments.prompts * width), 2),
        "loss_difference": max(differences),
        "texts_in_common": round(statistics.fmean(in_common), 3),
    }
    for who in ("ours", "plain"):
        whole = [a + b for a, b in zip(times[f"draw_{who}"], times[f"learn_{who}"], strict=True)]
        times[f"both_{who}"] = whole
        draw = statistics.median(times[f"draw_{who}"])
        figures[f"{who}_lists_per_s"] = round(arguments.prompts * width / num_beams / draw, 2)
        rates = [n / s for n, s in zip(num_tokens, times[f"learn_{who}"], strict=True)]
        figures[f"{who}_tokens_per_s"] = round(statistics.median(rates), 1)
    for part in ("draw", "learn", "both"):
        pairs = zip(times[f"{part}_plain"], times[f"{part}_ours"], strict=True)
        figures[f"ratio_{part}"] = round(statistics.median(p / o for p, o in pairs), 2)
    return figures


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
