"""Attention over a shared prefix as ONNX nodes.

A row's prefix (prompt or click context) is read once, causally. Its *suffixes* (slots, beams or
candidates) stand side by side in the query dimension of one matrix product with the prefix's keys,
which are never copied per suffix. What a suffix token may see among suffix tokens, a mask says.

Knows nothing of layers or weights.

# B batch, P prefix tokens, X suffix tokens of a row, U suffix tokens that can be seen, K kv heads,
# G query heads per kv head, H head dim; query rows of a kv head stand in (G, X) order
"""

from collections.abc import Callable
from typing import NamedTuple

from export.builder import Scope

_MASKED = {"float32": -1e9, "float16": -6e4}  # finite: a fully masked row stays finite


class Heads(NamedTuple):
    """Names of a layer's queries (B, K * G, X, H), keys and values (B, K, X, H)."""

    query: str
    keys: str
    values: str


class KeyValue(NamedTuple):
    """Names of one layer's keys (B, K, U, H), transposed (B, K, H, P) in a prefix, and values."""

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

    def causal(self, scope: Scope, heads: Heads, mask: str) -> tuple[str, KeyValue]:
        """Reads a prefix; returns its output (B, K * G, P, H), and its keys and values.

        Args:
            scope: where nodes go.
            heads: of the prefix tokens.
            mask: float (G * P, P), see `causal_mask` and `by_group`.
        """
        prefix = self.prefix(scope, heads)
        scores = self._scores(scope, self._grouped(scope, heads.query), prefix.keys)
        weights = scope.op("Softmax", scope.op("Add", scores, mask), axis=-1)
        return self._ungrouped(scope, scope.op("MatMul", weights, prefix.values)), prefix

    def prefix(self, scope: Scope, heads: Heads) -> KeyValue:
        """Returns a prefix's keys and values as suffixes read them."""
        return KeyValue(scope.transpose(heads.keys, 0, 1, 3, 2), heads.values)

    def step(
        self, scope: Scope, heads: Heads, prefix: KeyValue, past: KeyValue, mask: str
    ) -> tuple[str, KeyValue]:
        """Reads one more token of each suffix; every token may see any token of its row.

        Args:
            scope: where nodes go.
            heads: of the new tokens, one a suffix.
            prefix: keys and values of the prefix.
            past: of all suffix tokens so far, the newest first.
            mask: float (B, 1, G * X, U + P): new tokens, older ones, prefix.

        Returns:
            The output (B, K * G, X, H), and keys and values with the new tokens in front.
        """
        seen = KeyValue(
            scope.op("Concat", heads.keys, past.keys, axis=2),
            scope.op("Concat", heads.values, past.values, axis=2),
        )
        query = self._grouped(scope, heads.query)
        own = self._scores(scope, query, seen.keys, is_transposed=False)
        mixed = self._with_prefix(
            scope, query, own, prefix, mask, scope.dim(seen.keys, 2),
            lambda weights: scope.op("MatMul", weights, seen.values),
        )  # fmt: skip
        return self._ungrouped(scope, mixed), seen

    def blocks(
        self, scope: Scope, heads: Heads, prefix: KeyValue, mask: str, num_blocks: str, length: str
    ) -> str:
        """Reads whole suffixes, `num_blocks` of `length` tokens, which do not see one another.

        Args:
            scope: where nodes go.
            heads: of all suffix tokens, X = num_blocks * length.
            prefix: keys and values of the prefix.
            mask: float (B, 1, G * X, length + P): own block, prefix.
            num_blocks: int64 vector of one element.
            length: likewise.

        Returns:
            The output (B, K * G, X, H).
        """
        head, kv = self.head_dim, self.num_kv_heads
        split = scope.shape(0, kv, 1, num_blocks, length, head)
        keys, values = (scope.op("Reshape", x, split) for x in (heads.keys, heads.values))
        by_block = scope.shape(0, kv, self.groups, num_blocks, length, head)
        own = self._scores(
            scope, scope.op("Reshape", heads.query, by_block), keys, is_transposed=False
        )
        own = scope.op("Reshape", own, scope.shape(0, kv, -1, length))
        split_weights = scope.shape(0, kv, self.groups, num_blocks, length, length)

        def mixed(weights: str) -> str:
            out = scope.op("MatMul", scope.op("Reshape", weights, split_weights), values)
            return scope.reshape(out, 0, kv, -1, head)

        query = self._grouped(scope, heads.query)
        return self._ungrouped(
            scope, self._with_prefix(scope, query, own, prefix, mask, length, mixed)
        )

    def _with_prefix(
        self,
        scope: Scope,
        query: str,
        own_scores: str,
        prefix: KeyValue,
        mask: str,
        num_own: str,
        mix_own: Callable[[str], str],
    ) -> str:
        """Attends to own tokens and prefix under one softmax; returns (B, K, G * X, H)."""
        scores = [own_scores, self._scores(scope, query, prefix.keys)]
        # The prefix stands last, so that its padding only adds zeros at the end of a row.
        joint = scope.op("Add", scope.op("Concat", *scores, axis=3), mask)
        weights = scope.op("Softmax", joint, axis=-1)
        sizes = scope.op("Concat", num_own, scope.dim(prefix.values, 2), axis=0)
        to_own, to_prefix = scope.ops("Split", [weights, sizes], 2, axis=3)
        return scope.op("Add", mix_own(to_own), scope.op("MatMul", to_prefix, prefix.values))

    def _scores(self, scope: Scope, query: str, keys: str, *, is_transposed: bool = True) -> str:
        alpha = float(self.head_dim**-0.5)
        return scope.op("FusedMatMul", query, keys, transB=int(not is_transposed), alpha=alpha)

    def _grouped(self, scope: Scope, query: str) -> str:
        """Returns queries as (B, K, G * X, H)."""
        if self.groups == 1:
            return query
        return scope.reshape(query, 0, self.num_kv_heads, -1, self.head_dim)

    def _ungrouped(self, scope: Scope, mixed: str) -> str:
        if self.groups == 1:
            return mixed
        return scope.reshape(mixed, 0, self.num_heads, -1, self.head_dim)


def causal_mask(scope: Scope, length: str) -> str:
    """Returns float (length, length): 0 on and below the diagonal, else as good as minus infinity.

    Args:
        scope: where nodes go.
        length: int64 vector of one element.
    """
    count = scope.op("Squeeze", length)
    steps = scope.op("Range", scope.constant(0), count, scope.constant(1))
    column = scope.op("Unsqueeze", steps, scope.constant([1]))
    return mask_where(scope, scope.op("Greater", steps, column))


def mask_where(scope: Scope, hidden: str) -> str:
    """Returns float of the same shape: as good as minus infinity where `hidden`, 0 elsewhere."""
    return scope.op("Where", hidden, masked(scope), scope.real(0))


def masked(scope: Scope) -> str:
    """Returns the finite number that stands for minus infinity."""
    return scope.real(_MASKED[scope.weights.real_type])


def by_group(scope: Scope, mask: str, groups: int) -> str:
    """Returns a mask (..., X, U) repeated for each query head of a kv head: (..., G * X, U)."""
    return mask if groups == 1 else scope.op("Concat", *[mask] * groups, axis=-2)
