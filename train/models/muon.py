"""Muon: momentum whose update is made orthogonal, for hidden matrices.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). torch.optim.Muon
computes in bfloat16 always, which CPUs without it in hardware do about thirty times slower than
float32; this one computes in bfloat16 where that is fast, and matrices of one shape together.
Knows nothing of models.
"""

# G matrices of one shape, M rows, N columns
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Of the quintic iteration; chosen by Jordan et al. for its slope at zero. Singular values end
# between about 0.7 and 1.2, which is near enough to 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_NUM_STEPS = 5
_EPSILON = 1e-7


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Takes the matrices.

        Args:
            matrices: parameters of two dimensions.
            lr: learning rate; of a matrix with more rows than columns it is sqrt(M / N) times that.
            weight_decay: decoupled, times the learning rate.
            momentum: share of the past in the moving average.
            dtype: what the iteration computes in.

        Raises:
            ValueError: a parameter is no matrix.
        """
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay})
        self._momentum, self._dtype = momentum, dtype
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"a parameter of the shape {tuple(p.shape)} is no matrix")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates all matrices that have a gradient."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for (rows, columns), matrices in by_shape.items():
                update_GMN = orthogonal(
                    torch.stack([self._direction(p) for p in matrices]).to(self._dtype)
                )
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for p, update_MN in zip(matrices, update_GMN, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update_MN, alpha=-scale)
        return loss

    def _direction(self, p: nn.Parameter) -> Tensor:
        assert p.grad is not None, "those without are left out"
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(p.grad, 1 - self._momentum)
        return p.grad.lerp(average, self._momentum)


def orthogonal(matrices_GMN: Tensor) -> Tensor:
    """Returns matrices with the same singular vectors and singular values near 1, (G, M, N)."""
    if matrices_GMN.shape[1] > matrices_GMN.shape[2]:
        return orthogonal(matrices_GMN.mT).mT
    x_GMN = matrices_GMN / matrices_GMN.norm(dim=(1, 2), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_NUM_STEPS):
        gram_GMM = x_GMN @ x_GMN.mT
        gram_GMM = torch.baddbmm(gram_GMM, gram_GMM, gram_GMM, beta=_B, alpha=_C)
        x_GMN = torch.baddbmm(x_GMN, gram_GMM, x_GMN, beta=_A)
    return x_GMN
