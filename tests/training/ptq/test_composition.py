"""Functions of decided networks one after the other, in any order: each follows the float network."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import probq
from probq import ProbqError, Quantized
from probq.network.program.biases import accumulator_step
from probq.training.ptq.decided import float_network

learned = partial(probq.ptq.reconstruct, steps=10, progress=False)
FUNCTIONS = (
    probq.ptq.gpfq,
    probq.ptq.bias,
    probq.ptq.norms,
    probq.ptq.equalize,
    probq.ptq.ranges,
    learned,
    probq.ptq.deviations,
)


def images(count: int = 48, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(1),
        nn.Linear(16, 3),
    )  # fmt: skip
    nn.init.uniform_(net[1].weight, 0.5, 2)
    nn.init.uniform_(net[1].bias, -1, 1)
    net(3 * images() - 1)
    return net.eval()


def decided(net: nn.Module, bits: int = 2, profile: str = "dyadic") -> Quantized:
    q = probq.quantize(net, images(), probq.uniform(bits, 8, profile=profile))
    return q.at(q.mode())


@cache
def after(function: Callable[..., Quantized]) -> Quantized:
    """A decided network that one function has changed, for others, which leave it as it is."""
    return function(decided(network()), [images()])


def same(a: Quantized, b: Quantized) -> bool:
    """Whether all that ships is the same."""
    ours, theirs = a.mode(), b.mode()
    same_codes = all(np.array_equal(ours.codes[n], theirs.codes[n]) for n in ours.codes)
    return same_codes and torch.equal(a(images(8, 1)), b(images(8, 1)))


@pytest.mark.parametrize("function", [probq.ptq.gpfq, probq.ptq.bias, probq.ptq.norms])
def test_twice_is_once(function: Callable[..., Quantized]) -> None:
    q = decided(network(), 4)
    once = function(q, [images()])
    assert not same(once, q)
    assert same(function(once, [images()]), once)


@pytest.mark.parametrize("first", FUNCTIONS)
@pytest.mark.parametrize("second", FUNCTIONS)
def test_after_any_two_the_float_network_is_that_of_the_user(
    first: Callable[..., Quantized], second: Callable[..., Quantized]
) -> None:
    net, q = network(), second(after(first), [images()])
    with torch.no_grad():
        torch.testing.assert_close(float_network(q).net(images()), net(images()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first", [probq.ptq.gpfq, learned])
def test_corrected_means_are_those_of_the_user_s_network(first: Callable[..., Quantized]) -> None:
    """Of the outputs, up to half a step of the last accumulator, which the bias is rounded to."""
    net, q = network(), probq.ptq.bias(after(first), [images()])
    with torch.no_grad():
        shift = (q(images()) - net(images())).mean(0).abs()
    layer = q.layers[-1]
    step = accumulator_step(
        q.net, layer, *(z.rung(z.probs().argmax(-1)) for z in map(q.quantizer, (layer.weight, layer.input)))
    )
    assert (shift <= step / 2 + 1e-5).all()


def test_greedy_rounding_behind_learned_rounding_is_that_of_the_float_weights() -> None:
    q = decided(network())
    assert same(probq.ptq.gpfq(learned(q, [images()]), [images()]), probq.ptq.gpfq(q, [images()]))


def test_learned_rounding_behind_greedy_rounding_starts_from_the_float_weights() -> None:
    q = decided(network())
    rounded = probq.ptq.gpfq(q, [images()])
    assert same(learned(rounded, [images()]), learned(rounded, [images()], reference=q))


@pytest.mark.parametrize(
    ("function", "profile"),
    [
        (probq.ptq.equalize, "dyadic"),
        (probq.ptq.equalize, "shift"),
        (probq.ptq.deviations, "dyadic"),
        (probq.ptq.deviations, "shift"),
        (probq.ptq.norms, "shift"),
    ],
)
def test_what_rounds_to_nearest_forgets_other_rounding(function: Callable[..., Quantized], profile: str) -> None:
    q = decided(network(), profile=profile)
    before = probq.ptq.bias(probq.ptq.gpfq(q, [images()]), [images()])
    assert same(function(before, [images()]), function(q, [images()]))


def test_moved_statistics_keep_the_codes_of_other_rounding() -> None:
    rounded = probq.ptq.gpfq(decided(network(), 4), [images()])
    moved = probq.ptq.norms(rounded, [images()])
    assert not same(moved, rounded)
    for name, codes in rounded.mode().codes.items():
        assert (moved.mode().codes[name] == codes).all()


def test_files_hold_the_float_weights_of_a_rounded_network(tmp_path: Path) -> None:
    net, path = network(), tmp_path / "q.safetensors"
    rounded = probq.ptq.gpfq(decided(net), [images()])
    rounded.save(path)
    loaded = probq.load(path, net)
    assert same(loaded, rounded)
    assert same(probq.ptq.bias(loaded, [images()]), probq.ptq.bias(rounded, [images()]))
    again = tmp_path / "again.safetensors"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()
    kept = [name for name in safetensors.torch.load_file(path) if name.startswith("originals.")]
    assert kept == [f"originals.{n}/weight" for n in (0, 3, 6)]
    probq.report(path, tmp_path / "r.html")  # without the network


def test_a_file_of_strange_float_weights_is_refused(tmp_path: Path) -> None:
    net, path = network(), tmp_path / "q.safetensors"
    q = decided(net)
    q.originals.make_room("0.weight", torch.zeros(1))
    q.save(path)
    with pytest.raises(ProbqError, match=r"originals\.0/weight is no tensor of its network"):
        probq.load(path, net)


def test_training_makes_its_weights_the_float_ones() -> None:
    q = probq.ptq.bias(probq.ptq.gpfq(decided(network()), [images()]), [images()])
    probq.fit(q, [(images(), torch.arange(48) % 3)], epochs=1, progress=False)
    trained = {name: tensor.clone() for name, tensor in q.net.state_dict().items()}
    assert all(torch.equal(trained[name], tensor) for name, tensor in float_network(q).net.state_dict().items())


@pytest.mark.parametrize("function", [probq.ptq.bias, learned])
def test_a_reference_is_a_decided_network_of_the_same_layers(function: Callable[..., Quantized]) -> None:
    net = network()
    q = decided(net)
    wide = decided(nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(1), nn.Linear(80, 3)).eval())
    refused = [
        (net, "takes a decided network, not Sequential: leave it out"),
        (probq.quantize(net, images()), r"takes a decided network: q\.at"),
        (wide, "with the layers of the one to be rounded"),
    ]
    for reference, sentence in refused:
        with pytest.raises(ProbqError, match=rf"\(reference=\.\.\.\) .*{sentence}"):
            function(q, [images()], reference=reference)
    assert same(function(q, [images()], reference=probq.ptq.gpfq(q, [images()])), function(q, [images()]))
