"""The checkpoints of a run in torch: embed, write, score. Knows nothing of texts or requests.

# B prompts, P prompt tokens, S slots, A sequences of all prompts, R of them still being written,
# N new tokens, C candidates, F features, V vocabulary, D dim
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from engine.execution.models import GenerateRow, ScoreRow, Sequences, candidate_ids
from engine.formats.manifest import MAX_CANDIDATE_TOKENS
from engine.formats.vocabulary import EOS_ID, NUM_CONTROL_IDS, SEP_ID
from export.checkpoint import Run
from train.clicks.model import load_click_model
from train.generation.sampler import ListPrompt, Sampler
from train.models.shared_prefix import collate, pack
from train.retrieval.encoder import Encoder

Precision = Literal["fp32", "bf16"]


class Setting(NamedTuple):
    """How torch computes."""

    precision: Precision
    num_threads: int


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LEAST_SHARE = 0.5  # of a batch that is still written; below it, finished sequences leave
Floats = NDArray[np.float32]


class Models:
    """Encoder, generator and click model. To be used from one thread."""

    def __init__(self, run: Run, precision: Precision) -> None:
        """Loads the checkpoints.

        Raises:
            ValueError: the run lacks one, or its generator was taught lists.
        """
        for part in ("encoder", "generator", "click_model"):
            if not run.has(part):
                raise ValueError(
                    f"{run.directory}: has no {part}; the plain stack needs all models"
                )
        if run.taught_mode() == "list":
            raise ValueError(f"{run.directory}: was taught lists; the plain stack writes no lists")
        self._dtype = _DTYPES[precision]
        self._encoder = Encoder.load(run.directory).to(self._dtype)
        model: Any = run.generator().model
        self._sampler = None
        if run.taught_mode() == "beam":
            self._sampler = Sampler(model, bf16=precision == "bf16")
        self._generator = model.to(self._dtype)
        self._click_model = load_click_model(run.directory / "click_model")
        self._click_model.backbone.to(self._dtype)  # pyright: ignore[reportArgumentType]

    def embed(self, texts: Sequence[str]) -> Floats:
        """Returns float32 (B, D) of unit norm."""
        with torch.inference_mode():
            return self._encoder.embed(texts)

    def write(self, rows: Sequence[GenerateRow]) -> list[Sequences]:
        """Returns the sequences of each prompt, in the form that the generator was taught."""
        return self._greedy(rows) if self._sampler is None else self._searched(rows, self._sampler)

    def _searched(self, rows: Sequence[GenerateRow], sampler: Sampler) -> list[Sequences]:
        """Returns what beam search finds, for the prompts of one panel at a time."""
        found: dict[int, Sequences] = {}
        for rung in dict.fromkeys(r.rung for r in rows):
            places = [i for i, r in enumerate(rows) if r.rung == rung]
            prompts = [
                ListPrompt(
                    rows[i].prompt_ids, rung.slots, rung.max_new_tokens, rows[i].first_token_range
                )
                for i in places
            ]
            lists = sampler.sample(prompts, [0] * len(prompts), mode="beam", temperature=0.0)
            logprobs = lists.logprobs[:, 0].sum(-1).tolist()
            for i, ids_SN, logprobs_S in zip(
                places, lists.ids[:, 0].tolist(), logprobs, strict=True
            ):
                cut = _cut(list(zip(ids_SN, rung.max_new_tokens, strict=True)))
                found[i] = cut._replace(logprobs=logprobs_S)
        return [found[i] for i in range(len(rows))]

    @torch.inference_mode()
    def _greedy(self, rows: Sequence[GenerateRow]) -> list[Sequences]:
        """Returns the greedy sequences of each prompt."""
        starts_A = torch.tensor([slot for r in rows for slot in r.rung.slots])
        limits_A = torch.tensor([n for r in rows for n in r.rung.max_new_tokens])
        row_of_A = torch.tensor([i for i, r in enumerate(rows) for _ in r.rung.slots])
        outside_BV = self._outside(rows)
        ids_BP, mask_BP = left_padded([r.prompt_ids for r in rows])
        cache = DynamicCache()
        self._generator.model(
            input_ids=ids_BP,
            attention_mask=mask_BP,
            position_ids=(mask_BP.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_select_indices(row_of_A)
        # Given a mask of four dimensions, transformers makes none at every step (2 ms).
        is_padded = not bool(mask_BP.all())
        mask_RP, position_R = mask_BP[row_of_A].bool(), mask_BP.sum(1)[row_of_A]
        num_new = int(limits_A.max())
        written_AN = torch.full((len(starts_A), num_new), EOS_ID)
        is_over_A = torch.zeros(len(starts_A), dtype=torch.bool)
        rows_R, tokens_R = torch.arange(len(starts_A)), starts_A
        for step in range(num_new):
            mask_RP = torch.cat([mask_RP, mask_RP.new_ones(len(mask_RP), 1)], 1)
            logits_RV = self._generator(
                input_ids=tokens_R[:, None],
                attention_mask=mask_RP[:, None, None] if is_padded else None,
                position_ids=(position_R + step)[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
            logits_RV[:, :NUM_CONTROL_IDS] = -torch.inf
            if step == 0:
                logits_RV.masked_fill_(outside_BV[row_of_A], -torch.inf)
            tokens_R = logits_RV.argmax(-1)
            running_R = ~is_over_A[rows_R]
            written_AN[rows_R[running_R], step] = tokens_R[running_R]
            ended_R = (tokens_R == EOS_ID) | (tokens_R == SEP_ID)
            is_over_A[rows_R] |= ended_R | (step + 1 >= limits_A[rows_R])
            running_R = ~is_over_A[rows_R]
            num_running = int(running_R.sum())
            if num_running == 0:
                break
            if num_running < _LEAST_SHARE * len(rows_R):
                cache.batch_select_indices(running_R.nonzero()[:, 0])
                rows_R, tokens_R = rows_R[running_R], tokens_R[running_R]
                mask_RP, position_R = mask_RP[running_R], position_R[running_R]
        sequences = iter(zip(written_AN.tolist(), limits_A.tolist(), strict=True))
        return [_cut([next(sequences) for _ in row.rung.slots]) for row in rows]

    @torch.inference_mode()
    def score(self, rows: Sequence[ScoreRow]) -> list[Floats]:
        """Returns float32 (C) click logits of each row's candidates."""
        packed = collate(
            [
                pack(
                    row.context_ids,
                    [candidate_ids(ids, MAX_CANDIDATE_TOKENS) for ids in row.candidate_ids],
                )
                for row in rows
            ]
        )
        num_candidates = packed.last_indices.shape[1]
        features_BCF = np.zeros((len(rows), num_candidates, rows[0].features_CF.shape[1]), "f")
        for features_CF, row in zip(features_BCF, rows, strict=True):
            features_CF[: len(row.features_CF)] = row.features_CF
        packed = packed._replace(attention_mask=packed.attention_mask.to(self._dtype))
        logits_BC = self._click_model.packed_logits(packed, torch.from_numpy(features_BCF)).numpy()
        return [
            logits_C[: len(row.candidate_ids)]
            for logits_C, row in zip(logits_BC, rows, strict=True)
        ]

    def _outside(self, rows: Sequence[GenerateRow]) -> Tensor:
        """Returns bool (B, V): ids that no sequence of a prompt may begin with."""
        ids_V = torch.arange(self._generator.config.vocab_size)
        range_B2 = torch.tensor([r.first_token_range for r in rows])
        return (ids_V < range_B2[:, :1]) | (ids_V >= range_B2[:, 1:])


@contextmanager
def threads(num: int) -> Iterator[None]:
    """Runs a block with so many threads of torch's."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Returns ids and mask, int64 (B, P)."""
    length = max(len(r) for r in rows)
    ids = torch.tensor([[0] * (length - len(r)) + list(r) for r in rows])
    mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


def _cut(sequences: Sequence[tuple[list[int], int]]) -> Sequences:
    """Returns (ids, limit) of one prompt's sequences up to <|eos|> or the limit."""
    ends = [ids.index(EOS_ID) if EOS_ID in ids[:limit] else -1 for ids, limit in sequences]
    cut = [
        ids[:end] if end >= 0 else ids[:limit]
        for (ids, limit), end in zip(sequences, ends, strict=True)
    ]
    return Sequences(cut, [end >= 0 for end in ends])
