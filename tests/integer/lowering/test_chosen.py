"""What is compared, chosen by masks, looked up by computed indices or read of the network's own input is exact."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import probq
from probq.utils.structures.walk import leaves


class Net(nn.Module):
    """Layers and tables with some of these names, joined by a function."""

    def __init__(self, function, parts="a b out", width=6):
        super().__init__()
        torch.manual_seed(0)
        made = {"table": lambda: nn.Embedding(9, 6), "out": lambda: nn.Linear(width, 3)}
        for name in parts.split():
            self.add_module(name, made.get(name, lambda: nn.Linear(6, 6))())
        self.function = function

    def forward(self, *given):
        return self.function(self, *given)


REAL = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(0, 9, (16, 6), generator=torch.Generator().manual_seed(2))
SEEN = torch.arange(6) < (torch.arange(16) % 6 + 1)[:, None]


def _compared(net, x):
    a, b = net.a(x), net.b(x)
    first = torch.where(a > 0.3, a, b) + torch.where((a >= b) & ~(b < 0), a, 0.5)
    return net.out(first + torch.where((a != b) | (b <= a), b, a) + (b == 0).float() * 0.5 + a * (b > 0))


def _hidden(net, x, seen):
    a, b = net.a(x), net.b(x)
    first = a.masked_fill(~seen, -torch.inf).softmax(1) + (b + (1.0 - seen.float()) * -10000.0).softmax(1)
    more = torch.zeros_like(a).masked_fill(~seen, -1e9)
    return net.out(first + (b - a + more).softmax(1) + a.masked_fill(seen, 0.25))


def _tokens(net, ids):
    x = net.table(ids)
    x = x.masked_fill((ids == 0).unsqueeze(-1), 0.0) + torch.where(ids[:, :, None] > 4, x, net.table(ids[:, 2:3]))
    return net.out(net.table(8 - ids.flip(1)).sum(1) + x.sum(1))


def _own_input(net, x):
    wide = F.avg_pool1d(x[:, None], 2).flatten(1)
    return net.out(torch.cat([net.a(x), wide, net.b(torch.cat([x[:, :3], net.a(x)[:, 3:]], 1))], 1))


def _filled_up(net, x, seen):
    a, b = net.a(x), net.b(x)
    lowest = torch.finfo(a.dtype).min
    first = (a + (1 - seen) * -10000.0).softmax(1) + (b + (1.0 - seen.to(b.dtype)) * lowest).softmax(1)
    return net.out(first * seen + a.masked_fill(seen == 0, -1e4).softmax(1)), (b * seen.float()).sum(1, keepdim=True)


def _places(net, x):
    a = net.a(x)
    return a, a.argmax(1), net.b(x).view(-1, 2, 3).min(2)[1]


NETWORKS = {
    "compared": (lambda: Net(_compared), (REAL,)),
    "hidden": (lambda: Net(_hidden), (REAL, SEEN)),
    "masks of 64 bits": (lambda: Net(_filled_up), (REAL, SEEN.long())),
    "tokens": (lambda: Net(_tokens, "table out"), (IDS,)),
    "the network's own input": (lambda: Net(_own_input, width=15), (REAL,)),
    "places": (lambda: Net(_places, "a b"), (REAL,)),
}


def arrays(structure):
    return [np.asarray(each.detach() if isinstance(each, torch.Tensor) else each) for each in leaves(structure)]


@pytest.mark.parametrize("case", NETWORKS)
def test_integers_are_what_the_network_computes(case, tmp_path):
    make, example = NETWORKS[case]
    q = probq.quantize(make().eval(), example, plan=probq.uniform(3, 3))  # coarse: many numbers are equal
    model = probq.lower(q)
    given = tuple(3 * x.double() if x.is_floating_point() else x for x in example)
    x = given if len(given) > 1 else given[0]
    for found, expected in zip(arrays(model.real_output(model(x))), arrays(q(*given)), strict=True):
        assert np.array_equal(found, expected)
        assert len(np.unique(found)) > 1
    for target, name in ((probq.export.c, "m.h"), (probq.export.onnx, "m.onnx")):
        target.write(model, tmp_path / name)
        assert probq.export.verify(model, tmp_path / name, x).differing == 0


def test_windows_are_those_of_a_convolution(tmp_path):
    torch.manual_seed(0)

    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Conv2d(1, 2, 1), nn.Linear(12, 3)

        def forward(self, x):
            return self.out(F.unfold(self.a(x), (2, 3), dilation=(2, 1), padding=1, stride=2).transpose(1, 2))

    x = torch.randn(8, 1, 6, 7)
    q = probq.quantize(Windows().eval(), x)
    model = probq.lower(q)
    assert np.array_equal(model(x) * model.output_scale, q(x.double()).detach().numpy())


def test_ids_are_checked_and_those_of_a_column_are_cut_off():
    """Tables of 4 and 9 rows read columns of one tensor: ids from 9 on are refused, those of the first are cut off."""

    class Columns(nn.Module):
        def __init__(self):
            super().__init__()
            self.few, self.many, self.out = nn.Embedding(4, 3), nn.Embedding(9, 3), nn.Linear(3, 2)

        def forward(self, ids):
            return self.out(self.few(ids[:, 0]) + self.many(ids[:, 1]))

    ids = torch.stack([torch.arange(8) % 4, torch.arange(8) % 9], 1)
    model = probq.lower(probq.quantize(Columns().eval(), ids))
    assert model.input.attributes["count"] == 9
    assert np.array_equal(model(np.array([[8, 1]])), model(np.array([[3, 1]])))
    with pytest.raises(probq.ProbqError, match=r"0 \.\. 9 leave the range 0 \.\. 8"):
        model(np.array([[0, 9]]))


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_a_mask_of_64_bits_takes_0_and_1_alone(tmp_path):
    """The example says that it is a mask, which a posterior that was loaded lacks; what is compared may be anything."""
    example = (REAL, SEEN.long())
    q = probq.quantize(Net(_filled_up).eval(), example)
    with pytest.raises(probq.ProbqError, match=r"given_1.* 0 \.\. 2 leave the range 0 \.\. 1"):
        probq.lower(q)((REAL, 2 * SEEN.long()))
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", Net(_filled_up))
    with pytest.raises(probq.ProbqError, match=r"whole numbers of any size.*a mask of which the example holds 0 and 1"):
        probq.lower(loaded)
    again, model = probq.lower(loaded, example=example), probq.lower(q)
    assert all(np.array_equal(a, b) for a, b in zip(again(example), model(example), strict=True))
    compared = Net(lambda net, x, kind: net.out(net.a(x).masked_fill(kind == 0, 0.0)), "a out")
    assert probq.lower(probq.quantize(compared.eval(), example))((REAL, 5 * SEEN.long())).shape == (16, 3)
    bytes_ = Net(lambda net, x, seen: net.out(net.a(x).add((1.0 - seen.float()) * -1e9).softmax(1)), "a out")
    with pytest.raises(probq.ProbqError, match="may hold more than 0 and 1; give it as bool, or in 64 bits"):
        probq.lower(probq.quantize(bytes_.eval(), (REAL, SEEN.byte())))


REFUSED = {
    "a mean": (lambda net, x: torch.where(net.a(x.repeat(1, 1)).view(-1, 2, 3).mean(2) > 0, 1.0, 0.0), "an average"),
    "whole numbers": (lambda net, x: net.a(x).abs().long().float(), "makes whole numbers of real ones"),
    "no truth": (lambda net, x: torch.logical_not(net.a(x)).float(), "true or false alone; compare first, as x != 0"),
    "places of means": (lambda net, x: net.a(x).view(-1, 2, 3).mean(2).argmax(1), "averages, equal ones of which"),
    "the batch": (lambda net, x: net.a(x).argmax(), "it changes the batch axis|looks over the batch"),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("case", REFUSED)
def test_what_floating_point_may_miss_is_refused(case):
    function, message = REFUSED[case]
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(probq.quantize(Net(function, "a").eval(), REAL))


class States(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)

    def forward(self, x, h):
        return self.rnn(x, h)[0][:, -1]


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 4)

    def forward(self, x, table):
        return self.out(x + table[:4])


UNCLEAR = {
    "a layer and an example": (
        States,
        (1, 4, 3),
        (1, 1, 4),
        r"Its example .*\(1, 1, 4\).* with another number of exam",
    ),
    "no batch": (
        Added,
        (16, 4, 3),
        (5, 3),
        r"the second of states \[layers, batch, features\].*lengths 5, 16; transpose",
    ),
}


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize(("net", "x", "other", "message"), UNCLEAR.values(), ids=UNCLEAR)
def test_inputs_whose_batch_is_not_found_are_refused(net, x, other, message):
    q = probq.quantize(net().eval(), (torch.randn(x), torch.randn(other)))
    with pytest.raises(probq.ProbqError, match=message):
        probq.lower(q)
