"""Recurrent modules that are spelled out give torch's outputs in float."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import probq

SAME = {"rtol": 1e-5, "atol": 1e-5}
KINDS = {
    f"{kind.__name__}, {layers} layers, {'both ways' if both else 'one way'}, {'batch' if first else 'time'} first":
    (kind, {"num_layers": layers, "bidirectional": both, "batch_first": first})
    for kind, layers, both, first in itertools.product((nn.LSTM, nn.GRU), (1, 2), (False, True), (False, True))
} | {
    "LSTM, projected": (nn.LSTM, {"proj_size": 3}),
    "LSTM without bias": (nn.LSTM, {"bias": False}),
    "GRU without bias": (nn.GRU, {"bias": False}),
}  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def pair(kind):
    """A module of torch, and one of probq's own that has loaded its parameters."""
    torch.manual_seed(0)
    original, options = KINDS[kind]
    theirs = original(5, 4, **options)
    ours = getattr(probq.nn, original.__name__)(5, 4, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def states(found):
    return found if isinstance(found, tuple) else (found,)


@every_kind
def test_outputs_and_states_are_those_of_torch(kind):
    theirs, ours = pair(kind)
    x = torch.randn(3, 6, 5)
    first = tuple(torch.randn_like(state) for state in states(theirs(x)[1]))
    for given in ((x,), (x[0],), (x, first if len(first) > 1 else first[0])):
        torch.testing.assert_close(ours(*given), theirs(*given), **SAME)


@every_kind
def test_gradients_are_those_of_torch(kind):
    theirs, ours = pair(kind)
    x = torch.randn(3, 6, 5)
    for net in (theirs, ours):
        net(x)[0].square().sum().backward()
    there = {name: p.grad for name, p in theirs.named_parameters()}
    for name, place in ours._places().items():
        if name in there:
            torch.testing.assert_close(ours.get_parameter(place).grad, there[name], **SAME)
    assert len(list(ours.parameters())) == len(there)


def test_training_drops_outputs_between_layers_alone():
    torch.manual_seed(0)
    lstm = probq.nn.LSTM(2, 64, 2, dropout=0.25, batch_first=True)
    seen = []
    lstm.l1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    y, _ = lstm(torch.randn(8, 4, 2))
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert not (y == 0).any()


def test_packed_sequences_are_refused_by_name():
    with pytest.raises(probq.ProbqError, match="GRU takes no packed sequence; pad all to one length"):
        probq.nn.GRU(2, 3)(pack_sequence([torch.randn(3, 2), torch.randn(2, 2)]))
