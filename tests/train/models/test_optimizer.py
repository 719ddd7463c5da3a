"""Muon moves matrices, AdamW the rest, and a resumed run goes on as if never interrupted."""

import copy

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import LlamaConfig, LlamaForCausalLM

from train.models.optimizer import JointOptimizer, make_optimizer


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.hidden(self.embedding(ids))))


def optimizer_of(model: nn.Module, matrix_learning_rate: float = 0.02) -> Optimizer:
    return make_optimizer(
        model, learning_rate=1e-2, matrix_learning_rate=matrix_learning_rate, weight_decay=0.01
    )


def train(model: nn.Module, optimizer: Optimizer, num_steps: int, seed: int = 1) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for _ in range(num_steps):
        ids = torch.randint(0, 20, (16,), generator=generator)
        loss = nn.functional.cross_entropy(model(ids), (ids + 1) % 20)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = Tied()
    optimizer = optimizer_of(model)
    assert isinstance(optimizer, JointOptimizer)
    listed = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    matrices = [id(p) for p in optimizer.param_groups[0]["params"]]
    assert matrices == [id(model.hidden.weight)], "neither embeddings nor the tied head"


def test_a_head_that_is_not_tied_is_no_hidden_matrix() -> None:
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    model = nn.ModuleDict({"inside": LlamaForCausalLM(config)})
    optimizer = optimizer_of(model)
    matrices = {id(p) for p in optimizer.param_groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in matrices}
    assert len(names) == 7, "four of attention and three of the layer behind it"
    assert all(".layers.0." in name for name in names)


def test_no_matrix_rate_means_adamw_alone() -> None:
    assert isinstance(optimizer_of(Tied(), 0.0), AdamW)


def test_it_learns() -> None:
    model = Tied()
    losses = train(model, optimizer_of(model), 200)
    assert losses[-1] < 0.2 * losses[0]


def test_rates_that_a_scheduler_sets_reach_every_part() -> None:
    model = Tied()
    optimizer = optimizer_of(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, 3)
    scheduler.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


def test_resumed_training_equals_uninterrupted_training() -> None:
    straight, resumed = Tied(), Tied()
    optimizer = optimizer_of(straight)
    train(straight, optimizer, 5)
    expected = train(straight, optimizer, 5, seed=2)

    first = optimizer_of(resumed)
    train(resumed, first, 5)
    second = optimizer_of(resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert train(resumed, second, 5, seed=2) == expected
    second.param_groups[0]["lr"] = 0.0  # groups are those of the parts, also after loading
    frozen = resumed.hidden.weight.detach().clone()
    train(resumed, second, 1)
    torch.testing.assert_close(resumed.hidden.weight.detach(), frozen)
