"""Networks of several inputs or outputs: what is lowered, and exported, computes exactly what was decided."""

from functools import cache

import numpy as np
import pytest
import torch

import probq
from probq import Plan, ProbqError
from probq.codebooks import ladder
from probq.testing import deployed_structures

NETWORKS = {name: (net, example) for name, net, example in deployed_structures()}
PLANS = {
    "default": Plan(),
    "channel": Plan(weight=ladder(1, 2, 4), gates="channel", activation=5),
    "shift": Plan(ladder(1, 3), ladder(2, 5, signed=True), scales="tensor", profile="shift", activation=7),
}
every_network = pytest.mark.parametrize("network", NETWORKS)
every_plan = pytest.mark.parametrize("plan", PLANS)
pytestmark = pytest.mark.filterwarnings("ignore:the posterior was never fitted")


def walk(structure, function):
    """The structure with a function applied to arrays and tensors, by a walk of the test's own."""
    if isinstance(structure, dict):
        return {key: walk(part, function) for key, part in structure.items()}
    if isinstance(structure, tuple | list):
        parts = [walk(part, function) for part in structure]
        return type(structure)(*parts) if hasattr(structure, "_fields") else type(structure)(parts)
    return function(structure) if isinstance(structure, torch.Tensor | np.ndarray) else structure


def flat(structure):
    """The arrays or tensors of a structure, in order."""
    found = []
    walk(structure, found.append)
    return found


def times(example, factor):
    """Real inputs in double precision, times a factor."""
    return walk(example, lambda x: x.double() * factor if x.is_floating_point() else x)


def call(q, x):
    """What a network gives for arguments as `quantize` takes them."""
    return q(**x) if isinstance(x, dict) else q(*x) if isinstance(x, tuple) else q(x)


def with_batch_first(model, outputs):
    """The outputs of a model as its artefacts compute them."""
    axes = iter([model.axes.get(output.name, 0) for output in model.outputs])
    return walk(outputs, lambda y: np.moveaxis(y, next(axes), 0))


def equal(ones, others):
    """Whether two structures hold the same numbers."""
    pairs = list(zip(flat(ones), flat(others), strict=True))
    return len(pairs) > 0 and all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


@cache
def lowered(network, plan):
    """A quantized network, a random assignment, and its integer model."""
    net, example = NETWORKS[network]
    q = probq.quantize(net, example, plan=PLANS[plan])
    assert all("is spelled out" in note or "reads no input of the network" in note for note in q.notes)
    torch.manual_seed(3)
    for _, quantizer in q.named_quantizers():
        quantizer.logits.data.normal_(1.5, 1.5)
    (a,) = q.sample(1, seed=1)
    return q, a, probq.lower(q, a)


@every_plan
@every_network
def test_the_integers_are_what_the_decided_network_computes(network, plan, tmp_path):
    q, a, model = lowered(network, plan)
    example, decided = NETWORKS[network][1], q.at(a).eval()
    model.save(tmp_path / "m.safetensors")
    loaded = probq.IntegerModel.load(tmp_path / "m.safetensors")
    for factor in (1, 3):
        x = times(example, factor)
        expected = walk(call(decided, x), lambda y: y.detach().numpy())
        for one in (model, loaded):
            found = one.real_output(one(x))
            assert equal(found, expected)
            assert str(type(found)) == str(type(expected))
            assert equal(one.run(one.quantize_input(x)), with_batch_first(one, one(x)))
    assert all(len(np.unique(each)) > 1 for each in flat(model(x)))


@every_network
def test_onnx_runtime_computes_them(network, tmp_path):
    """With a width for each channel; other plans are in `tests/conformance`."""
    _, _, model = lowered(network, "channel")
    x = times(NETWORKS[network][1], 3)
    for packed in (False, True):
        probq.export.onnx.write(model, tmp_path / "m.onnx", packed)
        for optimize in (False, True):
            found = probq.export.onnx.run(tmp_path / "m.onnx", model.quantize_input(x), optimize)
            assert equal(found, with_batch_first(model, model(x)))
    assert probq.export.verify(model, tmp_path / "m.onnx", x)


@every_network
def test_c_computes_them_under_sanitizers(network, tmp_path):
    _, _, model = lowered(network, "default")
    x = times(NETWORKS[network][1], 3)
    probq.export.c.write(model, tmp_path / "m.h")
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    found = probq.export.c.run(tmp_path / "m.h", model.quantize_input(x), flags)
    assert equal(found, with_batch_first(model, model(x)))
    assert probq.export.verify(model, tmp_path / "m.h", x)


def test_inputs_have_names_scales_and_widths_of_their_own():
    _, _, model = lowered("two towers, masked", "default")
    assert model.arguments == {"pixels": "input.pixels", "tokens": "input.tokens", "mask": "input.mask"}
    kinds = {node.name: node.attributes for node in model.inputs}
    assert kinds["input.tokens"]["index"]
    assert (kinds["input.mask"]["lo"], kinds["input.mask"]["hi"], kinds["input.mask"]["scale"]) == (0, 1, 1.0)
    _, _, model = lowered("conditioned", "default")
    assert model.arguments == ({"near": "input.signals_near", "far": "input.signals_far"}, "input.kind")
    near, far, _ = model.inputs
    assert near.attributes["scale"] < far.attributes["scale"]


@every_network
def test_a_posterior_is_read_again_with_its_arguments(network, tmp_path):
    q, a, model = lowered(network, "default")
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", NETWORKS[network][0])
    assert probq.lower(loaded, a).sha256() == model.sha256()


@every_network
def test_predictions_have_the_structure_of_the_network(network):
    q, _, _ = lowered(network, "default")
    example = NETWORKS[network][1]
    draws = q.predict(example, draws=3, seed=0)
    each = [call(q.at(a).eval(), example) for a in q.sample(3, seed=0)]
    for stacked, rows in zip(flat(draws), zip(*map(flat, each), strict=True), strict=True):
        torch.testing.assert_close(stacked, torch.stack(rows))


WRONG = {
    "missing": (lambda x: {"pixels": x["pixels"]}, "has no 'tokens'; give .* 'pixels', 'tokens', 'mask'"),
    "unexpected": (lambda x: x | {"token": 1}, "has 'token', which is not among"),
    "no mask": (lambda x: x | {"mask": None}, "at mask, is None; give a tensor"),
    "a dictionary": (lambda x: x | {"mask": {"of": 1}}, "at mask, is a dictionary with the keys 'of'"),
    "a tuple": (lambda x: tuple(x.values()), "is a tuple; give a dictionary"),
    "real ids": (lambda x: x | {"tokens": x["tokens"].float()}, r"input\.tokens.* expected integers, not float32"),
    "an id too large": (lambda x: x | {"tokens": x["tokens"] + 11}, r"input\.tokens.*0 .. 10"),
    "lengths": (lambda x: x | {"tokens": x["tokens"][:3]}, r"different lengths .*input\.tokens 3"),
    "shape": (lambda x: x | {"pixels": x["pixels"][..., 1:]}, r"input\.pixels: the input has shape"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_built_otherwise_is_told(change, message):
    _, _, model = lowered("two towers, masked", "default")
    with pytest.raises(ProbqError, match=message):
        model(change(NETWORKS["two towers, masked"][1]))


def test_integers_of_other_inputs_are_refused(tmp_path):
    _, _, model = lowered("conditioned", "default")
    integers = model.quantize_input(NETWORKS["conditioned"][1])
    probq.export.onnx.write(model, tmp_path / "m.onnx")
    probq.export.c.write(model, tmp_path / "m.h")
    for run in (model.run, lambda x: probq.export.c.run(tmp_path / "m.h", x)):
        with pytest.raises(ProbqError, match=r"a dictionary .*(input\.kind|input_kind)"):
            run(integers["input.kind"])
    del integers["input.kind"]
    with pytest.raises(ProbqError, match=r"nothing is given for input\.kind"):
        probq.export.onnx.run(tmp_path / "m.onnx", integers)


def test_a_network_that_is_called_otherwise_says_how():
    q, _, _ = lowered("two towers", "default")
    example = NETWORKS["two towers"][1]
    with pytest.raises(ProbqError, match="has no 'tokens'"):
        q(pixels=example["pixels"])
    with pytest.raises(ProbqError, match="has 'ids', which is not among"):
        q(**example, ids=example["tokens"])
    with pytest.raises(ProbqError, match=r"cannot run on the example .*pixels=.*dictionary by keyword"):
        probq.quantize(NETWORKS["two towers"][0], {"pixels": example["pixels"]})
