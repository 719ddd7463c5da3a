"""The click model: p(click | scenario, query, side information, candidate) for many candidates.

A causal transformer reads the context once; every candidate attends to the context and to
itself. Knows nothing of how it is trained, nor of positions: they belong to training only.
"""

# B requests, C candidates, P context tokens, T candidate tokens, F features, D model dim,
# E activations of the head
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaModel

from engine.formats.features import FEATURE_NAMES
from train.models.shared_prefix import PackedBatch

_HEAD_SIZE = 64
_HEAD_FILE = "head.safetensors"


class _Head(nn.Module):
    def __init__(self, hidden_size: int, num_features: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_size + num_features, _HEAD_SIZE)
        self.out = nn.Linear(_HEAD_SIZE, 1)

    def activations(self, last_BCD: Tensor, features_BCF: Tensor) -> Tensor:
        """Returns what the last layer reads, (B, C, E)."""
        return F.silu(self.hidden(torch.cat([last_BCD.float(), features_BCF], dim=-1)))

    def forward(self, last_BCD: Tensor, features_BCF: Tensor) -> Tensor:
        """Returns logits float32 (B, C)."""
        return self.out(self.activations(last_BCD, features_BCF)).squeeze(-1).float()


class ClickModel(nn.Module):
    """Backbone and head; the logit is of p(click | seen), before calibration."""

    def __init__(self, backbone: LlamaModel, num_features: int = len(FEATURE_NAMES)) -> None:
        """Adds a fresh head to a causal backbone."""
        super().__init__()
        self.backbone = backbone
        self.head = _Head(backbone.config.hidden_size, num_features)

    def forward(
        self,
        context_ids: Tensor,
        context_mask: Tensor,
        candidate_ids: Tensor,
        candidate_mask: Tensor,
        features: Tensor,
    ) -> Tensor:
        """Returns click logits, float32 (B, C): the slow, obvious form.

        One full pass per candidate over context + candidate; `packed_logits` equals it.

        Args:
            context_ids: int64 (B, P), right padded.
            context_mask: int64 (B, P), 1 for tokens.
            candidate_ids: int64 (B, C, T), right padded.
            candidate_mask: int64 (B, C, T); a candidate of zeros is missing, its logit is
                finite and means nothing.
            features: float32 (B, C, F).
        """
        num_requests, num_candidates, _ = candidate_ids.shape
        repeated = context_ids[:, None].expand(-1, num_candidates, -1)
        ids_KL = torch.cat([repeated, candidate_ids], dim=2).flatten(0, 1)
        repeated = context_mask[:, None].expand(-1, num_candidates, -1)
        mask_KL = torch.cat([repeated, candidate_mask], dim=2).flatten(0, 1)
        positions_KL = (mask_KL.cumsum(1) - 1).clamp(min=0)  # go on after the context's padding
        hidden_KLD = self.backbone(
            input_ids=ids_KL, attention_mask=mask_KL, position_ids=positions_KL, use_cache=False
        ).last_hidden_state
        length_K = candidate_mask.sum(2).flatten()
        last_K = (context_ids.shape[1] + length_K - 1).clamp(max=ids_KL.shape[1] - 1)
        last_KD = hidden_KLD[torch.arange(len(last_K), device=last_K.device), last_K]
        return self.head(last_KD.view(num_requests, num_candidates, -1), features)

    def packed_logits(self, packed: PackedBatch, features: Tensor) -> Tensor:
        """Returns click logits, float32 (B, C): contexts are computed once, as in serving.

        Args:
            packed: contexts as prefixes, candidates as suffixes.
            features: float32 (B, C, F).
        """
        return self.head(self._last_hidden(packed), features)

    def packed_activations(self, packed: PackedBatch, features: Tensor) -> Tensor:
        """Returns what the head's last layer reads, float32 (B, C, E): logit = out(it)."""
        return self.head.activations(self._last_hidden(packed), features).float()

    def _last_hidden(self, packed: PackedBatch) -> Tensor:
        """Returns the hidden state of each candidate's last token, (B, C, D)."""
        hidden_BLD = self.backbone(
            input_ids=packed.input_ids,
            attention_mask=packed.attention_mask,
            position_ids=packed.position_ids,
            use_cache=False,
        ).last_hidden_state
        index_BC1 = packed.last_indices[:, :, None]
        return hidden_BLD.gather(1, index_BC1.expand(-1, -1, hidden_BLD.shape[2]))


def save_click_model(model: ClickModel, directory: Path) -> None:
    """Writes config.json, model.safetensors (backbone) and head.safetensors."""
    model.backbone.save_pretrained(directory)
    head = {f"head.{name}": value.contiguous() for name, value in model.head.state_dict().items()}
    save_file(head, directory / _HEAD_FILE)


def load_click_model(directory: Path) -> ClickModel:
    """Reads what `save_click_model` wrote; the model is in evaluation mode, float32.

    Raises:
        ValueError: the head has another number of features than this release computes.
    """
    backbone = LlamaModel.from_pretrained(directory, dtype=torch.float32)
    head = load_file(directory / _HEAD_FILE)
    num_features = head["head.hidden.weight"].shape[1] - backbone.config.hidden_size
    if num_features != len(FEATURE_NAMES):
        raise ValueError(
            f"{directory}: trained on {num_features} features, this release computes "
            f"{len(FEATURE_NAMES)}: train the click model again"
        )
    model = ClickModel(backbone)
    model.head.load_state_dict({k.removeprefix("head."): v for k, v in head.items()})
    return model.eval()
