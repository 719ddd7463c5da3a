"""Attention as ONNX nodes. What a token may see, a mask says.

A row's prefix (prompt or click context) is read once. Its *suffixes* (slots, beams or candidates)
stand side by side in the query dimension of one matrix product with the prefix's keys, which are
never copied per suffix. Knows nothing of layers or weights.

# B batch, P prefix tokens, X query tokens of a row, U tokens that can be seen, K kv heads,
# G query heads per kv head, H head dim; query rows of a kv head stand in (G, X) order
"""

from typing import NamedTuple

from export.builder import Scope

_MASKED = {"float32": -1e9, "float16": -6e4}  # finite: a fully masked row stays finite


class Heads(NamedTuple):
    """Names of a layer's queries (B, K * G, X, H), keys and values (B, K, U, H)."""

    query: str
    keys: str
    values: str


class Attention:
    """Emits attention of fixed head sizes."""

    def __init__(self, *, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        """Takes the sizes; stores nothing in a graph."""
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.groups = num_heads // num_kv_heads

    def attend(self, scope: Scope, heads: Heads, mask: str) -> str:
        """Returns the output (B, X, K * G * H).

        Args:
            scope: where nodes go.
            heads: X queries, U keys and values.
            mask: real, broadcast to (B, K, G * X, U): added to the scores.
        """
        query, is_grouped = heads.query, self.groups > 1
        if is_grouped:
            query = scope.reshape(query, 0, self.num_kv_heads, -1, self.head_dim)
        alpha = float(self.head_dim**-0.5)
        scores = scope.op("FusedMatMul", query, heads.keys, transB=1, alpha=alpha)
        weights = scope.op("Softmax", scope.op("Add", scores, mask), axis=-1)
        mixed = scope.op("MatMul", weights, heads.values)  # (B, K, G * X, H)
        if is_grouped:
            mixed = scope.reshape(mixed, 0, self.num_heads, -1, self.head_dim)
        return scope.reshape(
            scope.transpose(mixed, 0, 2, 1, 3), 0, 0, self.num_heads * self.head_dim
        )


def causal_mask(scope: Scope, length: str) -> str:
    """Returns float (length, length): 0 on and below the diagonal, else as good as minus infinity.

    Args:
        scope: where nodes go.
        length: int64 vector of one element.
    """
    steps = scope.range(length)
    column = scope.op("Unsqueeze", steps, scope.constant([1]))
    return mask_where(scope, scope.op("Greater", steps, column))


def above_prefix(scope: Scope, mask: str, num_prefix: str) -> str:
    """Returns a mask of suffix tokens with the rows of their prefix below: causal, P more.

    Args:
        scope: where nodes go.
        mask: real (B, 1, X, X + P): what suffix tokens see.
        num_prefix: P, int64 vector of one element.
    """
    num_suffix = scope.dim(mask, 2)
    unseen = scope.op("Expand", masked(scope), scope.shape(num_prefix, num_suffix))
    rows = scope.op("Concat", unseen, causal_mask(scope, num_prefix), axis=-1)
    rows = scope.op("Expand", rows, scope.shape(scope.dim(mask, 0), 1, 1, 1))
    return scope.op("Concat", mask, rows, axis=2)


def mask_where(scope: Scope, hidden: str) -> str:
    """Returns float of the same shape: as good as minus infinity where `hidden`, 0 elsewhere."""
    return scope.op("Where", hidden, masked(scope), scope.real(0))


def masked(scope: Scope) -> str:
    """Returns the finite number that stands for minus infinity."""
    return scope.real(_MASKED[scope.weights.real_type])


def by_group(scope: Scope, mask: str, groups: int) -> str:
    """Returns a mask (..., X, U) repeated for each query head of a kv head: (..., G * X, U)."""
    return mask if groups == 1 else scope.op("Concat", *[mask] * groups, axis=-2)
