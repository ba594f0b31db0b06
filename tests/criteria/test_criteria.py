"""Energies against networks run one by one, and what is computed once and reused."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import probq
from probq import Plan, ProbqError, Quantized, criteria
from probq.codebooks import ladder
from probq.criteria.measuring.perturbed import PerturbedNetwork
from probq.likelihoods import Normal, PerOutput, categorical

pytestmark = pytest.mark.filterwarnings("ignore:.*energies of")  # of networks that were never trained
X, Y = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
BATCHES = [(X[:16], Y[:16]), (X[16:], Y[16:])]


class Residual(nn.Module):
    """A convolution, a block with a path around it that works in place, and a layer that is called twice."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.twice, self.head = nn.Linear(12, 12), nn.Linear(12, 3)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        x = x + self.act(self.norm(self.inner(x)))
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(F.relu(self.twice(F.relu(self.twice(x)))))


def network(norm: bool = False, plan: Plan | None = None) -> Quantized:
    torch.manual_seed(0)
    net = Residual(norm).eval()
    return probq.quantize(net, X, plan or Plan(weight=ladder(2, 4, 8), input=ladder(4, 8, signed=True)))


def calibrated(q: Quantized) -> Quantized:
    next(probq.steps(q, BATCHES, epochs=1))  # sets the scales of inputs; then a first step moves the weights
    return q


def alone(q: Quantized) -> PerturbedNetwork:
    """A network that is decided at some widths by its own forward."""
    own = PerturbedNetwork(q, BATCHES)
    for layer in own.q.layers:
        del own.q.net.get_submodule(layer.name).forward  # the module's own again: nothing is kept
    return own


def loss_at(own: PerturbedNetwork, widths: dict[str, int]) -> float:
    """The loss with all others on the widest rung."""
    losses = [F.cross_entropy(output, y, reduction="sum") for output, (_, y) in own.outputs(widths)]
    return float(sum(losses)) / len(X)


@pytest.mark.parametrize("norm", [False, True])
def test_energies_are_differences_of_losses_of_networks_run_one_by_one(norm: bool) -> None:
    q = calibrated(network(norm))
    energy, own = criteria.loss(q, BATCHES, progress=False), alone(q)
    whole = loss_at(own, {})
    assert energy.names == tuple(n for n, z in q.named_quantizers() if len(z.ladder) > 1)
    for name, bits, row in zip(energy.names, energy.widths, energy.unary, strict=True):
        expected = [loss_at(own, {name: b}) - whole for b in bits[:-1]]
        np.testing.assert_allclose(row, [*expected, 0], atol=2e-6)


def test_normalisation_on_the_widest_rungs_is_that_of_training() -> None:
    q = network(True, Plan(weight=ladder(2, 15), input=ladder(4, 15, signed=True)))
    with torch.no_grad():
        q.net.norm.running_mean.normal_()
        q.net.norm.running_var.uniform_(2, 4)  # far from what these examples have
    q = calibrated(q)
    own = PerturbedNetwork(q, BATCHES)
    wide, plain = torch.cat([output for output, _ in own.outputs({})]), torch.cat(list(own.float_outputs()))
    torch.testing.assert_close(wide, plain, atol=3e-4, rtol=0)
    assert float((wide - plain).abs().max()) < 0.1 * float(plain.std(0).mean())


def test_pairs_are_those_of_networks_run_one_by_one() -> None:
    q = calibrated(network())
    energy, own = criteria.clado(q, BATCHES, progress=False), alone(q)
    whole = loss_at(own, {})
    single = dict(zip(energy.names, energy.unary, strict=True))
    for (i, one), (j, other) in itertools.combinations(enumerate(energy.names), 2):
        block = energy.block(one, other)
        for k, m in itertools.product(range(block.shape[0]), range(block.shape[1])):
            widths = {one: energy.widths[i][k], other: energy.widths[j][m]}
            together = loss_at(own, widths) - whole
            assert energy(
                {n: max(b) for n, b in zip(energy.names, energy.widths, strict=True)} | widths
            ) == pytest.approx(together, abs=5e-6)
            assert single[one][k] + single[other][m] + block[k, m] == pytest.approx(together, abs=5e-6)


def test_kl_is_torchs_and_needs_no_labels() -> None:
    q = calibrated(network())
    energy = criteria.kl(q, [x for x, _ in BATCHES], progress=False)
    own = PerturbedNetwork(q, BATCHES)
    reference = F.log_softmax(torch.cat(list(own.float_outputs())), -1)

    def divergence(widths: dict[str, int]) -> float:
        found = F.log_softmax(torch.cat([output for output, _ in own.outputs(widths)]), -1)
        return float(F.kl_div(found, reference, log_target=True, reduction="batchmean"))

    for name, bits, row in zip(energy.names, energy.widths, energy.unary, strict=True):
        np.testing.assert_allclose(row, [divergence({name: b}) - divergence({}) for b in bits], atol=2e-6)


class Split(nn.Module):
    """Two outputs, for likelihoods of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layer(x)
        return {"kind": y[:, :3], "size": y[:, 3:]}


def test_those_of_several_outputs_are_sums() -> None:
    torch.manual_seed(0)
    x, kind, size = torch.rand(12, 4), torch.arange(12) % 3, torch.rand(12, 2)
    likelihood = PerOutput({"kind": categorical, "size": Normal(0.5)})
    plan, batches = Plan(weight=ladder(2, 8), input=ladder(8, signed=True)), [(x, {"kind": kind, "size": size})]
    q = probq.quantize(Split(), x, plan, likelihood=likelihood)
    next(probq.steps(q, batches, epochs=1))  # sets the scales of inputs
    own = PerturbedNetwork(q, batches)
    (narrow, _), (wide, _) = (next(own.outputs(widths)) for widths in ({"layer.weight": 2}, {}))
    (real,) = own.float_outputs()

    def divergence(found: dict[str, Tensor]) -> float:
        kl = F.kl_div(found["kind"].log_softmax(-1), real["kind"].log_softmax(-1), log_target=True, reduction="sum")
        return float(kl + (found["size"] - real["size"]).square().sum() / (2 * 0.5**2)) / 12

    def loss(found: dict[str, Tensor]) -> float:
        squares = (found["size"] - size).square().sum() / (2 * 0.5**2)
        return float(F.cross_entropy(found["kind"], kind, reduction="sum") + squares) / 12

    for criterion, measure in ((criteria.kl, divergence), (criteria.loss, loss)):
        energy = criterion(q, batches, progress=False)
        row = dict(zip(energy.names, energy.unary, strict=True))["layer.weight"]
        np.testing.assert_allclose(row, [measure(narrow) - measure(wide), 0], rtol=1e-4)


def test_a_law_without_divergence_is_told() -> None:
    q = probq.quantize(nn.Linear(4, 3), torch.rand(8, 4), Plan(weight=ladder(2, 8)), likelihood=own_law)
    with pytest.raises(ProbqError, match=r"no divergence of a StudentT from a StudentT law; give .*criteria\.loss"):
        criteria.kl(q, [torch.rand(8, 4)], progress=False)


def own_law(output: Tensor) -> torch.distributions.Distribution:
    return torch.distributions.StudentT(3.0, output)


def test_what_lies_upstream_is_computed_once() -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(*itertools.chain(*((nn.Linear(8, 8), nn.ReLU()) for _ in range(12))), nn.Linear(8, 3))
    q = probq.quantize(deep, torch.rand(16, 8), Plan(weight=ladder(2, 8), input=ladder(8, signed=True)))
    own = PerturbedNetwork(q, [(torch.rand(16, 8), None)])
    before = own.forwards
    for name in own.names:
        list(own.outputs({name: 2}))
    assert own.forwards - before == sum(range(1, 14))  # of 13 * 13


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    q, path, calls = calibrated(network()), tmp_path / "measured.json", 0
    whole = criteria.loss(q, BATCHES, progress=False)
    run = PerturbedNetwork.outputs

    def killed(self, widths):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return run(self, widths)

    monkeypatch.setattr(PerturbedNetwork, "outputs", killed)
    with pytest.raises(KeyboardInterrupt):
        criteria.loss(q, BATCHES, resume=path, progress=False)
    again = criteria.loss(q, BATCHES, resume=path, progress=False)
    assert all(map(np.array_equal, whole.unary, again.unary))
    assert calls == 6 + 1 + 1 + sum(len(b) - 1 for b in again.widths) - 3  # three were kept, the widest rungs run again
    with pytest.raises(ProbqError, match="another network, other data"):
        criteria.loss(q, BATCHES[:1], resume=path, progress=False)
    path.write_text("{")
    with pytest.raises(ProbqError, match="no file of measurements"):
        criteria.loss(q, BATCHES, resume=path, progress=False)


def test_a_projected_form_has_no_negative_eigenvalue_and_keeps_a_convex_one() -> None:
    from probq.criteria.clado import projected

    rng = np.random.default_rng(0)
    sizes = [3, 2, 3]
    factor = rng.normal(size=(8, 8))
    form = factor @ factor.T
    for part in np.split(np.arange(8), np.cumsum(sizes)[:-1]):
        form[np.ix_(part, part)] = np.diag(form[np.ix_(part, part)].diagonal())
    form += np.eye(8) * max(0.0, -np.linalg.eigvalsh(form).min())
    unary = np.split(form.diagonal() / 2, np.cumsum(sizes)[:-1])
    pairwise = form - np.diag(form.diagonal())
    energy = probq.Energy(tuple("abc"), ((1, 2, 4), (2, 4), (1, 2, 4)), tuple(unary), pairwise)
    kept = projected(energy)
    np.testing.assert_allclose(np.concatenate(kept.unary), np.concatenate(energy.unary))
    np.testing.assert_allclose(kept.pairwise, pairwise, atol=1e-12)


def test_bad_input_is_told() -> None:
    q = network()
    with pytest.raises(ProbqError, match=r"needs labels.*criteria\.kl"):
        criteria.loss(q, [X], progress=False)
    with pytest.raises(ProbqError, match="needs data"):
        criteria.clado(q, [], progress=False)
    with pytest.raises(ProbqError, match="examples"):
        criteria.kl(q, [X], examples=0, progress=False)
    fixed = network(plan=Plan(weight=ladder(8), input=ladder(8, signed=True)))
    with pytest.raises(ProbqError, match="no quantizer has a choice"):
        criteria.kl(fixed, [X], progress=False)
    with torch.no_grad():
        q.net.head.bias[0] = math.nan
    with pytest.raises(ProbqError, match="invalid values"):
        criteria.loss(q, BATCHES, progress=False)


def test_negative_energies_are_told() -> None:
    torch.manual_seed(1)
    q = probq.quantize(nn.Linear(4, 3), X[:, 0, 0, :4], Plan(weight=ladder(1, 2, 3, 4, 8)))
    batches = [(X[:, 0, 0, :4], Y)]
    with pytest.warns(UserWarning, match=r"energies of loss are negative, the least"):
        energy = criteria.loss(q, batches, progress=False)
    assert energy.negative > 0
    assert min(row.min() for row in energy.unary) < 0
