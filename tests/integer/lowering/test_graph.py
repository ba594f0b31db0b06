"""What is lowered is what the network really computes: operands, geometry, and what stands around a product."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import probq
from probq.codebooks import ladder

VECTORS, IMAGES, SERIES = torch.randn(64, 8), torch.randn(32, 1, 8, 8), torch.randn(32, 2, 12)


def layer(base, forward, *args):
    """A subclass of a layer with a forward of its own."""
    return type("Own", (base,), {"forward": forward})(*args)


def perceptron(forward):
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), layer(nn.Linear, forward, 8, 8), nn.ReLU(), nn.Linear(8, 3))


def convolutions(forward):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), layer(nn.Conv2d, forward, 4, 3, 3), nn.ReLU())


class Network(nn.Module):
    """Layers `a`, `b`, `c` and a forward given as a function."""

    def __init__(self, forward, a=None, b=None, c=None, calls=None):
        super().__init__()
        self.register_buffer("calls", calls)
        self.a, self.b, self.c = a or nn.Linear(8, 8), b, c or nn.Linear(8, 3)
        self.own = forward

    def forward(self, *x):
        return self.own(self, *x)


def hooked(make):
    net = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))
    make(net)
    return net


def relu_of_a_slice(net, x):
    h = net.a(x)
    h[:, 2:5].relu_()
    return net.c(h)


def assigned(net, x):
    h = net.a(x)
    h[:, 2:5] = h[:, 3:6].relu()
    return net.c(h)


def sum_behind_a_view(net, x):
    h = net.a(x)
    view = h.view(-1, 2, 4)
    h += net.b(x)
    return net.c(view.flatten(1))


def relu_of_what_dropout_returns(net, x):
    h = net.a(x)
    F.dropout(h, 0.5, training=net.training).relu_()
    return net.c(h)


def counting(net, x):
    net.calls += 1
    return net.c(net.a(x.clamp_(-1, 1)).relu_())


def clamped(net):
    net[0].register_forward_hook(lambda m, args, out: out.clamp(max=1.0))
    net[2].register_forward_pre_hook(lambda m, args: (args[0].clamp(max=0.5),))


def tanh_gelu(net):
    net[1].forward = lambda x: F.gelu(x, approximate="tanh")


EXACT = {
    "bias not used": (perceptron(lambda m, x: F.linear(x, m.weight)), VECTORS),
    "input added": (perceptron(lambda m, x: x + nn.Linear.forward(m, x)), VECTORS),
    "another layer's weight": (
        Network(lambda net, x: net.c(F.linear(net.b(x), net.a.weight)), b=nn.Linear(8, 8)),
        VECTORS,
    ),
    "product twice": (perceptron(lambda m, x: nn.Linear.forward(m, x) + F.linear(x, m.weight)), VECTORS),
    "input clipped": (perceptron(lambda m, x: nn.Linear.forward(m, x.clamp(0, 0.5))), VECTORS),
    "input pooled": (convolutions(lambda m, x: nn.Conv2d.forward(m, F.max_pool2d(x, 2))), IMAGES),
    "dilation": (convolutions(lambda m, x: F.conv2d(x, m.weight, m.bias, dilation=2)), IMAGES),
    "stride and padding": (convolutions(lambda m, x: F.conv2d(x, m.weight, None, (2, 1), (1, 0))), IMAGES),
    "same padding": (convolutions(lambda m, x: F.conv2d(x, m.weight, m.bias, padding="same", dilation=2)), IMAGES),
    "causal": (
        nn.Sequential(
            nn.Conv1d(2, 4, 3),
            nn.ReLU(),
            layer(nn.Conv1d, lambda m, x: F.conv1d(F.pad(x, (4, 0)), m.weight, m.bias, dilation=2), 4, 4, 3),
        ),
        SERIES,
    ),
    "method of a convolution": (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            type("Own", (nn.Conv2d,), {"_conv_forward": lambda m, x, w, b: F.conv2d(x, w, None, 2)})(4, 3, 3),
        ),
        IMAGES,
    ),
    "output size": (
        Network(
            lambda net, x: net.c(net.a(x), output_size=x.shape[-2:]),
            nn.Conv2d(1, 2, 3, 2, 1),
            c=nn.ConvTranspose2d(2, 2, 3, 2, 1),
        ),
        IMAGES,
    ),
    "slice in place": (Network(relu_of_a_slice), VECTORS),
    "assignment": (Network(assigned), VECTORS),
    "sum in place behind a view": (Network(sum_behind_a_view, b=nn.Linear(8, 8)), VECTORS),
    "in place on what dropout hands on": (Network(relu_of_what_dropout_returns), VECTORS),
    "in place on the input, and on a buffer": (Network(counting, calls=torch.zeros(())), VECTORS.clone()),
    "view that is not contiguous": (Network(lambda net, x: net.c(net.a(x).view(-1, 2, 4).mT.flatten(1))), VECTORS),
    "memory format": (
        Network(lambda net, x: net.c(net.a(x).clone(memory_format=torch.contiguous_format).relu())),
        VECTORS,
    ),
    "without gradients inside": (Network(lambda net, x: net.c(torch.no_grad()(net.a)(x).relu())), VECTORS),
    "hooks of the user": (hooked(clamped), VECTORS),
    "function replaced": (hooked(tanh_gelu), VECTORS),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("net", "x"), EXACT.values(), ids=EXACT)
def test_integers_are_what_the_forward_computes(net, x):
    q = probq.quantize(net.eval(), x, plan=probq.Plan(activation=8))
    for assignment in [q.mode(), q.at(q.mode()).mode()]:
        model = probq.lower(q, assignment)
        expected = q.at(assignment).eval()(x).double().numpy()
        assert np.array_equal(model(x) * model.output_scale, expected)


def test_rounding_stays_where_the_network_is_called_with_wide_codebooks():
    """With 16-bit codebooks the decided network is nearly the float one, so that a wrong operand could not hide."""
    for net, x in EXACT.values():
        wide = probq.Plan(weight=ladder(12), input=ladder(10), network_input=ladder(10), activation=10)
        model = probq.lower(probq.quantize(net.eval(), x, plan=wide))
        exact = net(x).detach().numpy()
        assert np.abs(model(x) * model.output_scale - exact).max() < 0.03 * np.abs(exact).max()


REFUSED = {
    "product of a product": (
        perceptron(lambda m, x: F.linear(F.linear(x, m.weight), m.weight)),
        "linear in 2 .*called",
    ),
    "weight scaled": (perceptron(lambda m, x: F.linear(x, 3 * m.weight)), "linear in 2 .*weight is computed"),
    "bias scaled": (perceptron(lambda m, x: F.linear(x, m.weight, 3 * m.bias)), "linear in 2 .*bias is computed"),
    "limits off the grid": (perceptron(lambda m, x: F.linear(x.clamp(0, 0.3), m.weight)), "linear in 2 .*called with"),
    "dropout left on": (Network(lambda net, x: net.c(F.dropout(net.a(x), 0.5))), "dropout in the network .*random"),
    "alpha dropout left on": (Network(lambda net, x: net.c(F.alpha_dropout(net.a(x), 0.5, True))), "random numbers"),
    "channels dropped": (Network(lambda net, x: net.c(F.dropout1d(net.a(x), 0.5))), "random numbers"),
    "half precision": (Network(lambda net, x: net.c(net.a(x).half().float())), "to in the network .*float16"),
    "whole numbers": (
        Network(lambda net, x: net.c(net.a(x).long().float())),
        "to in the network .*whole numbers of real ones",
    ),
    "a part of the batch": (Network(lambda net, x: net.c(net.a(x))[:100]), "slice in the network .*part of the batch"),
    "the last examples": (Network(lambda net, x: net.c(net.a(x))[-100:]), "slice in the network .*part of the batch"),
    "nothing joined": (Network(lambda net, x: net.c(torch.cat([net.a(x)[:, 8:], net.a(x)], 1))), "holds no number"),
    "upsampled by a fraction": (
        nn.Sequential(nn.Linear(8, 8), nn.Unflatten(1, (2, 4)), nn.Upsample(scale_factor=3.25), nn.Flatten()),
        "whole scale_factor",
    ),
    "noise": (Network(lambda net, x: net.c(net.a(x) + torch.randn_like(x))), "random numbers"),
    "function changed by a hook": (
        hooked(lambda net: net[1].register_forward_hook(lambda m, args, out: out + out.relu())),
        "module 1 .*something changes its value",
    ),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.filterwarnings("ignore:.*stays float")
@pytest.mark.parametrize(("net", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_the_layer_itself_is_refused(net, message):
    q = probq.quantize(net.eval(), VECTORS, plan=probq.Plan(activation=8))
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(q)


def test_dropout_that_is_off_is_nothing():
    net = Network(lambda net, x: net.c(F.dropout(net.b(net.a(x)), 0.5, training=net.training)), b=nn.Dropout())
    q = probq.quantize(net.eval(), VECTORS)
    model = probq.lower(q)
    assert np.array_equal(model(VECTORS) * model.output_scale, q(VECTORS).double().numpy())


def test_two_index_inputs_of_one_vocabulary_are_not_one():
    net = Network(lambda net, i, j: net.c(torch.cat([net.a(i), net.b(j)], 1)), nn.Embedding(5, 4), nn.Embedding(5, 4))
    indices = torch.randint(0, 5, (2, 16))
    q = probq.quantize(net.eval(), (indices[0], indices[1]))
    model = probq.lower(q)
    for i, j in ((0, 1), (1, 0), (0, 0)):
        assert np.array_equal(model.real_output(model((indices[i], indices[j]))), q(indices[i], indices[j]).double())


def test_macs_are_those_that_are_called():
    twice = perceptron(lambda m, x: F.linear(x, m.weight) + F.linear(x, m.weight))
    assert [found.macs for found in probq.layers(twice, VECTORS)] == [64, 128, 24]
    strided = convolutions(lambda m, x: F.conv2d(x, m.weight, m.bias, stride=2))
    assert [found.macs for found in probq.layers(strided, IMAGES)] == [8 * 8 * 4 * 9, 3 * 3 * 3 * 4 * 9]


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_a_product_with_a_computed_weight_is_said_and_not_counted():
    net = perceptron(lambda m, x: F.linear(x, m.weight - m.weight.mean()))
    with (
        pytest.warns(UserWarning, match=r"64 of 152 MACs"),
        pytest.warns(UserWarning, match="else than its own weight"),
    ):
        q = probq.quantize(net, VECTORS)
    assert [found.macs for found in q.layers] == [64, 0, 24]


def test_estimators_that_draw_outputs_refuse_a_forward_of_its_own():
    plan = probq.Plan(estimator=probq.estimators.Flipout())
    with pytest.raises(probq.ProbqError, match="2 has a forward of its own"):
        probq.quantize(perceptron(lambda m, x: F.linear(x, m.weight)), VECTORS, plan=plan)
