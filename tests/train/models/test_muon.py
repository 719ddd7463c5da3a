"""Muon against a singular value decomposition and against torch's own."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from train.models.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 48), (2, 48, 16), (1, 1, 8)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    found = orthogonal(matrices)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    # The iteration is a polynomial of the singular values: in their basis it is diagonal.
    diagonal = left.mT @ found @ right.mT
    new = torch.diagonal(diagonal, dim1=1, dim2=2)
    assert torch.allclose(diagonal, torch.diag_embed(new), atol=1e-9)
    is_large = values > 0.02 * values.norm(dim=1, keepdim=True)
    assert ((new > 0.6) & (new < 1.3))[is_large].all()


def test_it_steps_like_the_reference():
    torch.manual_seed(0)
    start = [torch.randn(32, 16), torch.randn(16, 32), torch.randn(16, 32)]
    ours = [nn.Parameter(m.clone()) for m in start]
    theirs = [nn.Parameter(m.clone()) for m in start]
    optimizers = [
        Muon(ours, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1),
    ]
    for step in range(5):
        gradients = [torch.randn(m.shape, generator=torch.manual_seed(step)) for m in start]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for p, gradient in zip(parameters, gradients, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        assert (a - first).norm() > 0.1
        assert (a - b).norm() < 0.05 * (a - first).norm()  # bfloat16


def test_it_goes_on_from_its_state():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(8, 12))
    optimizer = Muon([parameter], lr=0.1)
    parameter.grad = torch.randn(8, 12)
    optimizer.step()
    again = nn.Parameter(parameter.detach().clone())
    resumed = Muon([again], lr=0.1)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for p, o in ((parameter, optimizer), (again, resumed)):
        p.grad = torch.ones(8, 12).triu()
        o.step()
    assert torch.equal(parameter, again)


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match="no matrix"):
        Muon([nn.Parameter(torch.zeros(4))], lr=0.1)
