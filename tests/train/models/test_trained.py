"""Models of a run are read whole or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from train.models.trained import load_trained, read_arrays

CONFIG = LlamaConfig(
    vocab_size=32,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    tie_word_embeddings=True,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    LlamaForCausalLM(CONFIG).save_pretrained(tmp_path / "generator")
    return tmp_path / "generator"


def test_a_model_comes_back_in_full_precision_and_evaluation_mode(directory: Path) -> None:
    LlamaForCausalLM(CONFIG).bfloat16().save_pretrained(directory)
    model = load_trained(LlamaForCausalLM, directory)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_damaged_weights_are_named(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{directory}: weights cannot be read: "):
        load_trained(LlamaForCausalLM, directory)
    with pytest.raises(ValueError, match=rf"{path}: weights cannot be read: "):
        read_arrays(path)


def test_weights_that_are_missing_are_not_made_up(directory: Path) -> None:
    path = directory / "model.safetensors"
    arrays = load_file(path)
    del arrays["model.norm.weight"]
    save_file(arrays, path, {"format": "pt"})
    for loader in (LlamaForCausalLM, LlamaModel):
        with pytest.raises(ValueError, match=r"weights are missing: .*norm\.weight"):
            load_trained(loader, directory)
