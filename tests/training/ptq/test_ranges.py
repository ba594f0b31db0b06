"""Scales of inputs at decided widths, against the network run by hand."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import ProbqError, Quantized
from probq.utils.structures.tensors import arguments


def decided(net: nn.Module, x: Tensor, bits: int = 2) -> Quantized:
    q = probq.quantize(net.eval(), x[:4], probq.uniform(bits, bits))
    return q.at(q.mode())


def networks() -> list[tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    return [
        (nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(40, 5)),
        (nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Conv1d(4, 4, 3, groups=2)), torch.randn(9, 2, 9)),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)), torch.rand(9, 2, 9, 9)),
    ]  # fmt: skip


@pytest.mark.parametrize("which", range(3))
def test_scales_are_those_of_what_arrives_behind_the_layers_before(which: int) -> None:
    """Every number that enters a layer of the result, and numpy over all exponents."""
    net, x = networks()[which]
    q = decided(net, x)
    result = probq.ptq.ranges(q, [x[:5], x[5:]])
    for name, quantizer in result.inputs.items():
        caught: list[Tensor] = []
        module = result.net.get_submodule(name.removesuffix(".input"))
        handle = module.register_forward_pre_hook(lambda m, args, to=caught: to.append(args[0]))
        result(*arguments(x))
        handle.remove()
        values = caught[0].detach().double().numpy().reshape(-1)
        levels = quantizer.ladder.rungs[0].levels().double().numpy()
        errors = []
        for k in range(-20, 21):
            u = values / 2.0**k
            errors.append(((u - levels[np.abs(u[:, None] - levels).argmin(1)]) ** 2).sum() * 4.0**k)
        assert quantizer.scales().item() == 2.0 ** (int(np.argmin(errors)) - 20)
    assert result.mode().widths == q.mode().widths
    assert all(np.array_equal(codes, q.mode().codes[name]) for name, codes in result.mode().codes.items())


def test_functions_have_ranges_of_their_own() -> None:
    """Tanh stays within 1: seven positive levels of a quarter at 4 bits clip nothing of it, of an eighth some."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1))
    nn.init.ones_(net[0].weight), nn.init.zeros_(net[0].bias)
    x = torch.linspace(-3, 3, 25).reshape(-1, 1)
    q = probq.quantize(net, x[11:14], probq.uniform(8, 8, activation=4))
    result = probq.ptq.ranges(q.at(q.mode()), [x], method="minmax")
    around = result.activations["1"]
    assert (around.input.scales().item(), around.output.scales().item()) == (0.5, 0.25)
    assert probq.lower(result) is not None


def test_the_given_network_stays_and_wider_data_widens() -> None:
    net, x = networks()[0]
    q = decided(net, x)
    before = {name: tensor.clone() for name, tensor in q.state_dict().items()}
    for method in ("minmax", "percentile", "mse", "kl"):
        narrow, wide = (probq.ptq.ranges(q, [k * x], method=method) for k in (1, 8))
        assert (wide.inputs["0.input"].scales() / narrow.inputs["0.input"].scales()).item() == 8
    assert all(torch.equal(before[name], tensor) for name, tensor in q.state_dict().items())


def test_bad_input_is_told() -> None:
    net, x = networks()[0]
    q = decided(net, x)
    with pytest.raises(ProbqError, match="takes one of 'minmax', 'percentile', 'mse', 'kl', not 'max'"):
        probq.ptq.ranges(q, [x], method="max")
    for percentile in (50, 101, "99", True):
        with pytest.raises(ProbqError, match="above 50 and at most 100"):
            probq.ptq.ranges(q, [x], percentile=percentile)  # type: ignore[arg-type]
    with pytest.raises(ProbqError, match="ranges takes a decided network"):
        probq.ptq.ranges(probq.quantize(net, x), [x])
    with pytest.raises(ProbqError, match="ranges needs data"):
        probq.ptq.ranges(q, [])


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "kl"])
@pytest.mark.parametrize("size", [3e30, 3e38])
def test_numbers_without_a_scale_are_told(method: str, size: float) -> None:
    """3e38 overflows behind the first layer; 3e30 does where its products are summed."""
    net, x = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), torch.ones(4, 2)
    nn.init.constant_(net[0].weight, 4)
    q = decided(net, x)
    with pytest.raises(ProbqError, match=r"nothing above 1e\+30 can be quantized; divide the data by a constant"):
        probq.ptq.ranges(q, [size * x], method=method)
    with pytest.raises(ProbqError, match=r"nothing above 1e\+30 can be quantized|outputs .* are empty or not finite"):
        probq.quantize(net, size * x)
    largest = probq.ptq.ranges(q, [1e29 * x], method=method)
    assert all(s.scales().isfinite().all() for s in largest.inputs.values())


def test_weights_without_a_scale_are_told() -> None:
    net = nn.Linear(2, 1)
    nn.init.constant_(net.weight, 1e38)
    with pytest.raises(ProbqError, match=r"as large as 1e\+38"):
        probq.quantize(net, torch.ones(4, 2))
