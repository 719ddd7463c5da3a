"""Scales are measured on what reaches each linear layer."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from export.calibration import activation_scales, best_scale, relative_error


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
    torch.manual_seed(0)
    model = LlamaModel(config).eval()
    scales = activation_scales(model, lambda: model(torch.arange(12)[None]))
    parts = ("qkv", "o", "gate_up", "down")
    assert sorted(scales) == sorted(f"layers.{i}.{p}" for i in (0, 1) for p in parts)
    assert all(s is not None and s > 0 for s in scales.values())


def test_calibration_without_samples_is_refused() -> None:
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"never reached layers\.0\.down"):
        activation_scales(LlamaModel(config), lambda: None)


class Projections(torch.nn.Module):
    """Two linear layers with names as in a decoder, reading different inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({"down_proj": torch.nn.Linear(64, 8)}) for _ in range(2)
        )

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> None:
        for layer, x in zip(self.layers, (first, second), strict=True):
            layer.get_submodule("down_proj")(x)


def test_an_input_that_one_scale_cannot_hold_gets_one_a_row() -> None:
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randn(1, 40, 64, generator=generator)
    spiked = torch.randn(1, 40, 64, generator=generator)
    spiked[0, 0] *= 10_000  # the first token, as attention sinks have it
    model = Projections().eval()
    scales = activation_scales(model, lambda: [model(ordinary, spiked) for _ in range(8)])
    assert scales["layers.0.down"] is not None
    assert scales["layers.1.down"] is None


def test_relative_error_counts_rows_not_energy() -> None:
    rows = np.abs(np.random.default_rng(0).normal(size=(100, 64))).astype(np.float32)
    assert relative_error(rows, best_scale(rows, float(rows.max()))) < 1e-3
    rows[0] *= 10_000
    scale = best_scale(rows, float(rows.max()))
    lost = np.minimum(np.rint(rows / scale), 127) * scale - rows
    assert np.square(lost).sum() < 1e-3 * np.square(rows).sum()
    assert relative_error(rows, scale) > 0.9
