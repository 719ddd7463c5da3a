"""Sizes of the models and where their first weights come from. Knows nothing of training data.

Four sizes: `tiny` trains in seconds (tests), `demo` in minutes on two cores, `small` is the
default for serving on CPU (16.8 M parameters), `base` starts from public checkpoints.
"""

from dataclasses import dataclass

import torch
from transformers import BertConfig, LlamaConfig

from engine.formats.vocabulary import EOS_ID
from train.settings import Size

MAX_POSITIONS = 512  # rotary positions: prompt and the longest response


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Dimensions of one transformer."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The three models of a size and their common vocabulary."""

    vocab_size: int  # a multiple of 128; fewer where the text gives fewer tokens
    generator: Shape
    encoder: Shape  # hidden_size is the embedding's D
    click_model: Shape


def _shape(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int) -> Shape:
    return Shape(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=intermediate,
    )


_SHAPES: dict[str, Shapes] = {
    "tiny": Shapes(
        vocab_size=2048,
        generator=_shape(64, 2, 4, 2, 128),
        encoder=_shape(32, 1, 2, 2, 64),
        click_model=_shape(32, 1, 2, 2, 64),
    ),
    "demo": Shapes(
        vocab_size=6144,
        generator=_shape(192, 4, 6, 2, 512),
        encoder=_shape(64, 2, 4, 4, 256),
        click_model=_shape(128, 2, 4, 4, 384),
    ),
    "small": Shapes(
        vocab_size=16000,
        generator=_shape(384, 6, 6, 6, 1024),
        encoder=_shape(128, 4, 4, 4, 512),
        click_model=_shape(256, 3, 4, 4, 512),
    ),
    # The generator's and encoder's own come with their checkpoints.
    "base": Shapes(
        vocab_size=49152,
        generator=_shape(576, 30, 9, 3, 1536),
        encoder=_shape(384, 6, 12, 12, 1536),
        click_model=_shape(256, 4, 4, 4, 512),
    ),
}


def shapes_of(size: Size) -> Shapes:
    """Returns the dimensions of the models of a size."""
    return _SHAPES[size]


def llama_config(shape: Shape, vocab_size: int) -> LlamaConfig:
    """Returns the configuration of a causal model: tied embeddings, pad 0, no begin token."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,  # pyright: ignore[reportArgumentType]
        eos_token_id=EOS_ID,
        attn_implementation="sdpa",
    )


def bert_config(shape: Shape, vocab_size: int, max_tokens: int) -> BertConfig:
    """Returns the configuration of a bidirectional encoder without dropout."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        max_position_embeddings=max(64, max_tokens),
        type_vocab_size=2,  # optimum traces with types 0 and 1
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )


def has_fast_bf16() -> bool:
    """Returns whether this machine multiplies bfloat16 matrices in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
