"""Scales from spreads, against published steps, numerical integrals, sampled quantiles and numpy by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn

import probq
from probq import ProbqError, codebooks
from probq.codebooks.codebook import Codebook
from probq.codebooks.rounding.gaussian import gaussian_error, gaussian_scale
from probq.priors import ThreeWells

BOOKS = (codebooks.ternary(), codebooks.uniform(3), codebooks.uniform(2, signed=False), codebooks.powers_of_two(3))


@pytest.mark.parametrize(("bits", "step"), [(1, 1.596), (2, 0.996), (3, 0.586), (4, 0.335)])
def test_steps_between_halves_are_those_of_the_paper(bits: int, step: float) -> None:
    levels = np.arange(2**bits) - (2**bits - 1) / 2
    assert gaussian_scale(levels) == pytest.approx(step, abs=6e-4)


@pytest.mark.parametrize("book", BOOKS)
def test_errors_are_integrals_and_scales_minimise_them(book: Codebook) -> None:
    """Quadrature of the definition between midpoints; and a grid of scales on 100,000 quantiles."""
    levels = book.levels().double().numpy()
    ends = [-np.inf, *((levels[1:] + levels[:-1]) / 2 * 0.7), np.inf]
    cells = [
        quad(lambda x, level=level: (x - 0.7 * level) ** 2 * norm.pdf(x), low, high)[0]
        for level, low, high in zip(levels, ends[:-1], ends[1:], strict=True)
    ]
    assert gaussian_error(0.7, levels) == pytest.approx(sum(cells), abs=1e-9)
    x = torch.as_tensor(norm.ppf((np.arange(100_000) + 0.5) / 100_000))
    scales = gaussian_scale(levels) * np.array([0.97, 0.985, 1, 1.015, 1.03])
    errors = [float((x - s * book.nearest(x / s)).square().mean()) for s in scales]
    assert np.argmin(errors) == 2


def test_zero_alone_has_some_scale() -> None:
    assert gaussian_scale(np.zeros(1)) == 1


def network() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), norm, nn.ReLU(), nn.Flatten(1), nn.Linear(6 * 9, 3)).eval()
    nn.init.uniform_(norm.weight, 0.5, 2), nn.init.uniform_(norm.running_var, 0.5, 2)
    return net


def images() -> Tensor:
    return torch.rand(24, 2, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [1, 3])
def test_scales_are_spreads_times_the_step(bits: int, tmp_path: Path) -> None:
    """Of channels within hardware's 3 %, of inputs the nearest power of two; and integers are the network's."""
    net, x = network(), images()
    with torch.no_grad():
        net[0].weight[1] *= 8
        net[4].weight[2, ::2] = 0
    q = probq.quantize(net, x, probq.uniform(bits, 4))
    result = probq.ptq.deviations(q.at(q.mode()), [x[:9], x[9:]])
    step = gaussian_scale(codebooks.uniform(bits).levels().numpy())
    for name in ("0.weight", "4.weight"):
        rows = net.get_parameter(name).detach().flatten(1).double().numpy()
        spread = np.array([np.sqrt(np.mean(row[row != 0] ** 2)) for row in rows])
        np.testing.assert_allclose(result.weights[name].scales().detach().flatten(), step * spread, rtol=0.035)
    caught: list[Tensor] = []
    handle = result.net[4].register_forward_pre_hook(lambda m, args: caught.append(args[0].detach()))
    result(x)
    handle.remove()
    values = caught[0].double().numpy().ravel()
    wanted = np.sqrt(np.mean(values[values != 0] ** 2)) * gaussian_scale(np.arange(16.0))
    assert result.inputs["4.input"].scales().item() == 2.0 ** round(np.log2(wanted))
    assert result.mode().widths == q.mode().widths
    assert_exact(result, x, tmp_path)


def test_what_has_no_spread_or_a_law_of_its_own_stays() -> None:
    net, x = network(), images()
    with torch.no_grad():
        net[0].weight[3] = 0
    q = probq.quantize(net, x, probq.uniform(4, 4, code_prior=ThreeWells()))
    q = q.at(q.mode())
    result = probq.ptq.deviations(q, [x])
    assert all(torch.equal(result.weights[name].scales(), site.scales()) for name, site in q.weights.items())
    free = probq.quantize(net, x, probq.uniform(4, 4))
    free = free.at(free.mode())
    again = probq.ptq.deviations(free, [x])
    changed = (again.weights["0.weight"].scales() != free.weights["0.weight"].scales()).flatten().tolist()
    assert any(changed)
    assert not changed[3]


def test_bad_input_is_told() -> None:
    net, x = network(), images()
    q = probq.quantize(net, x, probq.uniform(4, 4))
    with pytest.raises(ProbqError, match="deviations takes a decided network"):
        probq.ptq.deviations(q, [x])
    with pytest.raises(ProbqError, match="nothing above 1e\\+30"):
        probq.ptq.deviations(q.at(q.mode()), [1e32 * x])
