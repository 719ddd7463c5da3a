"""Speed of supervised fine-tuning against a plain transformers Trainer on the same examples.

    python -m benchmarks.sft --run runs/demo --size small

Both train the same model on the same prompts and suggestions, with the same optimiser and batches
of the same examples. Ours packs a prompt with all of its suggestions into one row and applies the
head to labelled positions only; the plain run has a row per suggestion, prompt included, padded to
the longest of its batch, and the model's own loss, as fine-tuning scripts do. Steps alternate; the
figure is response tokens (those with a loss) a second, so prompts read twice count once. The last
line of stdout is JSON.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from engine.execution.cpu import num_usable_cpus
from train.generation.associations import Associations
from train.generation.examples import ExampleConfig, ExampleMaker, read_clicks, read_sources
from train.generation.generator import ResponseLoss, read_prompts
from train.generation.responses import ResponseEncoder, to_batch
from train.models.backbone import llama_config, shapes_of
from train.models.shared_prefix import IGNORED_LABEL, Packed

Batch = dict[str, Tensor]


def examples_of(run: Path, num_examples: int) -> list[Packed]:
    """Returns packed examples of a mined run, in slots, sorted by length."""
    prompts = read_prompts(run)
    mined = run / "mined"
    config = ExampleConfig(
        scenarios=prompts.scenarios, prompt=prompts.prompt, cold_share=0.3,
        max_contexts_per_query=64,
    )  # fmt: skip
    clicks = read_clicks(mined, "train", prompts.scenarios)
    maker = ExampleMaker(config, Associations.load(mined, clicks))
    encoder = ResponseEncoder(prompts.renderer, prompts.scenarios, "slots")
    rng = random.Random(0)
    packed: list[Packed] = []
    for source in read_sources(mined, config, "train", 0):
        example = maker(source, rng)
        made = encoder(example, rng) if example else None
        if made is not None:
            packed.append(made)
        if len(packed) == num_examples:
            return sorted(packed, key=lambda p: len(p.input_ids))
    raise ValueError(f"{run}: has {len(packed)} examples, {num_examples} are needed")


def plain_batch(examples: Sequence[Packed]) -> Batch:
    """Returns a row per suggestion: its prompt and itself, right padded, labels on the response."""
    rows: list[tuple[list[int], int]] = []
    for packed in examples:
        segments, ids = packed.segment_ids, packed.input_ids
        prompt = [i for i, s in zip(ids, segments, strict=True) if s == 0]
        for number in range(1, segments[-1] + 1):
            own = [i for i, s in zip(ids, segments, strict=True) if s == number]
            rows.append(([*prompt, *own], len(prompt) + 1))  # the slot token has no label
    length = max(len(ids) for ids, _ in rows)
    shape = (len(rows), length)
    input_ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED_LABEL)
    for row, (ids, start) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
        labels[row, start : len(ids)] = torch.tensor(ids[start:])
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


class Contender:
    """A Trainer that is asked for one step at a time."""

    def __init__(self, model: Any, directory: Path, *, bf16: bool) -> None:
        arguments = TrainingArguments(
            str(directory), report_to=[], bf16=bf16, use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False, disable_tqdm=True,
        )  # fmt: skip
        self._trainer = Trainer(model=model, args=arguments)
        self._trainer.current_gradient_accumulation_steps = 1  # as `train` would set it
        self._optimizer: Any = self._trainer.create_optimizer()
        self._model = model

    def step(self, batch: Batch) -> float:
        """Takes one step; returns its seconds."""
        started_s = time.perf_counter()
        self._trainer.training_step(self._model, dict(batch))
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._model.zero_grad()
        return time.perf_counter() - started_s


def compare(arguments: argparse.Namespace) -> dict[str, float | int | str]:
    """Runs both and returns the figures."""
    torch.set_num_threads(arguments.threads)
    examples = examples_of(arguments.run, arguments.steps * arguments.batch_size)
    vocabulary = read_prompts(arguments.run).renderer.vocabulary
    config = llama_config(shapes_of(arguments.size).generator, vocabulary.size)
    contenders: dict[str, Contender] = {}
    for name, attention in (("ours", "eager"), ("plain", "sdpa")):  # each its faster one on CPU
        set_seed(0)
        model = LlamaForCausalLM(config)
        model.set_attn_implementation(attention)
        wrapped = ResponseLoss(model) if name == "ours" else model
        contenders[name] = Contender(wrapped, arguments.run / "bench-sft", bf16=arguments.bf16)
    batches = [
        examples[i : i + arguments.batch_size]
        for i in range(0, len(examples), arguments.batch_size)
    ]
    random.Random(0).shuffle(batches)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number, batch in enumerate([batches[0], *batches]):
        made = {"ours": to_batch(batch), "plain": plain_batch(batch)}
        num_labels = {n: int((b["labels"] != IGNORED_LABEL).sum()) for n, b in made.items()}
        assert len(set(num_labels.values())) == 1, "both learn the same tokens"
        for name, contender in contenders.items():
            took_s = contender.step(made[name])
            if number:  # the first is for warming up
                rates[name].append(num_labels[name] / took_s)
        print(f"step {number}: {num_labels['ours']} response tokens", file=sys.stderr)
    ratios = [a / b for a, b in zip(rates["ours"], rates["plain"], strict=True)]
    return {
        "size": arguments.size,
        "threads": arguments.threads,
        "bf16": arguments.bf16,
        "steps": len(batches),
        "ours_tokens_per_s": round(statistics.median(rates["ours"]), 1),
        "plain_tokens_per_s": round(statistics.median(rates["plain"]), 1),
        "ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Reads the arguments, prints the JSON line."""
    parser = argparse.ArgumentParser(description="Speed of SFT against a plain Trainer.")
    parser.add_argument("--run", type=Path, required=True, help="a run that is mined")
    parser.add_argument("--size", default="small", choices=("tiny", "demo", "small"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=num_usable_cpus())
    parser.add_argument("--bf16", action="store_true")
    try:
        print(json.dumps(compare(parser.parse_args())))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
