"""What `lower` will refuse is said by `quantize`; and `lower` compares its integers with the network's outputs."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import probq
from probq import ProbqError
from probq.codebooks import ladder
from probq.integer.lowering import graph

X = torch.randn(24, 8)
WILL = "probq.lower will refuse this network: "


class Own(nn.Module):
    """Two layers and a forward given as a function."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.own = nn.Linear(8, 8), nn.Linear(8, 3), forward

    def forward(self, *args):
        return self.own(self, *args)


def sequence(*between):
    return nn.Sequential(nn.Linear(8, 8), *between, nn.Linear(8, 3))


REFUSED = {
    "normalisation of one number": (sequence(nn.GroupNorm(8, 8)), X),
    "softmax along the batch": (sequence(nn.Softmax(0)), X),
    "its own input as an output": (Own(lambda net, x: (net.b(net.a(x)), x)), X),
    "a text as an output": (Own(lambda net, x: (net.b(net.a(x)), "scores")), X),
    "an output of no input": (Own(lambda net, x: (net.b(net.a(x)), net.b.bias * 2)), X),
    "noise": (Own(lambda net, x: net.b(F.dropout(net.a(x), 0.5))), X),
    "what depends on data": (Own(lambda net, x: net.b(net.a(x)) if x.sum() > 0 else net.b(x)), X.abs()),
    "a factor that is not whole": (sequence(nn.Unflatten(1, (1, 8)), nn.Upsample(12), nn.Flatten()), X),
}
REFUSED["a factor that is not whole"][0][-1] = nn.Linear(12, 3)


@pytest.mark.parametrize(("net", "x"), REFUSED.values(), ids=REFUSED)
def test_what_lower_will_refuse_is_said_by_quantize(net, x):
    with pytest.warns(UserWarning, match=WILL) as caught:
        q = probq.quantize(net.eval(), x)
    said = str(next(w.message for w in caught if str(w.message).startswith(WILL)))
    assert said in q.notes
    with pytest.raises(ProbqError) as refusal:
        probq.lower(q)
    assert said == WILL + str(refusal.value)


def test_accumulators_beyond_31_bits_at_the_narrowest_widths_are_foreseen():
    wide = probq.Plan(weight=ladder(16), network_input=ladder(16))
    with pytest.warns(UserWarning, match=WILL + r"layer 0 .*\(31 bits\)"):
        probq.quantize(nn.Sequential(nn.Linear(64, 2)), torch.randn(8, 64), plan=wide)
    open_end = probq.Plan(weight=ladder(2, 16), network_input=ladder(16))
    q = probq.quantize(nn.Sequential(nn.Linear(64, 2)), torch.randn(8, 64), plan=open_end)
    assert q.notes == ()


def test_who_asked_for_float_is_not_warned():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q = probq.quantize(sequence(nn.ReLU()), X, plan=lambda own: probq.Plan() if own.name == "0" else None)
        table = probq.quantize(sequence(nn.GELU()), X, plan=probq.Plan(activation=None))
    assert any(note.startswith(WILL) for note in q.notes)
    assert any(note.startswith(WILL) for note in table.notes)


def test_the_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match=WILL) as caught:
        probq.quantize(sequence(nn.GroupNorm(8, 8)), X)
    assert {w.filename for w in caught} == {__file__}


def choice_by_batch(net, x):
    """A branch that the export of a small batch takes otherwise than a large batch does."""
    h = net.a(x)
    return net.b(h if len(x) < 5 else h.clamp(max=0.25))


def test_integers_that_are_not_the_networks_are_not_returned():
    q = probq.quantize(Own(choice_by_batch).eval(), X)
    with pytest.raises(ProbqError, match="the integers differ from what the network computes"):
        probq.lower(q)


TAMPERED = {
    "a bias one unit off": lambda value, arrays: arrays["bias"] + (np.arange(len(arrays["bias"])) == 0),
    "a weight negated": lambda value, arrays: -arrays["weight"],
}


@pytest.mark.parametrize("edit", TAMPERED.values(), ids=TAMPERED)
def test_a_single_wrong_integer_is_found(monkeypatch, edit):
    made = graph.Layers.product

    def product(self, layer, *args):
        value = made(self, layer, *args)
        node = value.parents[0] if value.op == "multiply" else value
        name = "bias" if "bias" in edit.__code__.co_consts else "weight"
        node.tensors[name] = edit(node, node.tensors)
        return value

    monkeypatch.setattr(graph.Layers, "product", product)
    q = probq.quantize(sequence(nn.ReLU()).eval(), X)
    with pytest.raises(ProbqError, match="the integers differ"):
        probq.lower(q)


SIZES = {
    "one example": lambda net, x: net.b(net.a(x).relu() * (2 if len(x) == 1 else 1)),
    "more than the example": lambda net, x: net.b(net.a(x).relu() * (2 if len(x) > 16 else 1)),
    "any": lambda net, x: net.b(net.a(x).relu() * len(x)),
    "an axis of one example": lambda net, x: net.b(net.a(x).relu()).squeeze(),
}


@pytest.mark.parametrize("forward", SIZES.values(), ids=SIZES)
def test_what_depends_on_the_size_of_the_batch_is_found(forward):
    q = probq.quantize(Own(forward).eval(), X)
    with pytest.raises(ProbqError, match="a choice that depends on the batch"):
        probq.lower(q)


@pytest.mark.parametrize("wrap", [lambda y: (y,), lambda y: {"y": y}], ids=["tuple", "dict"])
def test_one_tensor_in_something_is_lowered(wrap):
    q = probq.quantize(Own(lambda net, x: wrap(net.b(net.a(x).relu()))).eval(), X)
    (expected,) = q(X).values() if isinstance(q(X), dict) else q(X)
    model = probq.lower(q)
    assert np.array_equal(model(X) * model.output_scale, expected.double().numpy())


def test_an_example_that_is_not_finite_is_refused():
    for wrong in (np.nan, np.inf):
        with pytest.raises(ProbqError, match="example holds a value that is not finite"):
            probq.quantize(sequence(nn.ReLU()), X * wrong)
    with pytest.raises(ProbqError, match="empty or not finite"):
        probq.quantize(Own(lambda net, x: net.b(net.a(x)) / 0), X)


def test_the_check_needs_no_example(tmp_path):
    net = Own(choice_by_batch).eval()
    q = probq.quantize(net, X)
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", net)
    assert loaded.example == ()
    with pytest.raises(ProbqError, match="the integers differ"):
        probq.lower(loaded)


def test_indices_and_arguments_that_are_no_tensors_are_compared():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

        def forward(self, scale, x, clip=True):
            h = self.words(x).mean(1)
            return self.head(h.clamp(-scale, scale) if clip else h)

    x = torch.randint(0, 7, (12, 5))
    q = probq.quantize(Words().eval(), (0.5, x))
    model = probq.lower(q)
    assert np.array_equal(model(x) * model.output_scale, q(0.5, x).double().numpy())


def test_the_example_is_kept_as_a_few_rows_of_its_own():
    x = torch.randn(100, 8)
    q = probq.quantize(sequence(nn.ReLU()), x)
    x.zero_()
    (kept,) = q.example
    assert kept.shape == (16, 8)
    assert kept.abs().min() > 0
