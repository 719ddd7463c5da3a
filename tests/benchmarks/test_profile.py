"""Shares of operators are read from ONNX Runtime's own profile of a real graph with a loop."""

from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from benchmarks.profile import BETWEEN, profile
from export.checkpoint import decoder_checkpoint
from export.generator import build_generator
from train.models.backbone import llama_config, shapes_of


def test_nodes_inside_the_loop_are_counted_once_a_step(tmp_path: Path) -> None:
    shapes = shapes_of("tiny")
    torch.manual_seed(0)
    decoder = decoder_checkpoint(
        LlamaForCausalLM(llama_config(shapes.generator, shapes.vocab_size))
    )
    graph = build_generator(decoder.state, decoder.shape, decoder.cos_sin(32))
    path = tmp_path / "generator.onnx"
    path.write_bytes(graph.SerializeToString())
    ids = np.arange(200, 216)[None]
    slots, steps = np.full((1, 2), 300), 4
    feed = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "slots": slots,
        "max_new_tokens": np.full_like(slots, steps),
        "first_token_range": np.asarray([[130, shapes.vocab_size]]),
    }
    ms, rows = profile(path, feed, 1)
    assert ms > 0
    assert not {"Loop", "If"} & rows.keys()
    assert abs(sum(r.share for r in rows.values()) - 1) < 0.01
    assert rows[BETWEEN].num_nodes == 0
    products = rows["MatMul"].num_nodes + rows["FusedMatMul"].num_nodes
    assert products > steps * 4 * shapes.generator.num_layers
