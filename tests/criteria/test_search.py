"""Learned laws of widths against their minimum in closed form, parts that cannot matter, and what stays still."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import Plan, ProbqError, Quantized, criteria
from probq.codebooks import ladder
from probq.criteria.measuring.ready import perturbed_network
from probq.criteria.measuring.still_copy import still_copy
from probq.network.program.decided_codes import decided_output

pytestmark = pytest.mark.filterwarnings("ignore:.*energies of")
X = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """Two branches, one of which is multiplied by zero."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.used(x) + 0 * self.unused(x)


def labelled(plan: Plan) -> tuple[Quantized, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    net = Branches()
    return probq.quantize(net, X, plan), [(X, net(X).argmax(-1))]


def test_widths_that_cannot_matter_have_no_energy() -> None:
    q, batches = labelled(Plan(weight=ladder(1, 2, 8)))
    energy = criteria.search(q, batches, steps=150, progress=False)
    rows = dict(zip(energy.names, energy.unary, strict=True))
    assert abs(rows["unused.weight"]).max() < 0.02
    assert rows["used.weight"][0] > 1
    assert rows["used.weight"][0] > rows["used.weight"][1] > rows["used.weight"][2] == 0


def test_one_quantizer_has_the_law_of_the_closed_form() -> None:
    """Alone, the minimum is `q(b)` in proportion to `exp(-L(b) / temperature)`; a quadratic loss has no bias."""
    torch.manual_seed(1)
    net = nn.Linear(6, 2)
    net.weight.data *= 3
    y = net(X).detach() + 0.3 * torch.randn(200, 2)
    q = probq.quantize(
        net, X, Plan(weight=ladder(1, 2, 8)), likelihood=lambda out: torch.distributions.Normal(out, 1.0)
    )
    exact = criteria.loss(q, [(X, y)], progress=False).unary[0]
    found = criteria.search(q, [(X, y)], steps=600, temperature=0.5, progress=False).unary[0]
    assert exact[0] > 0.1
    np.testing.assert_allclose(found, exact / 0.5, atol=0.15)


def test_gates_of_channels_are_added() -> None:
    q, batches = labelled(Plan(weight=ladder(1, 8), gates="channel"))
    energy = criteria.search(q, batches, steps=60, progress=False)
    rows = dict(zip(energy.names, energy.unary, strict=True))
    assert rows["used.weight"].shape == (2,)
    assert rows["used.weight"][0] > 1
    assert abs(rows["unused.weight"]).max() < 0.06


def test_the_network_stays_as_it_is_and_one_seed_gives_one_energy() -> None:
    q, batches = labelled(Plan(weight=ladder(2, 8), width_prior=probq.priors.Energy([0.0, 5.0])))
    state = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    random = torch.get_rng_state()
    one, same, other = (criteria.search(q, batches, steps=6, seed=s, progress=False) for s in (1, 1, 2))
    assert all(map(np.array_equal, one.unary, same.unary))
    assert any((a != b).any() for a, b in zip(one.unary, other.unary, strict=True))
    assert all(torch.equal(tensor, state[name]) for name, tensor in q.state_dict().items())
    assert all(parameter.requires_grad for parameter in q.net.parameters())
    assert torch.equal(random, torch.get_rng_state())
    assert abs(one.unary[1]).max() < 0.5  # the plan's prior, 5 nats, has no part in it


def test_batch_normalisation_takes_the_statistics_of_batches() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    own = still_copy(probq.quantize(net, X, Plan(weight=ladder(1, 8))), [(X, None)])
    before = decided_output(own, (X,))
    own.net[1].running_mean.fill_(100.0)
    assert torch.equal(decided_output(own, (X,)), before)  # without dropout, too
    own.net[1].eval()
    assert not torch.allclose(decided_output(own, (X,)), before)


def test_of_searches_for_a_kind_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    q = probq.quantize(net, X, Plan(weight=ladder(1, 8), input=ladder(1, 8, signed=False)))
    energy = criteria.search(q, [(X, net(X).argmax(-1))], steps=20, of="weights", progress=False)
    rows = dict(zip(energy.names, energy.unary, strict=True))
    assert rows["0.weight"][0] > 0
    assert not rows["2.input"].any()


def test_tied_quantizers_have_one_law_also_within_inference_mode() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    q = probq.quantize(net, X, Plan(weight=ladder(1, 8), tie_weight="all"))
    batches = [(X, net(X).argmax(-1))]
    with torch.inference_mode():
        energy = criteria.search(q, batches, steps=30, of="weights", progress=False)
        learned = criteria.limpq(q, batches, steps=1, of="weights", progress=False)
    assert energy.names == learned.names == ("0.weight", "2.input")
    assert energy.unary[0][0] > 0.5


def test_bad_input_is_told() -> None:
    q, batches = labelled(Plan(weight=ladder(2, 8)))
    with pytest.raises(ProbqError, match="needs labels"):
        criteria.search(q, [X], progress=False)
    with pytest.raises(ProbqError, match="steps"):
        criteria.search(q, batches, steps=1, progress=False)
    with pytest.raises(ProbqError, match="temperature is a positive number"):
        criteria.search(q, batches, temperature=0, progress=False)
    with pytest.raises(ProbqError, match="no quantizer of inputs has a choice"):
        criteria.search(q, batches, of="inputs", progress=False)


class LanguageModel(nn.Module):
    """An embedding, one block of causal attention written out, and scores of the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.out = nn.LayerNorm(8), nn.Linear(8, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        score = self.query(x) @ self.key(x).transpose(1, 2) / 8**0.5
        hidden = torch.full(score.shape[1:], -torch.inf, device=x.device).triu(1)
        return self.out(self.norm(x + F.softmax(score + hidden, -1) @ self.value(x)))


@pytest.mark.filterwarnings("ignore:probq.lower will refuse", "ignore:.*outside of", "ignore:.*is never negative")
def test_language_models_have_a_law_at_each_position() -> None:
    torch.manual_seed(0)
    net, tokens = LanguageModel(), torch.randint(0, 7, (24, 5))
    following = (tokens + 1) % 7
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(tokens).flatten(0, 1), following.flatten()).backward()
        optimizer.step()
    q = probq.quantize(net.eval(), tokens, Plan(weight=ladder(1, 4, 8), input=ladder(2, 8, signed=True)))
    kl = criteria.kl(q, [tokens], progress=False)
    found = criteria.search(q, [(tokens, following)], steps=80, progress=False)
    assert kl.names == found.names
    assert {"embed.weight", "out.weight", "out.input"} <= set(kl.names)
    rows = dict(zip(found.names, found.unary, strict=True))
    for name in ("embed.weight", "out.weight"):
        assert rows[name][0] > 1
    network = perturbed_network(q, [tokens], 24, "kl", labels=False)
    p = F.log_softmax(torch.cat(list(network.float_outputs())), -1)

    def divergence(widths: dict[str, int]) -> float:
        r = F.log_softmax(torch.cat([output for output, _ in network.outputs(widths)]), -1)
        return float((p.exp() * (p - r)).sum((1, 2)).mean())  # for one sequence: the sum over its positions

    row = dict(zip(kl.names, kl.unary, strict=True))["out.weight"]
    np.testing.assert_allclose(row[0], divergence({"out.weight": 1}) - divergence({}), rtol=1e-4)
    for criterion in (criteria.ompq, criteria.limpq):
        options = {"steps": 2} if criterion is criteria.limpq else {}
        assert criterion(q, [(tokens, following)], progress=False, **options).names == kl.names
