"""Cells say what one time step of a recurrence computes, by linear layers and functions that `quantize` sees."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

States: TypeAlias = tuple[Tensor, ...]


class LSTMCell(nn.Module):
    """A cell of long short-term memory keeps a state that its gates open and close.

        i, f, g, o = item + hh(h)
        c' = sigmoid(f) c + sigmoid(i) tanh(g)
        h' = sigmoid(o) tanh(c'), or hr of that

    Args:
        hidden_size: numbers in the cell's state `c`.
        bias: whether `hh` adds one.
        proj_size: numbers in the hidden state `h`, of a linear layer `hr`; 0: as many as in `c`, without one.

    Source: S. Hochreiter and J. Schmidhuber, 1997, "Long Short-Term Memory"; H. Sak et al., 2014, "Long Short-Term
    Memory Based Recurrent Neural Network Architectures for Large Vocabulary Speech Recognition" (`hr`).
    """

    gates, memory = 4, "mul().right"

    def __init__(self, hidden_size: int, bias: bool = True, proj_size: int = 0) -> None:
        super().__init__()
        self.sizes = (proj_size or hidden_size, hidden_size)
        self.hh = nn.Linear(self.sizes[0], 4 * hidden_size, bias)
        self.hr = nn.Linear(hidden_size, proj_size, bias=False) if proj_size else None

    def forward(self, item: Tensor, states: States) -> States:
        """Return the states after a step; the first one is its output.

        Args:
            item: what the step's input adds to the gates, `[batch, 4 * hidden]`.
            states: `h` and `c` before, `[batch, ...]`.
        """
        h, c = states
        i, f, g, o = (item + self.hh(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return (h if self.hr is None else self.hr(h)), c


class GRUCell(nn.Module):
    """A gated recurrent unit moves its state towards a new one, as far as its gate says.

        r, z = sigmoid(item + hh(h))
        n = tanh(item_n + r hh_n(h))
        h' = n + z (h - n)

    Args:
        hidden_size: numbers in the state.
        bias: whether `hh` adds one.

    Source: K. Cho et al., 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
    Translation", in the form of torch.
    """

    gates, memory = 3, "mul()2.right"

    def __init__(self, hidden_size: int, bias: bool = True) -> None:
        super().__init__()
        self.sizes = (hidden_size,)
        self.hh = nn.Linear(hidden_size, 3 * hidden_size, bias)

    def forward(self, item: Tensor, states: States) -> States:
        """Return the state after a step.

        Args:
            item: what the step's input adds to the gates, `[batch, 3 * hidden]`.
            states: `h` before, `[batch, hidden]`.
        """
        (h,) = states
        size = h.shape[-1]
        own = self.hh(h)
        r, z = torch.sigmoid(item[:, : 2 * size] + own[:, : 2 * size]).chunk(2, -1)
        n = torch.tanh(item[:, 2 * size :] + r * own[:, 2 * size :])
        return (n + z * (h - n),)
