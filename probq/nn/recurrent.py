"""Recurrent modules of torch are spelled out: linear layers, functions and products that `quantize` sees."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from probq.nn.cells import GRUCell, LSTMCell, States
from probq.nn.recurrence import Recurrence
from probq.utils.errors import ProbqError


class _Recurrent(nn.Module):
    """A recurrent module has a recurrence for each layer and direction, named as torch names its weights.

    Its arguments are those of `LSTM`.
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_size, self.hidden_size, self.num_layers, self.bias = input_size, hidden_size, num_layers, bias
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        self.proj_size = proj_size
        size = input_size
        for layer in range(num_layers):
            for suffix in self._suffixes:
                self.add_module(f"l{layer}{suffix}", Recurrence(size, self._cell(), bias, bool(suffix)))
            size = (proj_size or hidden_size) * len(self._suffixes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(hidden_size), 1 / math.sqrt(hidden_size))

    def _cell(self) -> Any:
        raise NotImplementedError

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    @classmethod
    def of(cls, original: Any) -> Any:
        """Return what computes the same as a module of torch, with its own parameters."""
        options = {"proj_size": original.proj_size} if original.proj_size else {}
        with torch.device("meta"):  # which draws no random numbers
            made = cls(
                original.input_size, original.hidden_size, original.num_layers, original.bias, original.batch_first,
                original.dropout, original.bidirectional, **options,
            )  # fmt: skip
        for theirs, ours in made._places().items():
            if theirs in original._parameters:
                owner, _, name = ours.rpartition(".")
                setattr(made.get_submodule(owner), name, getattr(original, theirs))
        return made.train(original.training)

    def _places(self) -> dict[str, str]:
        """Return the name here of each parameter of torch's."""
        parts = {"ih": "ih", "hh": "cell.hh", "hr": "cell.hr"}
        return {
            f"{kind}_{theirs}_{name}": f"{name}.{ours}.{kind}"
            for name, _ in self.named_children()
            for theirs, ours in parts.items()
            for kind in ("weight", "bias")
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the names of torch's parameters too."""
        for theirs, ours in self._places().items():
            if (own := state_dict.pop(prefix + theirs, None)) is not None:
                state_dict[prefix + ours] = own
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _run(self, x: Any, states: States | None) -> tuple[Tensor, States]:
        """Return the outputs, and the last states of all layers and directions, as torch does."""
        if isinstance(x, PackedSequence):
            raise ProbqError(
                f"{type(self).__name__} takes no packed sequence; pad all to one length and read each at its own end"
            )
        alone = x.dim() == 2
        if alone:
            x, states = x.unsqueeze(1 - self._axis), states and tuple(s.unsqueeze(1) for s in states)
        x = x if self.batch_first else x.transpose(0, 1)
        ends: list[States] = []
        for layer in range(self.num_layers):
            outputs = []
            for suffix in self._suffixes:
                one: Any = self.get_submodule(f"l{layer}{suffix}")
                first = _zeros(x, one.cell.sizes)
                if states:  # added to zeros, so that what is given is seen to enter
                    first = tuple(zero + state[len(ends)] for zero, state in zip(first, states, strict=True))
                y, last = one(x, first)
                outputs.append(y)
                ends.append(last)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)
            if self.training and self.dropout and layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout)
        x = x if self.batch_first else x.transpose(0, 1)
        found = tuple(torch.stack(parts, 0) for parts in zip(*ends, strict=True))
        return (x.squeeze(1 - self._axis), tuple(s.squeeze(1) for s in found)) if alone else (x, found)

    @property
    def _axis(self) -> int:
        """Return the axis of time."""
        return 1 if self.batch_first else 0


def _zeros(x: Tensor, sizes: tuple[int, ...]) -> States:
    return tuple(x.new_zeros(x.shape[0], size) for size in sizes)


class LSTM(_Recurrent):
    """This module computes what `torch.nn.LSTM` does, and all of its products are layers that `quantize` sees.

    It takes the arguments of that, and `load_state_dict` takes the parameters of that as well as its own. The layers of
    `lstm` are `lstm.l0.ih` and `lstm.l0.cell.hh`, `lstm.l0_reverse.ih` and so on; its products `lstm.l0.cell.mul()`
    (the forget gate times the cell's state), `mul()2` (the input gate) and `mul()3` (the output gate). Sequences are
    padded by the user: packed ones are refused.

    Args:
        input_size: numbers of one time step.
        hidden_size: numbers in a state.
        num_layers: layers, each of which reads the outputs of the one before it.
        bias: whether gates have biases.
        batch_first: whether inputs are `[batch, time, input]`, not `[time, batch, input]`.
        dropout: the share of outputs that training drops between layers.
        bidirectional: whether each layer has a second direction, whose outputs stand behind those of the first.
        proj_size: numbers in the hidden state, where a linear layer makes them; 0: `hidden_size`, without one.

    Raises:
        ProbqError: if it is called with a packed sequence.

    Source: S. Hochreiter and J. Schmidhuber, 1997, "Long Short-Term Memory".

    Example:
        >>> import torch, probq
        >>> original = torch.nn.LSTM(3, 4, batch_first=True)
        >>> lstm, x = probq.nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)
        >>> lstm.load_state_dict(original.state_dict())
        <All keys matched successfully>
        >>> bool((lstm(x)[0] - original(x)[0]).abs().max() < 1e-5)
        True
    """

    def _cell(self) -> LSTMCell:
        return LSTMCell(self.hidden_size, self.bias, self.proj_size)

    def forward(self, input: Tensor, hx: States | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the outputs of the last layer at all times, and the states `h` and `c` of all layers after the last.

        Args:
            input: sequences, `[batch, time, input]` or as `batch_first` says.
            hx: `h` and `c` before the first step, `[layers * directions, batch, ...]`; None: zeros.
        """
        out, (h, c) = self._run(input, hx)
        return out, (h, c)


class GRU(_Recurrent):
    """This module computes what `torch.nn.GRU` does, and all of its products are layers that `quantize` sees.

    It takes the arguments of that, and `load_state_dict` takes the parameters of that as well as its own. The layers of
    `gru` are `gru.l0.ih` and `gru.l0.cell.hh`, `gru.l0_reverse.ih` and so on; its products `gru.l0.cell.mul()` (the
    reset gate) and `mul()2` (the update gate times how far the state is from the new one). Sequences are padded by the
    user: packed ones are refused.

    Args:
        input_size: numbers of one time step.
        hidden_size: numbers in a state.
        num_layers: layers, each of which reads the outputs of the one before it.
        bias: whether gates have biases.
        batch_first: whether inputs are `[batch, time, input]`, not `[time, batch, input]`.
        dropout: the share of outputs that training drops between layers.
        bidirectional: whether each layer has a second direction, whose outputs stand behind those of the first.

    Raises:
        ProbqError: if it is called with a packed sequence.

    Source: K. Cho et al., 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
    Translation".

    Example:
        >>> import torch, probq
        >>> gru = probq.nn.GRU(3, 4, batch_first=True)
        >>> [tuple(part.shape) for part in gru(torch.randn(2, 5, 3))]
        [(2, 5, 4), (1, 2, 4)]
    """

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
        dropout: float = 0.0, bidirectional: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)

    def _cell(self) -> GRUCell:
        return GRUCell(self.hidden_size, self.bias)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the outputs of the last layer at all times, and the states of all layers after the last.

        Args:
            input: sequences, `[batch, time, input]` or as `batch_first` says.
            hx: the states before the first step, `[layers * directions, batch, hidden]`; None: zeros.
        """
        out, (h,) = self._run(input, None if hx is None else (hx,))
        return out, h
