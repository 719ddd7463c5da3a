"""What a request's model runs cost beside one another: embed, generate, score.

    python -m benchmarks.stages [--size small --bundle DIR --threads 2]

A bundle with random weights, unless one is given; trained generators may end early. One request: a
query of 8 tokens is embedded, the panel of the first scenario (unless configured otherwise, 8 beams
of up to 8 tokens) is generated for a prompt of 64, and 32 candidates of 156 tokens together are
scored in a context of 40. The stages run in turns; the last line of stdout is JSON: medians in
milliseconds, and the median of each turn's ratio to the generation of that turn.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from benchmarks.turns import times_ms
from engine.execution.bundle import Bundle, load_bundle
from engine.execution.cpu import num_usable_cpus
from engine.execution.models import GenerateRow, ScoreRow
from engine.execution.runtime import Runtime
from engine.formats.features import FEATURE_NAMES
from engine.formats.vocabulary import FIRST_TEXT_ID
from export.sample import write_sample_bundle
from train.models.backbone import shapes_of

QUERY_TOKENS, PROMPT_TOKENS, CONTEXT_TOKENS = 8, 64, 40
NUM_CANDIDATES, CANDIDATE_TOKENS = 32, 156
_NUM_WARM = 5


def stages_of(bundle: Bundle, seed: int) -> dict[str, Callable[[], object]]:
    """Returns a function a stage that runs it for one request, always the same.

    Raises:
        ValueError: the bundle lacks a model, or its prompts are too short.
    """
    encoder, generator, click = bundle.encoder, bundle.generator, bundle.click_model
    if encoder is None or generator is None or click is None:
        raise ValueError("the bundle lacks a model: there is nothing to compare")
    if bundle.manifest.prompt.max_tokens < PROMPT_TOKENS:
        raise ValueError(f"the bundle's prompts have fewer than {PROMPT_TOKENS} tokens")
    rng = np.random.default_rng(seed)

    def drawn(num: int) -> list[int]:
        return rng.integers(FIRST_TEXT_ID, bundle.vocabulary.size, num).tolist()

    # The encoder may have a tokenizer, and so a number of ids, of its own.
    query = [*bundle.encoder_ids("wireless earbuds for kids")] * QUERY_TOKENS
    rung = next(iter(bundle.rungs.values()))[0]  # the whole panel of a scenario
    prompt = GenerateRow(drawn(PROMPT_TOKENS), (FIRST_TEXT_ID, bundle.vocabulary.size), rung)
    cuts = np.linspace(0, CANDIDATE_TOKENS, NUM_CANDIDATES + 1).astype(int)
    scored = ScoreRow(
        drawn(CONTEXT_TOKENS),
        [drawn(size) for size in np.diff(cuts).tolist()],
        rng.random((NUM_CANDIDATES, len(FEATURE_NAMES)), np.float32),
    )
    return {
        "embed": lambda: encoder.run([query[:QUERY_TOKENS]]),
        "generate": lambda: generator.run([prompt]),
        "score": lambda: click.run([scored], NUM_CANDIDATES),
    }


def measure(
    stages: dict[str, Callable[[], object]], num_rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns medians in milliseconds, and of the ratios to the generation of the same turn."""
    times = times_ms(stages, num_rounds, num_warm=_NUM_WARM)
    ratios = {
        name: statistics.median(t / g for t, g in zip(own, times["generate"], strict=True))
        for name, own in times.items()
        if name != "generate"
    }
    return {name: statistics.median(own) for name, own in times.items()}, ratios


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--size", default="small", choices=("tiny", "demo", "small"))
    chosen.add_argument("--bundle", type=Path, help="instead of one with random weights")
    parser.add_argument("--threads", type=int, default=num_usable_cpus(), help="(usable CPUs)")
    parser.add_argument("--rounds", type=int, default=51, help="turns that count (51)")
    args = parser.parse_args(arguments)
    with nullcontext() if args.bundle else tempfile.TemporaryDirectory() as temporary:
        directory = args.bundle
        if temporary is not None:
            directory = Path(temporary) / "bundle"
            write_sample_bundle(directory, size=args.size, mode="beam")
        runtime = Runtime(num_threads=args.threads)
        try:
            bundle = load_bundle(directory, runtime)
            vocabulary_size = bundle.vocabulary.size
            milliseconds, ratios = measure(stages_of(bundle, seed=0), args.rounds)
        finally:
            runtime.close()
    shape = shapes_of(args.size).click_model
    figures = {
        "bundle": str(args.bundle or f"{args.size}, random weights"),
        "click_model": None if args.bundle else [shape.num_layers, shape.hidden_size],
        "vocabulary": vocabulary_size,
        "threads": args.threads,
        "ms": {name: round(ms, 3) for name, ms in milliseconds.items()},
        "of_a_generation": {name: round(ratio, 3) for name, ratio in ratios.items()},
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
