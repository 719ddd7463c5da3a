"""The click model: p(click | scenario, query, side information, candidate) for many candidates.

A causal transformer reads the context once; every candidate attends to the context and to
itself. Knows nothing of how it is trained, nor of positions: they belong to training only.
"""

# B requests, C candidates, P context tokens, T candidate tokens, F features, D model dim,
# E activations of the head
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaModel

from engine.formats.features import FEATURE_NAMES
from train.models.shared_prefix import PackedBatch
from train.models.trained import load_trained, read_arrays

_HEAD_SIZE = 64  # of either reader
MAX_DEVIATIONS = 5.0  # of a feature from its mean: beyond, nothing was learnt
_LEAST_SCALE = 1e-3  # of a feature: one that never differs teaches nothing, and is left out
_HEAD_FILE = "head.safetensors"


class _Head(nn.Module):
    """Two readers of a candidate whose activations one last layer weighs.

    One reads the features alone and can judge any candidate of any query. The other reads the
    last hidden state, too: it knows words, and may know them by heart. So it is now and then
    switched off in training (`text_dropout`), or the first would leave everything to it.
    """

    def __init__(self, hidden_size: int, num_features: int) -> None:
        super().__init__()
        self.features = nn.Linear(num_features, _HEAD_SIZE)
        self.mixed = nn.Linear(_HEAD_SIZE, _HEAD_SIZE)
        self.hidden = nn.Linear(hidden_size + num_features, _HEAD_SIZE)
        self.out = nn.Linear(2 * _HEAD_SIZE, 1)
        self.text_dropout = 0.0
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    def standard(self, features_BCF: Tensor) -> Tensor:
        """Returns features less their mean, over their deviation; what is far off is cut."""
        return ((features_BCF - self.mean) / self.scale).clamp(-MAX_DEVIATIONS, MAX_DEVIATIONS)

    def of_features(self, standard_BCF: Tensor) -> Tensor:
        """Returns the activations of standardised features alone, (B, C, E / 2)."""
        return F.silu(self.mixed(F.silu(self.features(standard_BCF))))

    def activations(self, last_BCD: Tensor, features_BCF: Tensor) -> Tensor:
        """Returns what the last layer reads, (B, C, E)."""
        standard_BCF = self.standard(features_BCF)
        text = F.silu(self.hidden(torch.cat([last_BCD.float(), standard_BCF], dim=-1)))
        if self.training and self.text_dropout:
            kept_BC1 = torch.rand_like(text[..., :1]) >= self.text_dropout
            text = text * kept_BC1
        return torch.cat([self.of_features(standard_BCF), text], dim=-1)

    def forward(self, last_BCD: Tensor, features_BCF: Tensor) -> Tensor:
        """Returns logits float32 (B, C)."""
        return self.out(self.activations(last_BCD, features_BCF)).squeeze(-1).float()

    def feature_logits(self, features_BCF: Tensor) -> Tensor:
        """Returns what the logits are without the text, float32 (B, C)."""
        weight_E = self.out.weight[0, :_HEAD_SIZE]
        return (self.of_features(self.standard(features_BCF)) @ weight_E + self.out.bias).float()

    @torch.no_grad()
    def forget_text(self) -> None:
        """Has the last layer leave out the text for now: logits are `feature_logits`."""
        self.out.weight[:, _HEAD_SIZE:] = 0


class ClickModel(nn.Module):
    """Backbone and head; the logit is of p(click | seen), before calibration."""

    def __init__(self, backbone: LlamaModel, num_features: int = len(FEATURE_NAMES)) -> None:
        """Adds a fresh head to a causal backbone."""
        super().__init__()
        self.backbone = backbone
        self.head = _Head(backbone.config.hidden_size, num_features)

    def standardise(self, features_NF: Tensor) -> None:
        """Has the head read features by their mean and deviation in these rows, (N, F).

        One that is the same in all of them counts as its mean from then on.
        """
        self.head.mean.copy_(features_NF.mean(0))
        scale_F = features_NF.std(0)
        self.head.scale.copy_(torch.where(scale_F < _LEAST_SCALE, torch.inf, scale_F))

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
        ValueError: weights are damaged or lacking, or the head has another number of features than
            this release computes.
    """
    backbone = load_trained(LlamaModel, directory)
    head = read_arrays(directory / _HEAD_FILE)
    num_features = head["head.hidden.weight"].shape[1] - backbone.config.hidden_size
    if num_features != len(FEATURE_NAMES):
        raise ValueError(
            f"{directory}: trained on {num_features} features, this release computes "
            f"{len(FEATURE_NAMES)}: train the click model again"
        )
    model = ClickModel(backbone)
    model.head.load_state_dict({k.removeprefix("head."): v for k, v in head.items()})
    return model.eval()
