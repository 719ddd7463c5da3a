"""What one generation must multiply: the matrix products of a decoder and their sizes.

Knows nothing of attention, normalisation, sampling or any other work: no engine with these
weights in this precision can be faster.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple


class MatMul(NamedTuple):
    """One product: (rows, depth) by (depth, columns)."""

    rows: int
    depth: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of a decoder with tied embeddings and a gated MLP."""

    num_layers: int
    hidden: int
    intermediate: int
    query: int  # heads by head dimension
    key_value: int  # kv heads by head dimension
    vocabulary: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Sizes":
        """Reads a checkpoint's config.json."""
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return cls(
            num_layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            intermediate=config["intermediate_size"],
            query=config["num_attention_heads"] * head,
            key_value=config["num_key_value_heads"] * head,
            vocabulary=config["vocab_size"],
        )


def layer(sizes: Sizes, rows: int) -> list[MatMul]:
    """Returns the products of one layer; those that share an input are one."""
    return [
        MatMul(rows, sizes.hidden, sizes.query + 2 * sizes.key_value),
        MatMul(rows, sizes.query, sizes.hidden),
        MatMul(rows, sizes.hidden, 2 * sizes.intermediate),
        MatMul(rows, sizes.intermediate, sizes.hidden),
    ]


def reading(
    sizes: Sizes, *, num_prompts: int, prompt_tokens: int, num_sequences: int
) -> list[MatMul]:
    """Returns the products up to the first new tokens: prompts, and what starts the sequences.

    Of a prompt's tokens the last layer needs keys and values only.
    """
    rows = num_prompts * (prompt_tokens + num_sequences)
    last = MatMul(num_prompts * prompt_tokens, sizes.hidden, 2 * sizes.key_value)
    starts = num_prompts * num_sequences
    return [
        *layer(sizes, rows) * (sizes.num_layers - 1), last, *layer(sizes, starts),
        MatMul(starts, sizes.hidden, sizes.vocabulary),
    ]  # fmt: skip


def step(sizes: Sizes, rows: int) -> list[MatMul]:
    """Returns the products of one more token: all layers and the vocabulary."""
    head = MatMul(rows, sizes.hidden, sizes.vocabulary)
    return [*layer(sizes, rows) * sizes.num_layers, head]


def generation(
    sizes: Sizes, *, num_prompts: int, prompt_tokens: int, num_sequences: int, new_tokens: int
) -> Counter[MatMul]:
    """Returns how often each product occurs in one generation."""
    counts = Counter(
        reading(
            sizes,
            num_prompts=num_prompts,
            prompt_tokens=prompt_tokens,
            num_sequences=num_sequences,
        )
    )
    for product, count in Counter(step(sizes, num_prompts * num_sequences)).items():
        counts[product] += count * (new_tokens - 1)
    return counts
