"""Updates the policy on preferences, against what it was when the lists were drawn.

The loss of a prompt is that of a list-wise objective over its lists, plus an anchor where it has a
weight: the negative log-likelihood per token of the best list, without which preferences are often
met by making the worse lists unlikely only. The auxiliary text, which has no reward, is anchored
but not preferred.
Knows nothing of rewards.
"""

# B prompts, J lists of each, S sequences of a list, N new tokens
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from train.alignment.objectives import OBJECTIVES
from train.alignment.preferences import Preference
from train.generation.likelihood import list_logprobs
from train.generation.sampler import ListPrompt
from train.models.pace import PacedTrainer, trainer_arguments
from train.settings import AlignmentConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceBatch:
    """Preferences of prompts with equal numbers of sequences."""

    prompts: list[ListPrompt]
    ids: Tensor  # int64 (B, J, S, N)
    reference: Tensor  # float32 (B, J, S): log pi of each sequence under the reference
    reward: Tensor  # float32 (B, J)
    first_preferred: int  # sequences before it are auxiliary texts


class PreferenceLoss(nn.Module):
    """A causal model whose output is the loss on preferences."""

    def __init__(self, model: Any, config: AlignmentConfig) -> None:
        """Wraps a transformers causal language model."""
        super().__init__()
        self.model = model
        self._objective = OBJECTIVES[config.objective]
        self._beta = config.beta
        self._anchor_weight = config.anchor_weight

    def forward(self, batch: PreferenceBatch) -> dict[str, Tensor]:
        """Returns the mean loss a prompt as "loss"."""
        logprobs_BJSN = list_logprobs(self.model, batch.prompts, batch.ids)
        device = logprobs_BJSN.device
        judged = slice(batch.first_preferred, None)
        policy_BJ = logprobs_BJSN.sum(3)[:, :, judged].sum(2)
        reference_BJ = batch.reference.to(device)[:, :, judged].sum(2)
        s_BJ = self._beta * (policy_BJ - reference_BJ)
        loss = self._objective(s_BJ, batch.reward.to(device)).mean()
        if self._anchor_weight:
            num_tokens = int((batch.ids[:, 0] != 0).sum())
            loss = loss - self._anchor_weight * logprobs_BJSN[:, 0].sum() / num_tokens
        return {"loss": loss}


def update(
    model: Any,
    preferences: Sequence[Preference],
    config: AlignmentConfig,
    *,
    seed: int,
    checkpoints: Path,
) -> int:
    """Trains the model in place for one pass over the preferences; returns the number of steps.

    Args:
        model: a transformers causal language model, as it was when the lists were drawn.
        preferences: at least one.
        config: how to train.
        seed: of the order.
        checkpoints: directory; an interrupted update goes on from there.
    """
    batches = PreferenceBatches(model, preferences, config.batch_size, seed)
    arguments = trainer_arguments(
        checkpoints,
        batch_size=1,  # of batches that are made already
        learning_rate=config.learning_rate,
        weight_decay=0.0,
        bf16=config.bf16,
        seed=seed,
    )
    arguments.save_safetensors = False  # it refuses tied embeddings inside a wrapper
    trainer = PacedTrainer(
        model=PreferenceLoss(model, config),
        args=arguments,
        train_dataset=batches,
        data_collator=lambda parts: {"batch": parts[0]},
        max_train_s=0,
        warmup_share=config.warmup_share,
        matrix_learning_rate=config.matrix_learning_rate,
    )
    trainer.train_resumable()
    trainer.remove_checkpoints()
    return trainer.state.global_step


class PreferenceBatches(Dataset[PreferenceBatch]):
    """Preferences in batches of one shape and similar length, in a fixed random order."""

    def __init__(
        self, reference: Any, preferences: Sequence[Preference], batch_size: int, seed: int
    ) -> None:
        """Makes the batches; `reference` is the policy that drew the lists, as it was then."""
        by_shape: dict[tuple[str, int], list[Preference]] = {}
        for preference in preferences:
            shape = preference.prompt.scenario.name, len(preference.reward_J)
            by_shape.setdefault(shape, []).append(preference)
        self._batches: list[PreferenceBatch] = []
        for own in by_shape.values():
            own.sort(key=lambda p: len(p.prompt.drawn.ids))
            self._batches += [
                _batch(reference, own[i : i + batch_size]) for i in range(0, len(own), batch_size)
            ]
        random.Random(seed).shuffle(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> PreferenceBatch:
        return self._batches[index]


@torch.no_grad()
def _batch(reference: Any, preferences: Sequence[Preference]) -> PreferenceBatch:
    first = preferences[0].prompt
    prompts = [p.prompt.drawn for p in preferences]
    ids_BJSN = torch.stack([p.ids_JSN for p in preferences])
    reference_BJS = torch.stack([p.reference_JS for p in preferences])
    if bool(reference_BJS.isnan().any()):  # drawn for another slot: read once more
        reference_BJS = list_logprobs(reference, prompts, ids_BJSN).sum(3).cpu()
    return PreferenceBatch(
        prompts=prompts,
        ids=ids_BJSN,
        reference=reference_BJS,
        reward=torch.stack([p.reward_J for p in preferences]),
        first_preferred=int(first.scenario.has_auxiliary_text and len(first.drawn.slots) > 1),
    )
