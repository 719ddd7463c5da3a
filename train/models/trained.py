"""Reads models that a stage of a run wrote; `checkpoint.py` reads public ones."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def load_trained(loader: Any, directory: Path, **options: Any) -> Any:
    """Returns a transformers model in float32 and evaluation mode.

    Args:
        loader: such as `AutoModelForCausalLM`.
        directory: of the model.
        options: of `from_pretrained`.

    Raises:
        ValueError: weights are damaged, or lacking: transformers would make some up.
    """
    try:
        model, info = loader.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True, **options
        )
    except SafetensorError as error:
        raise _damaged(directory, error) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise ValueError(f"{directory}: weights are missing: {missing}")
    return model.eval()


def read_arrays(path: Path) -> dict[str, Tensor]:
    """Returns the arrays of a safetensors file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: SafetensorError) -> ValueError:
    return ValueError(f"{path}: weights cannot be read: {error}")
