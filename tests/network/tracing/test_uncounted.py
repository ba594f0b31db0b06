"""Products outside of all layers are counted by hand, by torch's counter, and said beside every percentage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import probq
from probq.cli.command_line import posterior_text
from probq.evaluation.diagnostics.table import format_table
from probq.network.tracing.trace import trace_network

T, N, H = 16, 32, 24  # steps, inputs, hidden numbers
X = torch.randn(4, T, N, generator=torch.Generator().manual_seed(0))
M = torch.ones(T, T).triu(1).bool()
pytestmark = pytest.mark.filterwarnings("ignore:probq.lower will refuse", "ignore:.*stays float")


class Own(nn.Module):
    """A body, a forward given as a function, and a head of H x 3 = 72 MACs."""

    def __init__(self, body: nn.Module, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body, self.own, self.head = body, forward, nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.own(self.body, x))


def _recurrent(kind: type[nn.Module], **options: Any) -> Own:
    """Modules with a hook, which are not spelled out."""
    body = kind(N, H, batch_first=True, **options)
    body.register_forward_hook(lambda *_: None)
    return Own(body, lambda body, x: body(x)[0][:, -1, :H])


def _weights() -> nn.Module:
    holder = nn.Module()
    holder.matrix, holder.vector = nn.Parameter(torch.randn(N, H)), nn.Parameter(torch.randn(N))
    return holder


def _transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(N, 4, 64, batch_first=True)


# network, MACs outside of all layers of one example by hand, whether torch's counter has formulas for all of them
UNCOUNTED: dict[str, tuple[Callable[[], Own], int, bool]] = {
    "GRU": (lambda: _recurrent(nn.GRU), T * 3 * H * (N + H), True),
    "RNN": (lambda: _recurrent(nn.RNN), T * H * (N + H), True),
    "LSTM": (lambda: _recurrent(nn.LSTM), T * 4 * H * (N + H), False),
    "LSTM, two layers, both ways": (
        lambda: _recurrent(nn.LSTM, num_layers=2, bidirectional=True),
        T * 2 * 4 * H * (N + H) + T * 2 * 4 * H * (2 * H + H),
        False,
    ),
    "attention with a mask": (
        lambda: Own(nn.MultiheadAttention(N, 4, batch_first=True), lambda m, x: m(x, x, x, attn_mask=M)[0][:, -1, :H]),
        0,
        True,
    ),
    "attention with added keys": (
        lambda: Own(
            nn.MultiheadAttention(N, 4, batch_first=True, add_zero_attn=True), lambda m, x: m(x, x, x)[0][:, -1, :H]
        ),
        T * 3 * N * N + 2 * T * (T + 1) * N,
        True,
    ),
    "transformer with a mask": (lambda: Own(_transformer(), lambda m, x: m(x, src_mask=M)[:, -1, :H]), 0, True),
    "a product": (lambda: Own(_weights(), lambda m, x: x.mean(1) @ m.matrix), 0, True),
    "a product with a vector": (
        lambda: Own(_weights(), lambda m, x: (x @ m.vector).repeat(1, 2)[:, :H]),
        0,
        False,
    ),
    "bilinear": (lambda: Own(nn.Bilinear(N, N, H), lambda m, x: m(x[:, 0], x[:, 1])), N * N * H, False),
}


@pytest.mark.parametrize(("make", "outside", "known"), UNCOUNTED.values(), ids=UNCOUNTED.keys())
def test_macs_outside_of_layers(make: Callable[[], Own], outside: int, known: bool) -> None:
    net = make().eval()
    found = trace_network(net, X)
    assert found.uncounted == outside
    if known:
        with FlopCounterMode(display=False) as flops:
            net(X)
        assert sum(layer.macs for layer in found.layers) + found.uncounted == flops.get_total_flops() / 2 / len(X)


def test_they_are_said_beside_every_percentage(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = _recurrent(nn.GRU)
    outside, every = T * 3 * H * (N + H), T * 3 * H * (N + H) + 3 * H
    sentence = f"{outside:,} of {every:,} MACs ({100 * outside / every:.3g} %) are outside of all layers"
    with pytest.warns(UserWarning, match="MACs .* are outside of all layers"):
        q = probq.quantize(net, X)
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", net)
    for each in (q, loaded):
        frame = probq.table(each)
        assert any(note.startswith(sentence) for note in each.notes)
        assert frame.attrs["not counted"].startswith(sentence)
        assert sentence in format_table(frame)
    assert posterior_text(tmp_path / "q.safetensors").splitlines()[-1].startswith(sentence)
    probq.fit(q, [(X, torch.tensor([0, 1, 2, 0]))], epochs=1, seed=0, progress=False)
    probq.report(q, tmp_path / "report.html")
    assert f", counted in BOPs ({sentence}" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_nothing_is_said_where_all_products_are_in_layers() -> None:
    q = probq.quantize(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(8, 4))
    assert q.uncounted == 0
    assert probq.table(q).attrs["not counted"] is None
    assert not any("MACs" in note for note in q.notes)
