"""The optimiser: Muon for hidden matrices, AdamW for embeddings, output heads, norms and biases.

Muon makes the update of a matrix orthogonal; small transformers from scratch learn in a fraction
of AdamW's steps with it (docs/decisions.md). Knows
nothing of schedules: it multiplies whatever learning rates a scheduler leaves in its groups.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from train.models.backbone import has_fast_bf16
from train.models.muon import Muon

_BETAS = (0.9, 0.95)


class JointOptimizer(Optimizer):
    """Several optimisers over disjoint parameters that step as one."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        """Takes the optimisers; their parameter groups stay theirs and are listed in order."""
        self._parts = list(parts)
        super().__init__([p for part in parts for g in part.param_groups for p in g["params"]], {})
        self._join()

    def _join(self) -> None:
        self.param_groups = [g for part in self._parts for g in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Steps every part."""
        loss = closure() if closure is not None else None
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of the parts."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._join()


def make_optimizer(
    model: nn.Module, *, learning_rate: float, matrix_learning_rate: float, weight_decay: float
) -> Optimizer:
    """Returns the optimiser of a model's trainable parameters.

    Args:
        model: to be trained.
        learning_rate: AdamW's.
        matrix_learning_rate: Muon's, for matrices that are neither embeddings nor a language
            model's head; 0 leaves them to AdamW.
        weight_decay: decoupled, of matrices and embeddings.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for part in model.modules():
        head = part.get_output_embeddings() if isinstance(part, PreTrainedModel) else None
        if head is not None:
            embeddings.add(id(head.weight))
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim != 2:
            vectors.append(parameter)
        elif id(parameter) in embeddings or min(parameter.shape) == 1 or not matrix_learning_rate:
            tables.append(parameter)
        else:
            matrices.append(parameter)
    groups = [{"params": tables, "weight_decay": weight_decay}, {"params": vectors}]
    adam = AdamW(
        [g for g in groups if g["params"]], lr=learning_rate, betas=_BETAS, weight_decay=0.0,
        fused=True,
    )  # fmt: skip
    if not matrices:
        return adam
    dtype = torch.bfloat16 if has_fast_bf16() else torch.float32
    muon = Muon(matrices, lr=matrix_learning_rate, weight_decay=weight_decay, dtype=dtype)
    return JointOptimizer([muon, adam])
