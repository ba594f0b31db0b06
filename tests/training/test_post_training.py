"""Quantization without training: rounding by hand, errors that fall, and one call from a network to a decided one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import probq
from probq import Budget, Plan, ProbqError, Quantized
from probq.cli import demo
from probq.codebooks import Grid, ladder
from probq.training.ptq.gpfq import greedy
from probq.training.ptq.layer_inputs import layer_rows, takes_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*energies of")
WIDE = ladder(1, 2, 3, 4, 6, 8)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, 7, 7, generator=torch.Generator().manual_seed(seed))


def network(norm: bool = False) -> nn.Module:
    """Convolutions with strides, padding, dilation and groups, and linear layers."""
    torch.manual_seed(0)
    parts = [
        nn.Conv2d(2, 4, 3, padding=1, bias=not norm), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(),
        nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), groups=2), nn.ReLU(), nn.Flatten(1),
        nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3),
    ]  # fmt: skip
    net = nn.Sequential(*parts)
    net(images(64))
    return net.eval()


def decided(net: nn.Module, bits: int = 3) -> Quantized:
    q = probq.quantize(net, images(64), probq.uniform(bits, 8))
    next(iter(probq.steps(probq.quantize(net, images(8)), [(images(8), torch.zeros(8).long())], epochs=1)))
    return q.at(q.mode())


def test_a_greedy_path_is_that_of_the_definition() -> None:
    """One channel at a time and one weight at a time, in numpy."""
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(4, 6)), rng.normal(size=(2, 11, 6))
    y = x + 0.1 * rng.normal(size=x.shape)
    y[:, :, 2] = 0  # an input that is never seen: the weight's own nearest level
    found = greedy(*(torch.tensor(a) for a in (weight, x, y)), Grid(-2.0, 1.0, 5)).numpy()
    for channel in range(4):
        group, error = channel // 2, np.zeros(11)
        for t in range(6):
            wanted = error + weight[channel, t] * x[group, :, t]
            norm = y[group, :, t] @ y[group, :, t]
            value = y[group, :, t] @ wanted / norm if norm else weight[channel, t]
            level = np.clip(np.floor(value + 0.5), -2, 2)
            assert found[channel, t] == level
            error = wanted - level * y[group, :, t]


def test_its_error_falls_with_the_number_of_weights() -> None:
    """About linearly for Gaussian inputs: J. Zhang, Y. Zhou, R. Saab, 2022, theorem 3.1 up to its logarithm."""
    torch.manual_seed(0)
    errors = []
    for n in (64, 256, 1024):
        weight, x = torch.rand(16, n).double() * 2 - 1, torch.randn(1, 32, n).double()
        rounded = greedy(weight, x, x, Grid(-1.0, 1.0, 3))
        errors.append(float((x[0] @ (weight - rounded).T).square().sum() / (x[0] @ weight.T).square().sum()))
    assert errors[0] / errors[1] > 3
    assert errors[1] / errors[2] > 3


@pytest.mark.parametrize("norm", [False, True])
def test_rows_are_what_the_layer_multiplies(norm: bool) -> None:
    """Rows times the weight, against the layer itself."""
    q = decided(network(norm))
    for layer in q.layers:
        assert takes_rows(q, layer)
        plain, quantized = layer_rows(q, q, layer, [images(5)])
        module, caught = q.net.get_submodule(layer.name), []
        handle = module.register_forward_hook(lambda m, args, out, to=caught: to.append(out))
        with torch.no_grad():
            q.net(images(5))
        handle.remove()
        weight = module.weight.detach().flatten(1).reshape(len(plain), -1, plain.shape[-1])
        products = torch.einsum("gmn,gcn->mgc", plain, weight).flatten(1)
        bias = 0 if module.bias is None else module.bias.detach()
        expected = caught[0].transpose(1, -1).reshape(-1, layer.channels) if caught[0].dim() == 2 else None
        expected = caught[0].flatten(2).transpose(1, 2).reshape(-1, layer.channels) if expected is None else expected
        torch.testing.assert_close(products + bias, expected, atol=1e-5, rtol=1e-4)
        assert quantized.shape == plain.shape


@pytest.mark.parametrize("norm", [False, True])
def test_both_bring_outputs_nearer_to_those_of_the_float_network(norm: bool) -> None:
    q, batches = decided(network(norm), 2), [images(64)]
    with torch.no_grad():
        wanted = q.net(images(64))

    def error(own: Quantized) -> float:
        return float((own(images(64)) - wanted).square().sum() / wanted.square().sum())

    rounded = probq.ptq.gpfq(q, batches)
    assert error(rounded) < error(q)
    assert rounded.mode().widths == q.mode().widths
    for own in (q, rounded):
        corrected = probq.ptq.bias(own, batches, reference=q)
        shift = (corrected(images(64)) - wanted).mean(0)
        step = corrected.inputs["8.input"].scales()[0] * 0.5
        assert shift.abs().max() < step  # biases lie on the accumulator's grid
        assert probq.lower(corrected) is not None


def test_labels_are_not_needed_and_the_network_stays() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    budget = Budget(percent=1.5)
    given, rounding = [images(40), images(40, 1)], [probq.ptq.gpfq]
    q = probq.post_training(net, given, budget, plan=Plan(weight=WIDE), rounding=rounding, progress=False)
    assert q.mode().percent() <= 1.5
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    model = probq.lower(q)
    found = model(images(16).numpy()) * model.output_scale
    assert np.array_equal(found, q(images(16).double()).detach().numpy())
    probq.fit(q, [(images(40), torch.arange(40) % 3)], epochs=1, progress=False)


@pytest.mark.parametrize("criterion", [probq.criteria.loss, probq.criteria.kl])
def test_it_is_ahead_of_uniform_widths_of_the_same_cost(criterion, tmp_path: Path) -> None:
    data, net = demo.digits(0), demo.network()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    x, y = data.train.tensors
    for _ in range(400):
        chosen = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
    batches, (tx, ty) = [(x[:256], y[:256])], data.test.tensors
    uniform = probq.quantize(net.eval(), x[:256], probq.uniform(2, 2))
    uniform = uniform.at(uniform.mode())
    plan = Plan(weight=WIDE, input=ladder(1, 2, 3, 4, 6, 8, signed=False))
    budget = Budget(limit=uniform.mode().cost())
    q = probq.post_training(
        net, batches, budget, plan=plan, criterion=criterion, rounding=[probq.ptq.gpfq], progress=False
    )
    ahead = [float((own(tx).argmax(-1) == ty).float().mean()) for own in (q, uniform)]
    assert ahead[0] > ahead[1]
    assert q.mode().cost() <= uniform.mode().cost()


def test_the_network_keeps_the_energy_that_chose_its_widths(tmp_path: Path) -> None:
    net, budget = network(), Budget(percent=2)
    batches = [(images(40), torch.arange(40) % 3)]
    plan = Plan(weight=ladder(2, 4, 8), input=ladder(4, 8, signed=False))
    own = probq.post_training(
        net, batches, budget, plan=plan, criterion=probq.criteria.clado, rounding=[], progress=False
    )
    free = probq.quantize(net, images(40), plan)
    again = probq.criteria.clado(free, batches, progress=False)
    assert own.energy is not None
    assert (own.energy.names, own.energy.widths, own.energy.label) == (again.names, again.widths, "clado")
    assert all(map(np.array_equal, own.energy.unary, again.unary))
    own.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", net)
    assert loaded.mode() == own.mode()
    assert loaded.energy is not None
    assert np.array_equal(loaded.energy.pairwise, again.pairwise)
    page = probq.report(tmp_path / "q.safetensors", tmp_path / "r.html").read_text("utf-8")
    assert f"All decided widths together add {again(own.mode().widths):.3g} nats for one example." in page


def test_data_comes_in_every_form_in_which_loaders_give_it() -> None:
    """A loader over inputs alone gives lists of one tensor; all forms of the same data give the same network."""
    net, x, budget, plan = network(), images(64), Budget(percent=2), Plan(weight=ladder(1, 3, 8))
    loader = DataLoader(TensorDataset(x), 16)
    forms = [[x], [(x,)], [[x]], [(x, None)], loader, (part for part in x.split(16))]
    options = {"plan": plan, "rounding": [probq.ptq.gpfq], "progress": False}
    found = [probq.post_training(net, form, budget, **options) for form in forms]
    assert all(q.mode() == found[0].mode() for q in found[1:4])
    assert found[4].mode() == found[5].mode()


def test_given_functions_take_turns() -> None:
    """By hand: the same functions of the decided network that nearest rounding leaves."""
    net, batches, budget = network(norm=True), [images(48)], Budget(percent=1.5)
    kl = partial(probq.ptq.ranges, method="kl")
    learned = partial(probq.ptq.reconstruct, steps=10, progress=False)
    given = [probq.ptq.equalize, kl, learned]
    nearest, q = (probq.post_training(net, batches, budget, rounding=r, progress=False) for r in ([], given))
    by_hand = learned(kl(probq.ptq.equalize(nearest, batches), batches), batches)
    assert q.mode() == by_hand.mode()
    assert q.mode() != nearest.mode()
    assert torch.equal(q(images(8)), by_hand(images(8)))


def test_the_best_of_all_ways_is_kept() -> None:
    """The divergence on the examples, by hand, of each way by itself."""
    net, batches, budget = network(), [images(48)], Budget(percent=1.5)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    q = probq.post_training(net, batches, budget, progress=False)
    nearest = probq.post_training(net, batches, budget, rounding=[], progress=False)

    def divergence(own: Quantized) -> float:
        with torch.no_grad():
            wanted, found = (F.log_softmax(n(images(48)), -1) for n in (net, own))
        return float((wanted.exp() * (wanted - found)).sum())

    learned = probq.ptq.reconstruct(nearest, batches, progress=False)
    rounded = [nearest, probq.ptq.gpfq(nearest, batches), learned]
    ways = [*rounded, *(probq.ptq.bias(r, batches, reference=nearest) for r in rounded)]
    assert divergence(q) == pytest.approx(min(map(divergence, ways)), rel=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_bad_input_is_told() -> None:
    net = network()
    for rounding in (probq.ptq.gpfq, ["gpfq"], "gpfq"):
        with pytest.raises(ProbqError, match="rounding is a list of functions"):
            probq.post_training(net, [images(8)], Budget(percent=1), rounding=rounding)  # type: ignore[arg-type]
    with pytest.raises(ProbqError, match=r"one of post_training\(rounding=...\) takes a network"):
        probq.post_training(net, [images(8)], Budget(percent=2), rounding=[lambda q, b: None], progress=False)  # type: ignore[list-item,return-value]
    with pytest.raises(ProbqError, match="needs a budget"):
        probq.post_training(net, [images(8)], None, progress=False)
    with pytest.raises(ProbqError, match="needs data"):
        probq.post_training(net, [], Budget(percent=1), progress=False)
    with pytest.raises(ProbqError, match="a batch is a tensor"):
        probq.post_training(net, ["no"], Budget(percent=1), progress=False)
    with pytest.raises(ProbqError, match="needs labels"):
        probq.post_training(net, [images(8)], Budget(percent=1), criterion=probq.criteria.loss, progress=False)
    for criterion in ("kl", 3):
        with pytest.raises(ProbqError, match=r"criterion is one of probq\.criteria"):
            probq.post_training(net, [images(8)], Budget(percent=1), criterion=criterion)  # type: ignore[arg-type]
    with pytest.raises(ProbqError, match=r"not one tensor; give a list of it: \[x\]"):
        probq.post_training(net, images(8), Budget(percent=1), progress=False)
    with pytest.raises(ProbqError, match="not finite"):
        probq.post_training(net, [images(8) / 0], Budget(percent=1), progress=False)
    free = probq.quantize(net, images(8))
    for function in (probq.ptq.gpfq, probq.ptq.bias):
        with pytest.raises(ProbqError, match="takes a decided network"):
            function(free, [images(8)])
        with pytest.raises(ProbqError, match="needs data"):
            function(free.at(free.mode()), [])


def test_without_targets_one_output_needs_a_likelihood_and_a_noise_is_not_learned() -> None:
    torch.manual_seed(0)
    net, x, budget = (
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)).eval(),
        torch.rand(64, 6),
        Budget(percent=2),
    )
    with pytest.raises(ProbqError, match=r"give quantize a likelihood, e\.g\. probq\.likelihoods\.Normal"):
        probq.post_training(net, [x], budget, progress=False)
    noise = probq.likelihoods.Normal()
    before = noise.log_sd.item()
    q = probq.post_training(net, [x], budget, likelihood=noise, rounding=[], progress=False)
    assert q.likelihood.log_sd.item() == before
    outputs = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    own = probq.post_training(outputs, [x], budget, likelihood=probq.likelihoods.Normal(), rounding=[], progress=False)
    assert own.mode().percent() <= 2


def test_forgotten_lists_and_targets_are_told() -> None:
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.rand(600, 6)
    y = torch.arange(600) % 3
    with pytest.raises(ProbqError, match=r"not one tuple of tensors; give \[\(x, y\)\]"):
        probq.post_training(net, (x, y), Budget(percent=2), progress=False)
    with pytest.raises(ProbqError, match="some batches for post_training have targets and others have none"):
        probq.post_training(net, [(x[:64], y[:64]), x[64:128]], Budget(percent=2), progress=False)


@pytest.mark.parametrize("rounding", [[probq.ptq.gpfq], None])
def test_a_network_in_double_precision_is_rounded(rounding: list[Callable[..., Quantized]] | None) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    x, budget = torch.rand(64, 6).double(), Budget(percent=2)
    q = probq.post_training(net, [x], budget, rounding=rounding, progress=False)
    model = probq.lower(q)
    assert torch.equal(torch.from_numpy(model(x[:8]) * model.output_scale), q(x[:8]).double().detach())
