"""Starts the generator from a public checkpoint, its vocabulary in the order of the engine's.

A checkpoint is a hub id, a directory, or a GGUF file. Its text tokens keep their embeddings and
move to where their bytes sort; its own special tokens go, control tokens come, initialised from
the mean embedding with a little noise, so that they start unlike one another. Knows nothing of
training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from engine.formats.vocabulary import EOS_ID, FIRST_TEXT_ID, Vocabulary
from train.models.tokenizer import SIZE_MULTIPLE, Layout, arrange

_NOISE = 0.02  # of new rows, as a share of the embeddings' standard deviation


class SourceTokenizer(NamedTuple):
    """A checkpoint's tokenizer and how many ids will be kept of it."""

    tokenizer: Tokenizer
    size: int


def read_tokenizer(checkpoint: str) -> SourceTokenizer:
    """Returns the tokenizer of a checkpoint and the size of its vocabulary once rearranged.

    The size is the checkpoint's, rounded down to a multiple of 128: the model does not grow.

    Raises:
        ValueError: there is no such checkpoint, or it has no fast tokenizer.
    """
    tokenizer = load_pretrained(AutoTokenizer, checkpoint)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{checkpoint}: has no byte-level BPE tokenizer that the engine can read")
    backend: Tokenizer = tokenizer.backend_tokenizer
    # A copy: the caller's layout changes settings of its own.
    copy = Tokenizer.from_str(backend.to_str())
    total = backend.get_vocab_size(with_added_tokens=True)
    size = min(total - len(tokenizer.added_tokens_decoder) + FIRST_TEXT_ID, total)
    return SourceTokenizer(copy, size - size % SIZE_MULTIPLE)


def load_rearranged(
    checkpoint: str, *, scenarios: Sequence[str], kinds: Sequence[str]
) -> tuple[PreTrainedModel, Vocabulary]:
    """Returns a checkpoint's causal model, float32, and the vocabulary that it now speaks.

    On texts whose tokens were all kept it gives the same logits as before, in another order.

    Raises:
        ValueError: the checkpoint cannot be read, or its tokenizer is not byte-level BPE.
    """
    source = read_tokenizer(checkpoint)
    layout = arrange(source.tokenizer, size=source.size, scenarios=scenarios, kinds=kinds)
    model = load_pretrained(AutoModelForCausalLM, checkpoint, dtype=torch.float32)
    rearrange(model, layout)
    return model, layout.vocabulary


def rearrange(model: PreTrainedModel, layout: Layout) -> None:
    """Moves the embedding rows of a model to a layout's ids, in place; a head of its own, too."""
    inputs: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    inputs.weight = torch.nn.Parameter(_moved(inputs.weight.data, layout.old_ids))
    inputs.num_embeddings = len(layout.old_ids)
    if model.config.tie_word_embeddings:
        head.weight = inputs.weight
    else:
        head.weight = torch.nn.Parameter(_moved(head.weight.data, layout.old_ids))
    head.out_features = len(layout.old_ids)
    model.config.vocab_size = len(layout.old_ids)
    model.config.pad_token_id, model.config.eos_token_id = 0, EOS_ID
    model.config.bos_token_id = None
    inputs.padding_idx = None
    if model.generation_config is not None:
        model.generation_config.pad_token_id = 0
        model.generation_config.eos_token_id = EOS_ID
        model.generation_config.bos_token_id = None


def _moved(rows_VD: Tensor, old_ids: Sequence[int | None]) -> Tensor:
    """Returns the rows at `old_ids`; new ones are the mean with a little noise."""
    new = torch.tensor([i is None for i in old_ids])
    moved_VD = rows_VD[torch.tensor([0 if i is None else i for i in old_ids])].clone()
    generator = torch.Generator().manual_seed(0)
    noise_ND = torch.randn(int(new.sum()), rows_VD.shape[1], generator=generator)
    moved_VD[new] = rows_VD.mean(0) + _NOISE * rows_VD.std() * noise_ND.to(rows_VD.dtype)
    return moved_VD


def load_pretrained(loader: Any, checkpoint: str, **options: Any) -> Any:
    """Returns what a loader of transformers makes of a checkpoint.

    Args:
        loader: such as `AutoModelForCausalLM`.
        checkpoint: hub id, directory or GGUF file.
        options: of `from_pretrained`.

    Raises:
        ValueError: it cannot be loaded.
    """
    path = Path(checkpoint)
    try:
        if path.suffix == ".gguf":
            return loader.from_pretrained(str(path.parent), gguf_file=path.name, **options)
        return loader.from_pretrained(checkpoint, **options)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"checkpoint {checkpoint} cannot be loaded: {reason}; give a hub id (online), a "
            "directory, or a GGUF file"
        ) from None
