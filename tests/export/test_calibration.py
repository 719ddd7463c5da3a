"""Static scales are measured on what reaches each linear layer."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from export.calibration import activation_scales, best_scale


def squared_error(x: np.ndarray, scale: float) -> float:
    return float(np.mean((np.minimum(np.rint(x / scale), 127) * scale - x) ** 2))


def test_clipping_an_outlier_beats_covering_it() -> None:
    magnitudes = np.abs(np.random.default_rng(0).normal(size=100_000)).astype(np.float32)
    magnitudes[0] = 30.0
    chosen = best_scale(magnitudes, 30.0)
    assert chosen < 30.0 / 127
    assert squared_error(magnitudes, chosen) < 0.7 * squared_error(magnitudes, 30.0 / 127)


def test_layers_that_share_an_input_share_a_scale() -> None:
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    model = LlamaModel(config).eval()
    scales = activation_scales(model, lambda: model(torch.arange(12)[None]))
    parts = ("qkv", "o", "gate_up", "down")
    assert sorted(scales) == sorted(f"layers.{i}.{p}" for i in (0, 1) for p in parts)
    assert all(s > 0 for s in scales.values())


def test_calibration_without_samples_is_refused() -> None:
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"never reached layers\.0\.down"):
        activation_scales(LlamaModel(config), lambda: None)
