"""How large activations are: scales for int8, and whether fp16 holds them. Knows nothing of ONNX.

A scale is shared by the linear layers that read the same input, under the key that
`export.decoder` looks up: "layers.0.qkv", "layers.0.o", "layers.0.gate_up", "layers.0.down",
"lm_head".
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

_KEYS = {"q_proj": "qkv", "o_proj": "o", "gate_proj": "gate_up", "down_proj": "down"}
LEVELS = 127  # uint8 with zero point 128, used symmetrically
_ROWS_PER_CALL = 12
# The most of an input's rows that one scale for all of them may lose. A single token with values
# far beyond all others (attention sinks have them) takes all levels for itself.
_MAX_RELATIVE_ERROR = 0.01
_HEAD = "lm_head"
# fp16 ends at 65504; sample inputs may not show the largest activation there is.
_MAX_FP16 = 3e4
_CLIPS = np.geomspace(0.2, 1.0, 33)


def activation_scales(model: nn.Module, run: Callable[[], object]) -> dict[str, float | None]:
    """Returns the scale of each linear input while `run` calls `model` on sample inputs.

    The clip is the one, among 33 fractions of the largest magnitude, that gives the least mean
    squared quantisation error. An input of which one scale loses more than `_MAX_RELATIVE_ERROR`
    has None in its place: every row takes a scale of its own. The output layer always has one for
    all. Inputs of `run` must hold no padding.

    Raises:
        ValueError: `run` never reached some linear layer.
    """
    samples: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    largest: dict[str, float] = defaultdict(float)
    generator = np.random.default_rng(0)

    def recorder(key: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def record(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].detach().float().abs().flatten(0, -2).numpy()
            largest[key] = max(largest[key], float(x.max()))
            if len(x) > _ROWS_PER_CALL:
                x = x[generator.choice(len(x), _ROWS_PER_CALL, replace=False)]
            samples[key].append(x)

        return record

    hooks, keys = [], set[str]()
    for name, module in model.named_modules():
        key = _key_of(name)
        if key and isinstance(module, nn.Linear):
            keys.add(key)
            hooks.append(module.register_forward_pre_hook(recorder(key)))
    try:
        with torch.inference_mode():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    if missing := sorted(keys - samples.keys()):
        raise ValueError(f"calibration never reached {', '.join(missing)}: give sample inputs")
    scales: dict[str, float | None] = {}
    for key in sorted(keys):
        rows = np.concatenate(samples[key])
        scale = best_scale(rows, largest[key])
        is_shared = key == _HEAD or relative_error(rows, scale) <= _MAX_RELATIVE_ERROR
        scales[key] = scale if is_shared else None
    return scales


@contextmanager
def within_range(model: nn.Module, precision: str) -> Iterator[None]:
    """Checks at the end that fp16, if that is the precision, holds what layers read and gave.

    The CPU computes fp16 graphs in float32, so that no run of theirs shows it.

    Raises:
        ValueError: a number was too large.
    """
    largest: dict[str, float] = defaultdict(float)

    def recorder(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def record(_: nn.Module, args: tuple[object, ...], output: object) -> None:
            for x in (*args, output):
                if isinstance(x, torch.Tensor) and x.is_floating_point():
                    largest[name] = max(largest[name], float(x.abs().max()))

        return record

    layers = {n: m for n, m in model.named_modules() if not any(m.children())}
    chosen = layers if precision == "fp16" else {}
    hooks = [m.register_forward_hook(recorder(n)) for n, m in chosen.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    name = max(largest, key=lambda n: largest[n], default="")
    if name and largest[name] > _MAX_FP16:
        raise ValueError(
            f"the layer {name} has activations up to {largest[name]:.2g}, too large for fp16, in "
            f"which at most {_MAX_FP16:g} is safe: export with precision fp32"
        )


def relative_error(rows: NDArray[np.float32], scale: float) -> float:
    """Returns the mean over rows of the squared quantisation error by the squared norm."""
    levels = np.minimum(np.rint(rows / scale), LEVELS)
    errors = np.square(levels * scale - rows).sum(1)
    return float(np.mean(errors / np.maximum(np.square(rows).sum(1), 1e-12)))


def best_scale(magnitudes: NDArray[np.float32], largest: float) -> float:
    """Returns the symmetric scale of least squared error over sampled magnitudes."""
    if largest == 0:
        return 1.0
    errors = []
    for clip in _CLIPS * largest:
        scale = clip / LEVELS
        levels = np.minimum(np.rint(magnitudes / scale), LEVELS)
        errors.append(float(np.mean((levels * scale - magnitudes) ** 2)))
    return float(_CLIPS[int(np.argmin(errors))] * largest / LEVELS)


def _key_of(name: str) -> str | None:
    if name == _HEAD:
        return name
    match = re.search(r"(?:^|\.)layers\.(\d+)\..*\b(\w+)$", name)
    if match and match[2] in _KEYS:
        return f"layers.{match[1]}.{_KEYS[match[2]]}"
    return None
