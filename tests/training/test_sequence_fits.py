"""Recurrence and attention are fitted under a budget, and their integers are what they compute."""

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_integers import assert_exact
from torch import Tensor, nn

import probq
from probq.testing.deployed_sequences import LastOutput

BUDGET = probq.Budget(percent=4)


class Previous(nn.Module):
    """At each place, scores of the token before it, by attention with a mask of torch's that holds minus infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(5, 8), nn.Parameter(torch.randn(6, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 5)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.places
        return self.out(self.norm(self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]))


def larger_half() -> tuple[nn.Module, Tensor, Tensor, Any]:
    """Whether the first or the second half of a signal is larger, or there is little between them."""
    x = torch.randn(256, 4, 2)
    between = x[:, :2].sum((1, 2)) - x[:, 2:].sum((1, 2))
    return LastOutput(nn.GRU(2, 6, batch_first=True), 6), x, (between > 1).long() + 2 * (between < -1).long(), None


def previous() -> tuple[nn.Module, Tensor, Tensor, Any]:
    x = torch.randint(0, 5, (256, 6))
    targets = torch.cat([torch.full((256, 1), -100), x[:, :-1]], 1)  # the first place has none
    return Previous(), x, targets, probq.likelihoods.Categorical(axis=-1)


def trained(net: nn.Module, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    batches = list(zip(x.split(64), y.split(64), strict=True))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for inputs, targets in batches * 30:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs).flatten(0, -2), targets.flatten()).backward()
        optimizer.step()
    net.eval()
    return batches


@pytest.mark.parametrize("task", [larger_half, previous])
def test_a_fit_under_a_budget_gives_exact_integers_that_have_learned(task: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x, y, likelihood = task()
    batches = trained(net, x, y)
    q = probq.quantize(net, x[:64])
    probq.fit(q, batches, BUDGET, 8, likelihood=likelihood, seed=0, progress=False)
    assert q.mode().percent() <= 4
    q.eval()
    model = assert_exact(q, x[:32], tmp_path)

    seen = y >= 0
    right = [(torch.as_tensor(f(x)).argmax(-1) == y)[seen].float().mean() for f in (net, model)]
    assert right[0] > 0.9, right
    assert right[1] > 0.75, right

    q.save(tmp_path / "q.safetensors")
    assert torch.equal(probq.load(tmp_path / "q.safetensors", net)(x), q(x))
