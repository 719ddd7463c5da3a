"""Draws lists of texts from a generator, many for each prompt, with their exact probabilities.

What list-wise alignment samples from; at temperature 0, what the exported graph must write. In
modes slots and beam a list is S sequences that do not see one another, so log pi(list) is the sum
over all of its tokens; the sequences of a beam-form list begin with the same token, and are
independent draws of one distribution, or at temperature 0 its likeliest texts. In mode list a
list is one sequence (S = 1). Control ids
are never drawn; where a text begins, only ids of the prompt's range are.

Knows nothing of scenarios, rewards or losses.

# B prompts, K lists of each, S sequences of a list, N new tokens, R sequences in the cache,
# V vocabulary without control ids
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.formats.vocabulary import EOS_ID, NUM_CONTROL_IDS, SEP_ID
from train.generation.choice import choose
from train.generation.decoder import Decoder
from train.generation.search import search
from train.models.backbone import has_fast_bf16

MODES = ("slots", "list", "beam")
_PAD = 0
_LEAST_SHARE = 0.75  # of the sequences in the cache; below it those that ended are taken out


class ListPrompt(NamedTuple):
    """What lists are drawn for."""

    ids: Sequence[int]  # the prompt
    slots: Sequence[int]  # (S) tokens that start the sequences
    max_new_tokens: Sequence[int]  # (S), at least 1
    first_token_range: tuple[int, int]  # [first, end) of the ids that may begin a text


class Lists(NamedTuple):
    """Drawn lists; log pi of a list is the sum of its log-probabilities."""

    ids: Tensor  # int64 (B, K, S, N); <|pad|> after the end
    logprobs: Tensor  # float32 (B, K, S, N): log softmax over the allowed ids, at temperature 1
    draw_logprobs: Tensor  # float32 (B, K, S, N): log of what an id was in fact drawn with
    ended: Tensor  # bool (B, K, S): by <|eos|> or, but in mode list, <|sep|>; else by the limit

    @classmethod
    def empty(cls, num_prompts: int, num_lists: int, num_slots: int, num_new: int) -> "Lists":
        """Returns lists in which nothing is written."""
        shape = (num_prompts, num_lists, num_slots, num_new)
        ended = torch.zeros(shape[:3], dtype=torch.bool)
        return cls(torch.full(shape, _PAD), torch.zeros(shape), torch.zeros(shape), ended)


class Sampler:
    """Draws from a model's weights as they are now: make another when they have changed."""

    def __init__(self, model: Any, *, bf16: bool = False) -> None:
        """Takes the weights.

        Args:
            model: a transformers causal language model of the Llama or Qwen family whose ids
                follow `engine.formats.vocabulary`, on any device.
            bf16: compute in bfloat16 where the hardware does that fast; log-probabilities are
                then those of the rounded weights.

        Raises:
            ValueError: the architecture is not supported.
        """
        dtype = torch.bfloat16 if bf16 and has_fast_bf16() else torch.float32
        self._decoder = Decoder(model, dtype=dtype, first_id=NUM_CONTROL_IDS)

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[ListPrompt],
        random: torch.Generator | Sequence[int],
        *,
        mode: str = "slots",
        num_lists: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        chunk_size: int = 16,
    ) -> Lists:
        """Draws K lists of each prompt.

        Args:
            prompts: (B) with equal numbers of slots.
            random: a seed for each prompt, or a CPU generator that gives each one in turn. What
                is drawn for a prompt depends on its seed, not on other prompts or `chunk_size`.
            mode: "slots", "list" or "beam".
            num_lists: K.
            temperature: logits are divided by it; 0 takes the best id at every step. In mode beam
                0 searches: the first list holds the best texts, the second the next best, and so
                on; sequences of <|pad|> alone are beams that are not there.
            top_p: nucleus, see `train.generation.choice`; 1 keeps all ids.
            chunk_size: prompts that are decoded at once; memory grows with
                chunk_size * num_lists * S.

        Returns:
            Lists on the CPU; N is the greatest limit.

        Raises:
            ValueError: an argument is out of range, prompts do not fit together or the
                vocabulary, or the model's logits are not finite.
        """
        _check_settings(mode, num_lists, temperature, top_p, chunk_size)
        check_prompts(prompts, self._decoder.shape.vocabulary)
        if mode == "beam" and len({_beams_of(p) for p in prompts}) > 1:
            raise ValueError("prompts differ in which sequences are beams: sample kinds apart")
        seeds = _seeds(random, len(prompts))
        if not prompts:
            return Lists.empty(0, num_lists, 0, 0)
        num_new = max(max(p.max_new_tokens) for p in prompts)
        lists = Lists.empty(len(prompts), num_lists, len(prompts[0].slots), num_new)
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
        for start in range(0, len(prompts), chunk_size):
            places = by_length[start : start + chunk_size]
            chunk = _Chunk(
                self._decoder, [prompts[i] for i in places], [seeds[i] for i in places], num_lists
            )
            ended = (EOS_ID,) if mode == "list" else (EOS_ID, SEP_ID)
            if mode == "beam" and temperature == 0:
                part = chunk.search(ended)
            else:
                part = chunk.decode(ended, temperature=temperature, top_p=top_p)
            num_new = part.ids.shape[-1]
            lists.ids[places, ..., :num_new] = part.ids
            lists.logprobs[places, ..., :num_new] = part.logprobs
            lists.draw_logprobs[places, ..., :num_new] = part.draw_logprobs
            lists.ended[places] = part.ended
        return lists


class _Chunk:
    """Prompts that are decoded together. Sequences stand in the order prompt, slot, list."""

    def __init__(
        self, decoder: Decoder, prompts: list[ListPrompt], seeds: list[int], num_lists: int
    ) -> None:
        self._decoder, self._num_lists, self._prompts = decoder, num_lists, prompts
        device = decoder.device
        self._lengths_B = torch.tensor([len(p.ids) for p in prompts], device=device)
        self._ids_BP = pad_sequence([torch.tensor(p.ids) for p in prompts], True).to(device)
        self._starts_BS = torch.tensor([list(p.slots) for p in prompts], device=device)
        limits_BS = torch.tensor([list(p.max_new_tokens) for p in prompts], device=device)
        self._limits_A = limits_BS.flatten().repeat_interleave(num_lists)  # A = B * S * K
        ids_V = torch.arange(NUM_CONTROL_IDS, decoder.shape.vocabulary, device=device)
        range_B2 = torch.tensor([p.first_token_range for p in prompts], device=device)
        self._outside_BV = (ids_V < range_B2[:, :1]) | (ids_V >= range_B2[:, 1:])
        streams = [
            _uniforms(seed, max(p.max_new_tokens), len(p.slots) * num_lists)
            for p, seed in zip(prompts, seeds, strict=True)
        ]
        uniforms_BNJ = pad_sequence(streams, True)  # J = S * K
        self._uniforms_AN = uniforms_BNJ.transpose(1, 2).flatten(0, 1).to(device)

    def decode(self, ends: tuple[int, ...], *, temperature: float, top_p: float) -> Lists:
        """Decodes to the end or the limit."""
        num_all, num_new = self._uniforms_AN.shape
        num_prompts, num_slots = self._starts_BS.shape
        lists = Lists.empty(num_prompts, num_slots, self._num_lists, num_new)
        lists = Lists(*(t.flatten(0, 2).to(self._decoder.device) for t in lists))
        is_over_A = torch.zeros_like(lists.ended)
        ends_E = torch.tensor(ends, device=is_over_A.device)
        logits_RV, cache = self._decoder.read(
            self._ids_BP, self._lengths_B, self._starts_BS, self._num_lists, num_new
        )
        logits_RV = logits_RV.masked_fill_(self._outside_BV[:, None], -torch.inf).flatten(0, 1)
        rows_R = torch.arange(num_all, device=is_over_A.device)  # of A, those in the cache
        for step in range(num_new):
            if step > 0:
                running_R = ~is_over_A[rows_R]
                num_running = int(running_R.sum())
                if num_running == 0:
                    break
                if num_running < _LEAST_SHARE * len(rows_R):
                    rows_R = rows_R[running_R]
                    cache.keep(running_R.nonzero()[:, 0])
                tokens_R = lists.ids[rows_R, step - 1]
                logits_RV = self._decoder.step(tokens_R, cache)
                begins_R = (tokens_R == SEP_ID).nonzero()[:, 0]
                outside_RV = self._outside_BV[cache.prompt_of_R[begins_R]]
                logits_RV[begins_R] = logits_RV[begins_R].masked_fill(outside_RV, -torch.inf)
            # At first, one row gives a token of each list.
            uniforms_RK = self._uniforms_AN[rows_R, step].view(len(logits_RV), -1)
            choice = choose(logits_RV, uniforms_RK, temperature=temperature, top_p=top_p)
            running_R = ~is_over_A[rows_R]
            new_R = choice.ids.flatten() + NUM_CONTROL_IDS
            lists.ids[rows_R, step] = torch.where(running_R, new_R, _PAD)
            lists.logprobs[rows_R, step] = choice.logprobs.flatten() * running_R
            lists.draw_logprobs[rows_R, step] = choice.draw_logprobs.flatten() * running_R
            lists.ended[rows_R] |= running_R & torch.isin(new_R, ends_E)
            is_over_A = lists.ended | (step + 1 >= self._limits_A)
        shape = (num_prompts, num_slots, self._num_lists)
        return Lists(*(t.unflatten(0, shape).transpose(1, 2).cpu() for t in lists))

    def search(self, ends: tuple[int, ...]) -> Lists:
        """Searches for the best texts; sequences that start unlike the last are decoded alone."""
        starts = self._prompts[0].slots
        num_alone = sum(slot != starts[-1] for slot in starts)
        num_beams, num_lists = len(starts) - num_alone, self._num_lists
        found = search(
            self._decoder, self._ids_BP, self._lengths_B, self._starts_BS[:, -1],
            self._limits_A.view(len(self._prompts), -1)[:, -1], self._outside_BV,
            width=num_beams * num_lists, ends=ends,
        )  # fmt: skip
        num_new = self._uniforms_AN.shape[1]
        lists = Lists.empty(len(self._prompts), num_lists, len(starts), num_new)
        for part, of_beams in (
            (lists.ids, found.ids), (lists.logprobs, found.logprobs), (lists.ended, found.ended)
        ):  # fmt: skip
            own = part[:, :, num_alone:]
            values = of_beams.unflatten(1, (num_lists, num_beams)).cpu()
            own[(..., slice(values.shape[-1])) if values.ndim == 4 else ...] = values
        if num_alone:
            alone = [
                p._replace(slots=p.slots[:num_alone], max_new_tokens=p.max_new_tokens[:num_alone])
                for p in self._prompts
            ]
            decoded = _Chunk(self._decoder, alone, [0] * len(alone), 1).decode(
                ends, temperature=0.0, top_p=1.0
            )
            lists.ids[:, :, :num_alone, : decoded.ids.shape[-1]] = decoded.ids
            lists.logprobs[:, :, :num_alone, : decoded.ids.shape[-1]] = decoded.logprobs
            lists.ended[:, :, :num_alone] = decoded.ended
        return lists


def _beams_of(prompt: ListPrompt) -> tuple[bool, ...]:
    """Returns which sequences start like the last one, and so are beams of one search."""
    return tuple(slot == prompt.slots[-1] for slot in prompt.slots)


def _uniforms(seed: int, num_new: int, num_sequences: int) -> Tensor:
    """Returns float64 (N, S * K) in [0, 1): by step first, so that limits change none of them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(num_new, num_sequences, dtype=torch.float64, generator=generator)


def _seeds(random: torch.Generator | Sequence[int], num_prompts: int) -> list[int]:
    if isinstance(random, torch.Generator):
        return torch.randint(2**62, (num_prompts,), generator=random).tolist()
    if len(random) != num_prompts:
        raise ValueError(f"{len(random)} seeds for {num_prompts} prompts: give one for each")
    return list(random)


def _check_settings(
    mode: str, num_lists: int, temperature: float, top_p: float, chunk_size: int
) -> None:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}: use one of {', '.join(MODES)}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: use 0 (the best id) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: use more than 0 and at most 1 (all ids)")
    for name, value in (("num_lists", num_lists), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}: use at least 1")


def check_prompts(prompts: Sequence[ListPrompt], vocabulary: int) -> None:
    """Checks that prompts fit together and a vocabulary of that size.

    Raises:
        ValueError: one does not; says which and why.
    """
    for number, prompt in enumerate(prompts):
        reason = _wrong(prompt, len(prompts[0].slots), vocabulary)
        if reason:
            raise ValueError(f"prompt {number} {reason}")


def _wrong(prompt: ListPrompt, num_slots: int, vocabulary: int) -> str:
    """Returns what is wrong with a prompt; empty if nothing is."""
    first, end = prompt.first_token_range
    if not prompt.ids:
        return "is empty: it needs at least one token"
    if not prompt.slots:
        return "has no slots: it needs at least one"
    if len(prompt.slots) != num_slots:
        return f"has {len(prompt.slots)} slots, the first one {num_slots}: group prompts by them"
    if len(prompt.max_new_tokens) != num_slots:
        return f"has {len(prompt.max_new_tokens)} limits for {num_slots} slots: give one for each"
    if min(prompt.max_new_tokens) < 1:
        return f"has a limit of {min(prompt.max_new_tokens)} new tokens: use at least 1"
    ids = (*prompt.ids, *prompt.slots)
    if min(ids) < 0 or max(ids) >= vocabulary:
        return f"has an id outside of the vocabulary of {vocabulary} tokens"
    if max(first, NUM_CONTROL_IDS) >= min(end, vocabulary):
        return (
            f"allows no first token: its range is {first} to {end}, and ids that can be written "
            f"are {NUM_CONTROL_IDS} to {vocabulary}"
        )
    return ""
