"""Packs a prefix and several suffixes that share it into one sequence of a causal transformer.

Every suffix sees the prefix and itself, never another suffix, and its positions go on from the
end of the prefix: one forward pass over the packed sequence equals one pass per suffix over
prefix + suffix, but the prefix is computed once. The generator trains its slots this way, the
click model its candidates. Knows nothing of what the tokens mean.
"""

# B batch, L packed tokens, S suffixes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED_LABEL = -100  # what torch's and transformers' cross-entropy leave out
_PADDING = -1
_MASKED = -1e9  # finite in float32 and bfloat16


class Packed(NamedTuple):
    """One packed sequence of L tokens."""

    input_ids: list[int]
    position_ids: list[int]
    segment_ids: list[int]  # 0 for the prefix, i + 1 for suffix i


class PackedBatch(NamedTuple):
    """Packed sequences, right padded to one length."""

    input_ids: Tensor  # int64 (B, L)
    position_ids: Tensor  # int64 (B, L)
    segment_ids: Tensor  # int64 (B, L); -1 is padding
    attention_mask: Tensor  # float32 (B, 1, L, L), additive: 0 where a row may see a column
    last_indices: Tensor  # int64 (B, S): index in L of each suffix's last token; 0 if missing
    suffix_mask: Tensor  # bool (B, S): which suffixes exist


def pack(prefix_ids: Sequence[int], suffixes: Sequence[Sequence[int]]) -> Packed:
    """Returns the prefix followed by all suffixes.

    Raises:
        ValueError: the prefix or a suffix is empty.
    """
    if not prefix_ids:
        raise ValueError("a packed sequence needs a prefix of at least one token")
    input_ids, positions = list(prefix_ids), list(range(len(prefix_ids)))
    segments = [0] * len(prefix_ids)
    for number, suffix in enumerate(suffixes, start=1):
        if not suffix:
            raise ValueError(f"suffix {number - 1} of a packed sequence is empty")
        input_ids += suffix
        positions += range(len(prefix_ids), len(prefix_ids) + len(suffix))
        segments += [number] * len(suffix)
    return Packed(input_ids, positions, segments)


def collate(packed: Sequence[Packed], *, multiple_of: int = 1) -> PackedBatch:
    """Returns the sequences as one batch.

    Args:
        packed: at least one sequence.
        multiple_of: L is rounded up to a multiple of this, so that fewer shapes occur.
    """
    length = max(len(p.input_ids) for p in packed)
    length = -(-length // multiple_of) * multiple_of
    rows = [
        [
            sequence + [padding] * (length - len(sequence))
            for sequence, padding in zip(p, (0, 0, _PADDING), strict=True)
        ]
        for p in packed
    ]
    stacked_B3L = torch.tensor(rows, dtype=torch.int64)
    input_ids_BL, position_ids_BL, segment_ids_BL = stacked_B3L.unbind(1)
    num_suffixes = max(p.segment_ids[-1] for p in packed)
    last_BS, mask_BS = _last_indices(segment_ids_BL, num_suffixes)
    return PackedBatch(
        input_ids=input_ids_BL,
        position_ids=position_ids_BL,
        segment_ids=segment_ids_BL,
        attention_mask=block_mask(segment_ids_BL),
        last_indices=last_BS,
        suffix_mask=mask_BS,
    )


def block_mask(segment_ids_BL: Tensor) -> Tensor:
    """Returns the additive float32 (B, 1, L, L) mask of packed sequences.

    A token sees the tokens before it, and itself, in the prefix and in its own suffix. Padding
    sees only padding before it and itself (so that no row of a softmax is empty).
    """
    query_BL1, key_B1L = segment_ids_BL[:, :, None], segment_ids_BL[:, None, :]
    length = segment_ids_BL.shape[1]
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=segment_ids_BL.device).tril()
    same_BLL = query_BL1 == key_B1L
    prefix_BLL = (key_B1L == 0) & (query_BL1 != _PADDING)
    allowed_BLL = (same_BLL | prefix_BLL) & causal_LL
    masked_BLL = torch.zeros(allowed_BLL.shape, device=allowed_BLL.device)
    return masked_BLL.masked_fill(~allowed_BLL, _MASKED)[:, None]


def next_token_labels(batch: PackedBatch) -> Tensor:
    """Returns int64 (B, L) labels, already shifted: what each token's output should predict.

    The next token of the same suffix, else `IGNORED_LABEL`: the prefix is never predicted, and
    the last token of a suffix predicts nothing (end it with <|eos|> to train the end). The first
    token of a suffix is given (a slot token), so it is no label either.
    """
    labels_BL = torch.full_like(batch.input_ids, IGNORED_LABEL)
    segment_BL = batch.segment_ids
    same_BL = (segment_BL[:, :-1] == segment_BL[:, 1:]) & (segment_BL[:, 1:] > 0)
    labels_BL[:, :-1] = torch.where(same_BL, batch.input_ids[:, 1:], labels_BL[:, :-1])
    return labels_BL


def _last_indices(segment_ids_BL: Tensor, num_suffixes: int) -> tuple[Tensor, Tensor]:
    """Returns where each suffix ends, int64 (B, S), and which suffixes exist, bool (B, S)."""
    following_BL = torch.nn.functional.pad(segment_ids_BL[:, 1:], (0, 1), value=_PADDING)
    rows, columns = torch.nonzero(
        (segment_ids_BL > 0) & (segment_ids_BL != following_BL), as_tuple=True
    )
    shape = (len(segment_ids_BL), num_suffixes)
    last_BS = torch.zeros(shape, dtype=torch.int64)
    mask_BS = torch.zeros(shape, dtype=torch.bool)
    suffixes = segment_ids_BL[rows, columns] - 1
    last_BS[rows, suffixes] = columns
    mask_BS[rows, suffixes] = True
    return last_BS, mask_BS
