"""The layers of a Llama or Qwen decoder for decoding many sequences of each prompt at once.

A prompt and the tokens that start its sequences are read in one pass. Its keys and values are
never repeated: the sequences of a prompt stand side by side in the query dimension, and attention
to the prompt and to a sequence's own tokens are put together by their log-sum-exp (Juravsky et
al. 2024, Hydragen, arXiv 2402.05099). Knows nothing of how tokens are chosen.

# B prompts, P prompt tokens, S starting tokens, R sequences, X sequences of the prompt that has
# most, T tokens of a sequence, K kv heads, G query heads per kv head, H head dim, D model dim,
# V vocabulary
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

SUPPORTED_MODEL_TYPES = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """Sizes of a decoder."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int
    norm_eps: float

    @classmethod
    def of(cls, config: Any) -> "DecoderShape":
        """Reads a transformers config.

        Raises:
            ValueError: the architecture is not one that is implemented here and in the graph.
        """
        if config.model_type not in SUPPORTED_MODEL_TYPES:
            raise ValueError(
                f"model_type {config.model_type!r} is not supported: "
                f"use one of {', '.join(SUPPORTED_MODEL_TYPES)}"
            )
        if config.hidden_act != "silu":
            raise ValueError(f"hidden_act {config.hidden_act!r} is not supported: use 'silu'")
        if getattr(config, "use_sliding_window", False):
            raise ValueError("sliding-window attention is not supported: turn it off")
        return cls(
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None)
            or config.hidden_size // config.num_attention_heads,
            hidden=config.hidden_size,
            vocabulary=config.vocab_size,
            norm_eps=config.rms_norm_eps,
        )


class Cache:
    """Keys and values of prompts, and of what each of their sequences wrote."""

    def __init__(
        self,
        prompt: list[tuple[Tensor, Tensor]],
        own: Tensor,
        turns: tuple[Tensor, Tensor],
        lengths_B: Tensor,
        prompt_of_R: Tensor,
    ) -> None:
        """Takes the tensors.

        Args:
            prompt: per layer keys and values (B, K, P, H).
            own: (layers, 2, R, K, T, H) keys and values; one token of each sequence is there.
            turns: rotary cosines and sines (positions, H / 2).
            lengths_B: int64 (B), of the prompts.
            prompt_of_R: int64 (R), not falling: whose prompt each sequence goes on from.
        """
        self.prompt, self.own, self.num_own, self.turns = prompt, own, 1, turns
        self.lengths_B = lengths_B
        padding_BP = torch.arange(prompt[0][0].shape[2], device=own.device) >= lengths_B[:, None]
        zeros_BP = torch.zeros(padding_BP.shape, device=own.device)
        self.mask_B11P = zeros_BP.masked_fill_(padding_BP, -torch.inf)[:, None, None]
        self._place(prompt_of_R)

    def keep(self, rows: Tensor) -> None:
        """Goes on with the sequences at int64 `rows`: any, but their prompts must not fall."""
        self.own = self.own[:, :, rows]
        self._place(self.prompt_of_R[rows])

    def _place(self, prompt_of_R: Tensor) -> None:
        """Gives each sequence a place in a (B, X) grid."""
        counts_B = torch.bincount(prompt_of_R, minlength=len(self.lengths_B))
        self.width = int(counts_B.max())
        first_B = counts_B.cumsum(0) - counts_B
        column_R = torch.arange(len(prompt_of_R), device=prompt_of_R.device) - first_B[prompt_of_R]
        self.prompt_of_R = prompt_of_R
        self.place_R = prompt_of_R * self.width + column_R


class _Layer(NamedTuple):
    """Weights of a layer; those that read the same input are one matrix."""

    input_gain: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    head_gains: tuple[Tensor, Tensor] | None  # of queries and keys; Qwen3
    out: Tensor
    out_bias: Tensor | None
    middle_gain: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class Decoder:
    """The weights of one model at one time: make another when they have changed."""

    def __init__(
        self, model: Any, *, dtype: torch.dtype = torch.float32, first_id: int = 0
    ) -> None:
        """Packs weights.

        Args:
            model: a transformers causal language model.
            dtype: what to compute in; norms and softmax are float32 anyway.
            first_id: logits of lower ids are not computed.

        Raises:
            ValueError: the architecture is not supported.
        """
        self.shape = DecoderShape.of(model.config)
        self.device = model.device
        self._dtype = dtype
        base = model.model
        self._rotary = base.rotary_emb
        self._embedding = self._cast(base.embed_tokens.weight)
        self._head = self._cast(model.lm_head.weight)[first_id:]
        self._final_gain = self._cast(base.norm.weight)
        self._layers = [self._layer(layer) for layer in base.layers]

    def _cast(self, parameter: Tensor) -> Tensor:
        return parameter.detach().to(self._dtype)

    def _joined(self, *modules: Any) -> tuple[Tensor, Tensor | None]:
        """Returns weight and bias of linear layers that read the same input, as one."""
        weight = torch.cat([self._cast(m.weight) for m in modules])
        has_bias = modules[0].bias is not None
        return weight, torch.cat([self._cast(m.bias) for m in modules]) if has_bias else None

    def _layer(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv, qkv_bias = self._joined(attention.q_proj, attention.k_proj, attention.v_proj)
        out, out_bias = self._joined(attention.o_proj)
        gate_up, gate_up_bias = self._joined(mlp.gate_proj, mlp.up_proj)
        down, down_bias = self._joined(mlp.down_proj)
        gains = None
        if hasattr(attention, "q_norm"):
            gains = self._cast(attention.q_norm.weight), self._cast(attention.k_norm.weight)
        return _Layer(
            self._cast(layer.input_layernorm.weight),
            qkv, qkv_bias, gains, out, out_bias,
            self._cast(layer.post_attention_layernorm.weight),
            gate_up, gate_up_bias, down, down_bias,
        )  # fmt: skip

    def read(
        self, ids_BP: Tensor, lengths_B: Tensor, starts_BS: Tensor, num_each: int, num_own: int
    ) -> tuple[Tensor, Cache]:
        """Reads prompts and the tokens that start their sequences.

        Args:
            ids_BP: int64 (B, P), right padded with any id.
            lengths_B: int64 (B).
            starts_BS: int64 (B, S).
            num_each: how many sequences go on from each starting token.
            num_own: T, how many tokens a sequence may have with its starting token.

        Returns:
            float32 (B, S, V) logits, and the cache of R = B * S * num_each sequences.
        """
        s, num_prompt, num_starts = self.shape, ids_BP.shape[1], starts_BS.shape[1]
        turns = self._rotary_tables(num_prompt + num_own)
        ids_BY = torch.cat([ids_BP, starts_BS], 1)  # Y = P + S
        positions_BY = torch.cat(
            [
                torch.arange(num_prompt, device=self.device).expand(ids_BP.shape),
                lengths_B[:, None].expand(starts_BS.shape),
            ],
            1,
        )
        cos, sin = (t[positions_BY][:, :, None] for t in turns)  # (B, Y, 1, H / 2)
        sees = _sees(lengths_B, num_prompt, num_starts)
        shape = (len(self._layers), 2, starts_BS.numel() * num_each, s.num_kv_heads)
        own = torch.zeros(*shape, num_own, s.head_dim, dtype=self._dtype, device=self.device)
        prompt = list[tuple[Tensor, Tensor]]()
        x_BYD = self._embedding[ids_BY]
        for number, layer in enumerate(self._layers):
            query, keys, values = (h.transpose(1, 2) for h in self._heads(layer, x_BYD, cos, sin))
            # Copies: the starting tokens' part of these tensors would be kept alive otherwise.
            prompt.append(
                (keys[:, :, :num_prompt].contiguous(), values[:, :, :num_prompt].contiguous())
            )
            for part, heads in enumerate((keys, values)):
                first = heads[:, :, num_prompt:].transpose(1, 2).flatten(0, 1)  # (B * S, K, H)
                own[number, part, :, :, 0] = first.repeat_interleave(num_each, 0)
            if number == s.num_layers - 1:  # of the prompt, only keys and values are read again
                query, x_BYD = query[:, :, num_prompt:], x_BYD[:, num_prompt:]
                sees = sees[:, :, num_prompt:]
            mixed = scaled_dot_product_attention(query, keys, values, sees, enable_gqa=True)
            x_BYD = self._after_attention(layer, x_BYD, mixed.transpose(1, 2).flatten(2))
        each = torch.arange(len(ids_BP), device=self.device)
        prompt_of_R = each.repeat_interleave(num_starts * num_each)
        return self._logits(x_BYD), Cache(prompt, own, turns, lengths_B, prompt_of_R)

    def step(self, tokens_R: Tensor, cache: Cache) -> Tensor:
        """Reads one more token of each sequence; returns float32 (R, V) logits of the next."""
        positions_R = cache.lengths_B[cache.prompt_of_R] + cache.num_own
        cos, sin = (t[positions_R][:, None] for t in cache.turns)  # (R, 1, H / 2)
        x_RD = self._embedding[tokens_R]
        for number, layer in enumerate(self._layers):
            query, keys, values = self._heads(layer, x_RD, cos, sin)
            cache.own[number, 0, :, :, cache.num_own] = keys
            cache.own[number, 1, :, :, cache.num_own] = values
            x_RD = self._after_attention(layer, x_RD, self._attend(query, cache, number))
        cache.num_own += 1
        return self._logits(x_RD)

    def _attend(self, query: Tensor, cache: Cache, number: int) -> Tensor:
        """Returns (R, D): attention of queries (R, K * G, H) to the prompt and own tokens."""
        s, num_rows = self.shape, len(query)
        num_prompts, width = len(cache.lengths_B), cache.width
        groups = s.num_heads // s.num_kv_heads
        query = query.unflatten(1, (s.num_kv_heads, groups)) * s.head_dim**-0.5  # (R, K, G, H)
        own_keys, own_values = cache.own[number, :, :, :, : cache.num_own + 1]
        own, own_mass = _part(query, own_keys, own_values, None)
        # The grid (B, X) of sequences: one product a prompt, with all of its sequences.
        grid = query.new_zeros(num_prompts * width, s.num_kv_heads, groups, s.head_dim)
        grid.index_copy_(0, cache.place_R, query)
        grid = grid.unflatten(0, (num_prompts, width)).transpose(1, 2).flatten(2, 3)
        parts = _part(grid, *cache.prompt[number], cache.mask_B11P)  # (B, K, X * G, H or 1)
        shared, shared_mass = (
            p.unflatten(2, (width, groups)).transpose(1, 2).flatten(0, 1)[cache.place_R]
            for p in parts
        )
        share = torch.sigmoid(shared_mass - own_mass).to(own.dtype)
        return (own + share * (shared - own)).reshape(num_rows, -1)

    def _heads(
        self, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns turned queries and keys, and values: (..., heads, H) of a stream (..., D)."""
        s = self.shape
        joint = linear(self._norm(x, layer.input_gain), layer.qkv, layer.qkv_bias)
        joint = joint.unflatten(-1, (-1, s.head_dim))
        both, values = joint.split([s.num_heads + s.num_kv_heads, s.num_kv_heads], -2)
        if layer.head_gains is not None:
            parts = both.split([s.num_heads, s.num_kv_heads], -2)
            both = torch.cat(
                [self._norm(p, g) for p, g in zip(parts, layer.head_gains, strict=True)], -2
            )
        a, b = both.chunk(2, -1)
        both = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        query, keys = both.split([s.num_heads, s.num_kv_heads], -2)
        return query, keys, values

    def _after_attention(self, layer: _Layer, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + linear(mixed, layer.out, layer.out_bias)
        h = linear(self._norm(x, layer.middle_gain), layer.gate_up, layer.gate_up_bias)
        gate, up = h.chunk(2, -1)
        return x + linear(silu(gate) * up, layer.down, layer.down_bias)

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        normed = rms_norm(x.float(), x.shape[-1:], None, self.shape.norm_eps)
        return gain * normed.to(x.dtype)

    def _logits(self, x: Tensor) -> Tensor:
        return linear(self._norm(x, self._final_gain), self._head).float()

    def _rotary_tables(self, num_positions: int) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines (positions, H / 2)."""
        positions = torch.arange(num_positions, device=self.device)[None]
        tables = self._rotary(self._embedding[:0], positions)
        half = self.shape.head_dim // 2
        cos, sin = (t[0, :, :half] for t in tables)
        return cos, sin


def _part(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns attention over some of the keys, and float32 (..., 1): log of the sum of weights."""
    scores = (query @ keys.transpose(-1, -2)).float()
    if mask is not None:
        scores += mask
    mass = scores.logsumexp(-1, keepdim=True)
    return (scores - mass).exp_().to(values.dtype) @ values, mass


def _sees(lengths_B: Tensor, num_prompt: int, num_starts: int) -> Tensor:
    """Returns bool (B, 1, P + S, P + S): what prompt and starting tokens see."""
    device = lengths_B.device
    total = num_prompt + num_starts
    causal = torch.ones(num_prompt, num_prompt, dtype=torch.bool, device=device).tril_()
    sees = torch.zeros(len(lengths_B), 1, total, total, dtype=torch.bool, device=device)
    sees[:, :, :num_prompt, :num_prompt] = causal
    real_BP = torch.arange(num_prompt, device=device) < lengths_B[:, None]
    sees[:, :, num_prompt:, :num_prompt] = real_BP[:, None, None]
    sees[:, :, num_prompt:, num_prompt:] = torch.eye(num_starts, dtype=torch.bool, device=device)
    return sees
