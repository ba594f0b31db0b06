"""Whether 0 bits leave nothing of the inputs in an output, against what networks give at these widths."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import probq
from probq import Budget, Energy, Plan, Quantized
from probq.codebooks import ladder
from probq.decisions.within_budget import with_widths
from probq.network.program.constant_outputs import constant_outputs
from probq.network.program.foldable import tensors_of
from probq.testing.zoo import Residual, TiedEmbedding


class Paths(nn.Module):
    """Two branches side by side, one inside a residual block that works in place, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.inner = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 5)
        self.head, self.other, self.act = nn.Linear(5, 3), nn.Linear(5, 2), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.act(self.left(x)) + self.right(x)
        x = x + self.act(self.inner(x))
        return {"head": self.head(x), "other": self.other(self.act(x))}


def tokens(n: int) -> Tensor:
    return torch.randint(0, 7, (n, 5))


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


NETWORKS: dict[str, tuple[Any, Any]] = {
    "paths": (Paths, lambda n: torch.randn(n, 4)),
    "chain": (chain, lambda n: torch.randn(n, 4)),
    "residual": (Residual, lambda n: torch.randn(n, 2, 5, 5)),
    "tied embedding": (TiedEmbedding, tokens),
}
PLAN = Plan(weight=ladder(0, 8), input=ladder(0, 8, signed=True), network_input=ladder(0, 8, signed=True))


def network(name: str, plan: Plan = PLAN) -> tuple[Quantized, Tensor]:
    torch.manual_seed(0)
    make, data = NETWORKS[name]
    x = data(16)
    return probq.quantize(make().eval(), x, plan).eval(), x


def gives_the_same(q: Quantized, x: Tensor, zero: Any) -> bool:
    """Whether an output of the decided network is the same for all inputs."""
    widths = {name: 0 if name in zero else 8 for name, _ in q.named_quantizers()}
    outputs = tensors_of(q.outputs([with_widths(q, widths, None)], x)[0])
    return any(bool((output == output[:1]).all()) for output in outputs)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_what_networks_give(name: str) -> None:
    q, x = network(name)
    sites = [site for site, _ in q.named_sites()]
    choices = [(), *((one,) for one in sites), *itertools.combinations(sites, 2)]
    found = constant_outputs(q, choices)
    assert found == [gives_the_same(q, x, zero) for zero in choices]
    assert any(found)
    assert not all(found)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_the_notes_name_what_nothing_leads_around(tmp_path: Path) -> None:
    q, _ = network("paths", Plan(weight=ladder(0, 2, 8)))
    (note, *_) = q.notes
    assert note.startswith("head.weight, other.weight may take 0 bits, and nothing leads around")
    assert not any("0 bits" in n for n in network("paths", Plan(weight=ladder(1, 8)))[0].notes)
    assert not any("0 bits" in n for n in network("chain", Plan(weight=ladder(0, 8), gates="channel"))[0].notes)
    tied, _ = network("paths", Plan(weight=ladder(0, 8), tie_weight="all"))
    assert tied.notes[0].startswith("left.weight may take 0 bits")
    q, _ = network("chain")
    q.save(tmp_path / "q")
    torch.manual_seed(0)
    loaded = probq.load(tmp_path / "q", chain().eval())
    assert loaded.example == ()  # from the shape of its inputs then
    assert constant_outputs(loaded, [{"0.weight"}, ()]) == constant_outputs(q, [{"0.weight"}, ()]) == [True, False]


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_a_decision_that_leaves_nothing_of_the_inputs_is_told() -> None:
    q, x = network("paths", Plan(weight=ladder(0, 8), input=ladder(8, signed=True)))
    sites = [n for n, z in q.named_sites() if len(z.ladder) > 1]

    def allocated(*kept: str) -> probq.Assignment:
        rows = [[9.0 if name in kept else -9.0, 0.0] for name in sites]
        return probq.allocate(q, Energy(sites, [(0, 8)] * len(sites), rows))

    assert allocated("left.weight", "head.weight", "other.weight").widths["inner.weight"] == 0  # a path leads around
    with pytest.warns(UserWarning, match=r"at 0 bits of head.weight outputs are the same for all inputs") as caught:
        allocated("left.weight", "other.weight")
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"at 0 bits of left.weight, right.weight, inner.weight outputs are the same"):
        allocated("head.weight", "other.weight")  # each of the first two has a path around it, together they have none
    chained, x = network("chain", Plan(weight=ladder(0, 8)))
    with pytest.warns(UserWarning, match="at 0 bits of 0.weight"):
        probq.fit(chained, [(x, torch.arange(16) % 3)], Budget(percent=1e-9), epochs=2, progress=False, seed=0)
    with pytest.warns(UserWarning, match="at 0 bits of 0.weight"):
        probq.decide(chained, Budget(percent=1e-9), [(x, torch.arange(16) % 3)], progress=False)


def test_networks_that_do_not_run_on_their_example_are_left_in_peace() -> None:
    q, _ = network("chain")
    q.example = (torch.randn(2, 9),)
    assert constant_outputs(q, [{"0.weight"}]) == [False]
    assert constant_outputs(q, []) == []
