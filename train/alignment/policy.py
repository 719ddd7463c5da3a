"""Updates the policy on preferences, against what it was when the lists were drawn.

The loss of a prompt is that of a list-wise objective over its lists, plus an anchor where it has a
weight: the negative log-likelihood per token of the best list, without which preferences are often
met by making the worse lists unlikely only. The auxiliary text, which has no reward, is anchored
but not preferred: the rest of a list is, given that text.
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

from engine.formats.vocabulary import SEP_ID
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
    is_preferred: Tensor  # bool (B, J, S, N): tokens that are not of the auxiliary text
    reference: Tensor  # float32 (B, J): log pi of the preferred tokens under the reference
    reward: Tensor  # float32 (B, J)


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
        policy_BJ = (logprobs_BJSN * batch.is_preferred.to(device)).sum((2, 3))
        s_BJ = self._beta * (policy_BJ - batch.reference.to(device))
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
    prompts = [p.prompt.drawn for p in preferences]
    ids_BJSN = torch.stack([p.ids_JSN for p in preferences])
    is_preferred_BJSN = torch.ones_like(ids_BJSN, dtype=torch.bool)
    has_auxiliary_text = preferences[0].prompt.scenario.has_auxiliary_text
    is_list = len(prompts[0].slots) == 1
    if has_auxiliary_text and is_list:  # the sequence begins with it
        is_end_BJSN = ids_BJSN == SEP_ID
        is_preferred_BJSN = is_end_BJSN.cumsum(3) > is_end_BJSN.long()
    elif has_auxiliary_text:  # a sequence of its own
        is_preferred_BJSN[:, :, 0] = False
    reference_BJS = torch.stack([p.reference_JS for p in preferences])
    # Drawn for another slot, or known as a whole only: read once more.
    if bool(reference_BJS.isnan().any()) or (has_auxiliary_text and is_list):
        logprobs_BJSN = list_logprobs(reference, prompts, ids_BJSN).cpu()
        reference_BJ = (logprobs_BJSN * is_preferred_BJSN).sum((2, 3))
    else:
        reference_BJ = (reference_BJS * is_preferred_BJSN.any(3)).sum(2)
    return PreferenceBatch(
        prompts=prompts,
        ids=ids_BJSN,
        is_preferred=is_preferred_BJSN,
        reference=reference_BJ,
        reward=torch.stack([p.reward_J for p in preferences]),
    )
