"""A stand-in is a module that computes what a forward calls a function for, so that hooks reach what enters and leaves.

It has no parameters, stands in the copy of the module whose forward makes the call, and is called in the function's
place by `probq.network.tracing.routing`. Constants have few binary digits in it from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from probq.codebooks.rounding.short_numbers import Constant, coarse_number, short, short_gain, short_number
from probq.network.explicit.functions import EXPLICIT
from probq.network.normalisers.kinds import NORMALISERS, SOFTMAXES
from probq.network.normalisers.written import WrittenNorm

# What each operation of a tensor and a constant computes.
ARITHMETIC: Mapping[str, Callable[[Tensor, Constant], Tensor]] = MappingProxyType(
    {
        "add": lambda x, c: x + short(c),
        "sub": lambda x, c: x - short(c),
        "rsub": lambda x, c: short(c) - x,
        "mul": lambda x, c: x * short_gain(c),
        "div": lambda x, c: x * short_gain(1 / c),
    }
)
# Functions of one number that become tables, by the names of their calls; those of `module_kinds.TABLES` among them.
FUNCTIONS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        name: getattr(F, name)
        for name in (
            "gelu", "silu", "hardsigmoid", "hardswish", "softplus", "elu", "leaky_relu", "selu", "celu", "mish",
            "softsign", "logsigmoid", "tanhshrink", "softshrink", "hardshrink", "threshold",
        )
    }
    | {name: getattr(torch, name) for name in ("sigmoid", "tanh", "exp", "expm1", "erf", "sin", "cos", "square", "pow")}
)  # fmt: skip
NON_NEGATIVE = frozenset({"sigmoid", "hardsigmoid", "softplus", "exp", "square"})


class StandIn(nn.Module):
    """A stand-in computes one call of a function.

    Args:
        kind: the function, a key of `ARITHMETIC`, `FUNCTIONS` or `NORMALISERS`.
        operand: which argument is the tensor that depends on the network's input.
        raw: whether that tensor is the network's own real input, at most moved, pooled or clipped.
        args: what else a function of one number takes.
        kwargs: the same by name; the options of a softmax or normalisation, with the names of its gain and shift.
    """

    def __init__(
        self, kind: str, operand: int = 0, raw: bool = False, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.kind, self.operand, self.raw = kind, operand, raw
        self.args, self.kwargs = tuple(args), dict(kwargs or {})

    @property
    def tabulated(self) -> bool:
        """Return whether it becomes a table."""
        return self.kind in FUNCTIONS

    @property
    def normalises(self) -> bool:
        """Return whether it is a softmax or a normalisation."""
        return self.kind in NORMALISERS

    @property
    def stepped(self) -> bool:
        """Return whether its results are rounded to a step of their own, as those of an operation with a constant."""
        return not self.tabulated and not self.left_in_float

    @property
    def result_rounded(self) -> bool:
        """Return whether a step rounds what it gives, not only what enters it."""
        return True

    @property
    def planned(self) -> bool:
        """Return whether the plan of the layer before it may leave it in float: a table, or a softmax."""
        return self.tabulated or self.kind in SOFTMAXES

    @property
    def left_in_float(self) -> bool:
        """Return whether it is a softmax that its plan leaves in float."""
        return bool(self.kwargs.get("float"))

    def leave_in_float(self) -> None:
        """Set that this softmax stays in float."""
        self.kwargs["float"] = True

    @property
    def signed(self) -> bool:
        """Return whether it takes negative values."""
        return self.kind not in NON_NEGATIVE

    def attach(self, net: nn.Module) -> None:
        """Take what it needs of the network that it was put into: nothing, unless it has parameters."""

    def forward(self, x: Tensor, *constants: Any) -> Tensor:
        """Return what the call computes."""
        if self.tabulated:
            return FUNCTIONS[self.kind](x, *self.args, **self.kwargs)
        if self.normalises:
            gain, shift = constants
            return NORMALISERS[self.kind](x, gain, shift, self.kwargs)
        return ARITHMETIC[self.kind](x, *map(self._coarse, constants))

    def meet(self, args: Sequence[Any], largest: float) -> None:
        """Take note of the largest result where that is so large that a number which is added needs fewer digits."""
        number = args[1 - self.operand] if len(args) == 2 and self.kind in ("add", "sub", "rsub") else None
        if not isinstance(number, int | float) or not 0 < largest < math.inf:
            return
        if coarse_number(short_number(number), largest) != short_number(number):
            self.kwargs["largest"] = largest

    def _coarse(self, constant: Constant) -> Constant:
        if isinstance(constant, Tensor) or not constant or "largest" not in self.kwargs:
            return constant
        return coarse_number(short_number(constant), self.kwargs["largest"])

    @property
    def entry(self) -> list[Any]:
        """Return what `StandIn(*entry)` makes the same of."""
        return [self.kind, self.operand, self.raw, list(self.args), self.kwargs]


class Explicit(StandIn):
    """An explicit function computes what one call does by functions that have stand-ins in it themselves.

    Args:
        kind: the function, a key of `EXPLICIT`.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)

    @property
    def stepped(self) -> bool:
        """Return that its results are not rounded."""
        return False

    @property
    def entry(self) -> list[Any]:
        """Return what `made_from` makes the same of."""
        return ["explicit", self.kind]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the call computes."""
        return EXPLICIT[self.kind][0](*args, **kwargs)


class Written(Explicit):
    """A normalisation that a forward spells out is computed as a whole in the place of one of its calls.

    Args:
        norm: what the call stands for.
    """

    def __init__(self, norm: WrittenNorm) -> None:
        super().__init__(norm.kind)
        self.norm = norm

    @property
    def entry(self) -> list[Any]:
        """Return what `made_from` makes the same of."""
        return ["written", self.norm.kind, self.norm.operand, list(self.norm.axes), self.norm.eps]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the normalised operand, or the operand itself where that is done."""
        x: Tensor = args[self.norm.operand]
        if self.kind == "done":
            return x
        axes, last = list(self.norm.axes), list(range(-len(self.norm.axes), 0))
        normalise = F.layer_norm if self.kind == "layer_norm" else F.rms_norm
        size = [x.shape[axis] for axis in axes]
        if axes == last:
            return normalise(x, size, eps=self.norm.eps)
        return normalise(x.movedim(axes, last), size, eps=self.norm.eps).movedim(last, axes)


# Functions that are exact where their constants have few binary digits; a list of operands is the first argument.
SHORTENED: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "cat": torch.cat, "stack": torch.stack, "maximum": torch.maximum, "minimum": torch.minimum,
        "clamp": torch.clamp, "pad": F.pad,
    }
)  # fmt: skip


class Shortened(StandIn):
    """A shortened call takes some of its operands, which are constants, with few binary digits.

    Args:
        kind: the function, a key of `SHORTENED`.
        places: which operands are constants.
    """

    def __init__(self, kind: str, places: Sequence[int]) -> None:
        super().__init__(kind)
        self.places = list(places)

    @property
    def stepped(self) -> bool:
        """Return that its results are not rounded."""
        return False

    @property
    def entry(self) -> list[Any]:
        """Return what `made_from` makes the same of."""
        return ["shortened", self.kind, self.places]

    def forward(self, *args: Any) -> Tensor:
        """Return what the call computes."""
        joined = isinstance(args[0], tuple | list)
        operands = [short(a) if k in self.places else a for k, a in enumerate(args[0] if joined else args)]
        return SHORTENED[self.kind](*([operands, *args[1:]] if joined else operands))


# Functions of the network's own input alone, which they average or resample.
ALONE: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {f"{kind}avg_pool{axes}d": getattr(F, f"{kind}avg_pool{axes}d") for kind in ("", "adaptive_") for axes in (1, 2, 3)}
    | {"interpolate": F.interpolate, "mean": torch.mean, "sum": torch.sum}
)
# Functions of the network's own input and of what is no constant.
ENTERED: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "batch_norm": F.batch_norm, "add": torch.add, "sub": torch.sub, "rsub": torch.rsub, "cat": torch.cat,
        "stack": torch.stack, **ALONE,
    }
)  # fmt: skip


class Entered(StandIn):
    """An entered call takes the network's own input, which is rounded there, beside what layers computed or statistics.

    Args:
        kind: the function, a key of `ENTERED`.
        operand: which argument is the network's input, or which of a list of tensors.
    """

    def __init__(self, kind: str, operand: int) -> None:
        super().__init__(kind, operand, raw=True)

    @property
    def result_rounded(self) -> bool:
        """Return that its results are not rounded once more."""
        return False

    @property
    def entry(self) -> list[Any]:
        """Return what `made_from` makes the same of."""
        return ["entered", self.kind, self.operand]

    @property
    def joins(self) -> bool:
        """Return whether the function takes a list of tensors."""
        return self.kind in ("cat", "stack")

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """Return what the call computes; of a list, `x` is in the place of the operand."""
        if not self.joins:
            return ENTERED[self.kind](x, *others, **named)
        parts, *rest = others
        return ENTERED[self.kind]([x if k == self.operand else part for k, part in enumerate(parts)], *rest)


def is_stand_in(name: str) -> bool:
    """Return whether a module's name is that of a stand-in, or of what is in one."""
    return "()" in name


def place_stand_ins(net: nn.Module, made: Mapping[str, StandIn]) -> None:
    """Put stand-ins where their names say, which begin with that of the module whose forward makes the call."""
    for name, stand_in in made.items():
        owner, _, own = name.rpartition(".")
        net.get_submodule(owner).add_module(own, stand_in)
        stand_in.attach(net)


def stand_ins(net: nn.Module) -> Iterator[tuple[str, StandIn]]:
    """Yield the stand-ins of a network with their names, a shared one once."""
    yield from ((name, module) for name, module in net.named_modules() if isinstance(module, StandIn))
