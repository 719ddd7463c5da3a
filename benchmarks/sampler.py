"""Lists per second of the sampler, transformers' `generate` and our fp32 graph, in turns.

    python -m benchmarks.sampler --prompts 16 --lists 1,8

`small` with random weights; prompts of 64 tokens, lists of 8 texts of 8 tokens. The sampler (also
in bfloat16, where the hardware has it) and
`generate` draw at temperature 1 and the graph takes the best tokens. With K lists of each prompt
there are a K-th of the prompts, so all contenders of a round write equally many lists; `generate`
repeats each prompt for each text, as its interface has it. The last line of stdout is JSON:
medians over rounds, `ratio_*` of times in the same round (above 1: the sampler is faster).
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import transformers

from benchmarks.peers import models
from benchmarks.peers.machine import Neighbours, cpu_model, features
from benchmarks.peers.workers.ours import feed_of, graph_of
from benchmarks.turns import times_ms
from engine.execution.cpu import num_usable_cpus
from engine.formats.vocabulary import NUM_CONTROL_IDS
from train.generation.sampler import ListPrompt, Sampler
from train.models.backbone import has_fast_bf16

ROOT = Path(__file__).parents[1]


def prompts_for(vocabulary: int, num_prompts: int) -> list[ListPrompt]:
    """Returns prompts that all write their full number of tokens."""
    starts = models.starts_of(vocabulary)
    limits = [models.NEW_TOKENS] * len(starts)
    allowed = (NUM_CONTROL_IDS, vocabulary)
    ids = models.prompts_of(vocabulary, num_prompts, seed=0)
    return [ListPrompt(row, starts, limits, allowed) for row in ids]


def graph_runner(path: Path, prompts: list[ListPrompt], num_threads: int) -> Callable[[], Any]:
    """Returns what writes a list of each prompt with the exported graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Or its threads would spin while the others are measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    vocabulary = prompts[0].first_token_range[1]
    ids = [list(p.ids) for p in prompts]
    feed = feed_of(ids, list(prompts[0].slots), models.NEW_TOKENS, vocabulary)
    return lambda: session.run(["sequences"], feed)[0]


def generate_runner(model: Any, prompts: list[ListPrompt]) -> Callable[[], Any]:
    """Returns what draws a list of each prompt with transformers."""
    rows = torch.tensor([[*p.ids, slot] for p in prompts for slot in p.slots])
    return lambda: model.generate(
        rows,
        attention_mask=torch.ones_like(rows),
        do_sample=True,
        top_k=0,
        min_new_tokens=models.NEW_TOKENS,
        max_new_tokens=models.NEW_TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=16, help="lists of a round (16)")
    parser.add_argument("--lists", default="1,8", help="lists of each prompt (1,8)")
    parser.add_argument("--rounds", type=int, default=7, help="(7)")
    parser.add_argument("--threads", type=int, default=num_usable_cpus(), help="(usable CPUs)")
    parser.add_argument("--root", type=Path, default=ROOT / "runs/peers",
                        help="where models are kept (runs/peers)")  # fmt: skip
    args = parser.parse_args(arguments)
    words = args.lists.split(",")
    counts = [int(word) for word in words if word.isdecimal() and int(word) > 0]
    if min(args.prompts, args.rounds, args.threads) < 1:
        parser.error("--prompts, --rounds and --threads are at least 1")
    if len(counts) < len(words) or any(args.prompts % count for count in counts):
        parser.error("--lists are divisors of --prompts, parted by commas")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(args.threads)
    directory = models.prepare("small", args.root, lambda line: print(line, file=sys.stderr))
    checkpoint = models.load(directory)
    sampler, random = Sampler(checkpoint.model), torch.Generator().manual_seed(0)
    prompts = prompts_for(checkpoint.shape.vocabulary, args.prompts)
    graph = graph_runner(graph_of(directory, "slots", "fp32"), prompts, args.threads)

    def sampling(num_lists: int, own: Sampler = sampler, **settings: Any) -> Callable[[], Any]:
        some = prompts[: len(prompts) // num_lists]
        return lambda: own.sample(some, random, num_lists=num_lists, **settings)

    runners = {f"sampler_{count}": sampling(count) for count in counts}
    if has_fast_bf16():
        half = Sampler(checkpoint.model, bf16=True)
        runners |= {f"sampler_{count}_bf16": sampling(count, half) for count in counts}
    runners["sampler_1_nucleus"] = sampling(1, top_p=0.9)
    runners["generate"] = generate_runner(checkpoint.model, prompts)
    runners["graph_fp32"] = graph
    greedy = sampling(1, temperature=0)().ids[:, 0].numpy()
    neighbours = Neighbours([os.getpid()])
    times = times_ms(runners, args.rounds, pause_s=0.05)
    figures: dict[str, object] = {}
    for name, ms in times.items():
        median = statistics.median(ms)
        figures[f"{name}_ms"] = round(median, 1)
        figures[f"{name}_lists_per_s"] = round(args.prompts / median * 1000, 1)
        print(f"{name:20} {median:8.1f} ms {args.prompts / median * 1000:8.1f} lists/s")
    for rival in ("generate", "graph_fp32"):
        for count in counts:
            pairs = zip(times[rival], times[f"sampler_{count}"], strict=True)
            figures[f"ratio_{rival}_{count}"] = round(statistics.median(a / b for a, b in pairs), 2)
    figures |= {
        "equal_to_graph": round(float((greedy == np.asarray(graph())).all(-1).mean()), 3),
        "others_share": neighbours.share(),
        "rounds": args.rounds,
        "threads": args.threads,
        "cpu": cpu_model(),
        "features": features(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "onnxruntime": ort.__version__,
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
