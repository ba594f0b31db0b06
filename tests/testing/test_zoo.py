"""Every awkward network: untouched, close to float at 16 bits, exact at 3 bits, honest about what stays float."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import Plan, Quantized
from probq.codebooks import ladder
from probq.testing import decided_copy, zoo

pytestmark = pytest.mark.filterwarnings("ignore:the posterior was never fitted")  # any draw will do here

ZOO = {name: (net, example) for name, net, example in zoo()}
WIDE = Plan(ladder(16), ladder(16), ladder(16), profile="shift", activation=16)  # where weights take a folded gain
NARROW = Plan(weight=ladder(3), input=ladder(3), network_input=ladder(3))
SILENT = list(ZOO)


def quantized(net: nn.Module, example: Any, plan: Plan | None) -> Quantized:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return probq.quantize(net, example, plan=plan)


def parts(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


@torch.no_grad()
def detached(net: nn.Module, example: Any) -> Any:
    return net(example)


def as64(example: Tensor) -> Tensor:
    return example.double() if example.is_floating_point() else example


@pytest.mark.parametrize("name", ZOO)
def test_the_network_is_left_untouched(name: str) -> None:
    net, example = ZOO[name]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    versions = [p._version for p in net.parameters()]
    q = quantized(net, example, None)
    q(example)
    if name != "tuple":
        q.model(example)
        q.calibrated = True
        q.predict(example, draws=2, seed=0)
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    assert [p._version for p in net.parameters()] == versions
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in (*net.modules(), *q.net.modules()))
    assert not {id(p) for p in net.parameters()} & {id(p) for p in q.parameters()}


@pytest.mark.parametrize("name", ZOO)
def test_sixteen_bits_are_as_good_as_float(name: str) -> None:
    net, example = ZOO[name]
    q = quantized(net, example, WIDE)
    for ours, plain in zip(parts(q(example)), parts(detached(net, example)), strict=True):
        assert ours.shape == plain.shape
        assert ours.dtype == plain.dtype
        assert float((ours - plain).abs().max()) < 1e-3 * float(plain.abs().max())
    assert set(q.mode().widths.values()) == {16}


@pytest.mark.parametrize(
    "plan", [NARROW, Plan(), Plan(gates="channel"), Plan(gates="weight")], ids=["3", "tensor", "channel", "weight"]
)
@pytest.mark.parametrize("name", ZOO)
def test_the_mode_is_the_network_with_quantized_weights_and_inputs(name: str, plan: Plan) -> None:
    net, example = ZOO[name]
    q = quantized(net, example, plan)
    reference = decided_copy(q, q.mode())
    for ours, plain in zip(parts(q(example)), parts(reference(as64(example))), strict=True):
        np.testing.assert_allclose(ours.numpy(), plain.detach().numpy(), rtol=1e-5, atol=1e-5)
    drawn = q.sample(1, seed=3)[0]
    expected = parts(decided_copy(q, drawn)(as64(example)))
    for ours, plain in zip(parts(q._decided(drawn, (example,))), expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), plain.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_three_bits_are_not_float() -> None:
    """What the tests above compare is really coarse: at 3 bits the output is far from float."""
    net, example = ZOO["sequential"]
    assert float((quantized(net, example, NARROW)(example) - detached(net, example)).abs().max()) > 0.05


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_what_stays_float_is_reported() -> None:
    net, example = ZOO["lstm"]
    net = copy.deepcopy(net)
    net.lstm.register_forward_hook(lambda *_: None)  # with a hook, it stays as it is
    with pytest.warns(UserWarning, match="stays float") as record:
        q = probq.quantize(net, example)
    said = " ".join(str(w.message) for w in record)
    for part in ("lstm (LSTM) computes", "stays float and is not counted"):
        assert part in said
        assert part in " ".join(q.notes)
        assert part in repr(q)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("name", SILENT)
def test_networks_that_are_quantized_throughout_say_nothing_of_float(name: str) -> None:
    net, example = ZOO[name]
    assert not any("float" in note for note in probq.quantize(net, example).notes)


def test_a_weight_used_without_its_module_is_a_layer_of_its_own() -> None:
    net, example = ZOO["functional"]
    q = quantized(net, example, NARROW)
    a = q.mode()
    assert set(a.widths) == {"first.weight", "first.input", "second.weight", "linear().layer.input"}
    assert a.cost() == 20 * 3 * 3 + 12 * 3 * 3


def test_the_attention_of_a_transformer_is_quantized_throughout() -> None:
    net, example = ZOO["transformer"]
    attention = {n for n in quantized(net, example, NARROW).mode().widths if n.startswith("encoder.self_attn.")}
    layers = [f"{part}_proj.{kind}" for part in ("q", "k", "v", "out") for kind in ("weight", "input")]
    products = [f"matmul(){number}.{side}.input" for number in ("", "2") for side in ("left", "right")]
    assert attention == {f"encoder.self_attn.{name}" for name in (*layers, *products)}


def test_tied_weights_and_repeated_layers_share_one_width_and_one_draw() -> None:
    net, example = ZOO["tied embedding"]
    q = quantized(net, example, Plan())
    assert q.weight_names == ("embed.weight", "mix.weight")
    assert q.net.out.weight is q.net.embed.weight
    net, example = ZOO["layer used twice"]
    assert quantized(net, example, Plan()).weight_names == ("shared.weight", "out.weight")


def test_a_tuple_needs_a_likelihood_and_is_stacked_part_by_part() -> None:
    net, example = ZOO["tuple"]
    q = quantized(net, example, None)
    with pytest.raises(probq.ProbqError, match="returns a tuple; give quantize or fit a likelihood"):
        q.model(example)
    q.calibrated = True
    one, drawn = q(*example) if isinstance(example, tuple) else q(example), q.predict(example, draws=2)
    assert [part.shape for part in drawn] == [(2, *part.shape) for part in one]


def test_training_mode_of_the_network_is_kept() -> None:
    net, example = ZOO["residual"]
    training = copy.deepcopy(net).train()
    q = probq.quantize(training, example)
    assert training.training
    assert training.norm1.training
    q.train()
    q(example)
    assert q.training
    assert q.net.norm1.training
    q.eval()
    q(example)
    assert not q.training
    assert not q.net.norm1.training
