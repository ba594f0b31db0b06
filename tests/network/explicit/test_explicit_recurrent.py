"""Recurrent modules are spelled out in the quantized copy: widths, costs, and loops of exact integers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import probq
from probq import Plan
from probq.codebooks import ladder
from probq.nn.recurrence import Recurrence

SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Werror")


class Net(nn.Module):
    """A recurrent module and a linear layer, joined by a function of outputs and states."""

    def __init__(self, recurrent, width, read=lambda y, last: y[:, -1]):
        super().__init__()
        self.rnn, self.out, self.read = recurrent, nn.Linear(width, 3), read

    def forward(self, x):
        return self.out(self.read(*self.rnn(x)))


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def made(kind, width=4, read=lambda y, last: y[:, -1], **options):
    torch.manual_seed(0)
    return Net(kind(3, 4, batch_first=True, **options), width, read).eval()


def test_the_macs_of_an_lstm_are_those_of_all_time_steps():
    """Four gates read 3 inputs and 4 states at 6 time steps; three products of gates are of 4 numbers each."""
    net, x = made(nn.LSTM), drawn(16, 6, 3)
    q = probq.quantize(net, x, probq.uniform(4, 4, network_input=ladder(4), state=4))
    (note,) = q.notes
    assert note.startswith("rnn (LSTM) is spelled out in the quantized copy, as by probq.explicit: linear layers ih")
    inputs, hidden, gates = 6 * 4 * 4 * 3, 6 * 4 * 4 * 4, 6 * 3 * 4
    assert [layer.macs for layer in q.layers] == [inputs, hidden, gates // 3, gates // 3, gates // 3, 12]
    assert q.mode().cost() == 16 * (inputs + hidden + gates + 12)
    assert q.uncounted == 0
    assert [layer.name for layer in q.layers] == [layer.name for layer in probq.layers(net, x)]


def test_the_memory_of_a_cell_has_a_width_of_its_own():
    for kind, place in ((nn.LSTM, "mul()"), (nn.GRU, "mul()2")):
        q = probq.quantize(made(kind), drawn(16, 6, 3), Plan(state=12))
        widths = q.mode().widths
        assert widths[f"rnn.l0.cell.{place}.right.input"] == 12
        assert "rnn.l0.cell.hh.input" in widths
        assert "rnn.l0.cell.hh.weight" in widths
        assert 12 not in [bits for name, bits in widths.items() if place + ".right" not in name]
    with pytest.raises(probq.ProbqError, match=r"Plan\(state=...\) takes a width of 4 to 16 bits, not 3"):
        Plan(state=3)


class TimeFirst(nn.Module):
    """A recurrent module of torch's default order of axes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.out = nn.GRU(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.rnn(x.transpose(0, 1))[0]).transpose(0, 1)


def states(y, last):
    """The last hidden states of both directions, and the last cell states."""
    (h, c) = last
    return torch.cat([h[-2], h[-1], c[0]], 1)


NETWORKS = {
    "time first": TimeFirst,
    "last states": lambda: made(nn.LSTM, 12, states, bidirectional=True),
    "lstm": lambda: made(nn.LSTM),
    "gru, both ways": lambda: made(nn.GRU, 8, bidirectional=True),
    "projected": lambda: made(nn.LSTM, 2, proj_size=2),
}


@pytest.mark.filterwarnings("ignore:the posterior was never fitted", "ignore:LSTM with projections is not supported")
@pytest.mark.parametrize("network", NETWORKS)
def test_loops_are_exact_at_random_widths_and_far_beyond_what_set_the_scales(network, tmp_path):
    net, x = NETWORKS[network](), drawn(16, 4, 3)
    q = probq.quantize(net, x)
    for _, quantizer in q.named_quantizers():
        quantizer.logits.data.normal_(1.5, 1.5, generator=torch.Generator().manual_seed(2))
    far = 3 * x.double()
    for a in (q.mode(), *q.sample(1, seed=0)):
        model = probq.lower(q, a)
        assert sum(node.op == "loop" for node in model.nodes) == sum(
            isinstance(module, Recurrence) for module in q.net.modules()
        )
        assert np.array_equal(model(far) * model.output_scale, q.at(a).eval()(far).detach().numpy())
    model.save(tmp_path / "m.safetensors")
    again = probq.IntegerModel.load(tmp_path / "m.safetensors")
    assert again.sha256() == model.sha256()
    assert np.array_equal(again(far), model(far))
    integers = model.quantize_input(far)
    pytest.importorskip("onnxruntime")
    for packed in (False, True):
        probq.export.onnx.write(model, tmp_path / "m.onnx", packed)
        for optimize in (False, True):
            assert np.array_equal(probq.export.onnx.run(tmp_path / "m.onnx", integers, optimize), model(far))
    probq.export.c.write(model, tmp_path / "m.h")
    assert np.array_equal(probq.export.c.run(tmp_path / "m.h", integers, ("-O0", *SANITIZED)), model(far))
    for target in (probq.export.qonnx, probq.export.memory):
        with pytest.raises(probq.ProbqError, match="loop"):
            target.write(model, tmp_path / "other")


def test_nodes_are_as_many_for_a_long_sequence():
    counts = []
    for length in (2, 40):
        model = probq.lower(probq.quantize(made(nn.GRU), drawn(4, length, 3)))
        counts.append((len(model.every_node), model.ranges["loop"].shape))
    assert counts[0][0] == counts[1][0]
    assert [shape for _, shape in counts] == [(2, 4), (40, 4)]


def test_a_posterior_is_loaded_on_the_original_network_and_takes_other_lengths(tmp_path):
    net, x = made(nn.LSTM), drawn(16, 6, 3)
    q = probq.quantize(net, x)
    q.save(tmp_path / "q.safetensors")
    for given in (net, probq.explicit(net)):
        again = probq.load(tmp_path / "q.safetensors", given)
        assert torch.equal(again(x), q(x))
        assert torch.equal(again(x[:, :4]), q(x[:, :4]))


class Packed(nn.Module):
    """A recurrent module that reads a packed sequence."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        _, last = self.rnn(pack_padded_sequence(x, torch.full((len(x),), 4), batch_first=True))
        return self.out(last[-1])


@pytest.mark.filterwarnings("ignore:probq.lower will refuse", "ignore:.*of all layers")
def test_packed_sequences_stay_float_and_are_named():
    with pytest.warns(UserWarning, match=r"rnn \(GRU\) computes addmm outside of any layer"):
        q = probq.quantize(Packed().eval(), drawn(16, 6, 3))
    assert isinstance(q.net.rnn, nn.GRU)


def test_longer_sequences_are_lowered_from_the_same_posterior(tmp_path):
    """The loop stays as it is: the files of both models have the same weights, and the same number of nodes."""
    q = probq.quantize(made(nn.GRU), drawn(16, 6, 3), Plan())
    longer = 3 * drawn(8, 9, 3)
    short, long = probq.lower(q), probq.lower(q, example=longer)
    assert np.array_equal(long(longer) * long.output_scale, q(longer.double()).detach().numpy())
    assert len(long.every_node) == len(short.every_node)
    probq.export.onnx.write(long, tmp_path / "m.onnx")
    assert probq.export.verify(long, tmp_path / "m.onnx", longer).differing == 0
    with pytest.raises(probq.ProbqError, match="built otherwise than the one"):
        probq.lower(q, example=(longer, longer))
