"""Normalisations that a forward spells out itself are recognised here by what each tensor was computed of.

    (x - x.mean(a, keepdim=True)) / (x.var(a, unbiased=False, keepdim=True) + eps).sqrt()
    x * torch.rsqrt(x.pow(2).mean(a, keepdim=True) + eps)

The variance may be a mean of squares, roots may be powers, and the inverse of a root may be multiplied with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from probq.utils.structures.tensors import tensors_in

ADDS = frozenset({"add", "__add__", "__radd__"})
SUBTRACTS = frozenset({"sub", "subtract", "__sub__"})
MULTIPLIES = frozenset({"mul", "multiply", "__mul__", "__rmul__"})
DIVIDES = frozenset({"div", "divide", "true_divide", "__truediv__", "__div__"})
DIVIDES_A_NUMBER = frozenset({"__rtruediv__", "__rdiv__"})
POWERS = frozenset({"pow", "__pow__"})
LOOKS = frozenset({"__get__", "size", "dim", "numel", "stride", "is_floating_point", "is_contiguous", "__len__"})


class WrittenNorm(NamedTuple):
    """This is what a call of a forward stands for.

    Attributes:
        kind: "rms_norm" where it ends one; "layer_norm" where it takes off the mean of one, so that a gain that follows
            multiplies what is normalised; "done" where it ends such a one.
        operand: which argument is normalised, or is the result.
        axes: over which it is, counted from the last.
        eps: what is added to the variance, or to the mean of squares.
    """

    kind: str
    operand: int
    axes: tuple[int, ...]
    eps: float


def is_written(entry: Sequence[Any]) -> bool:
    """Return whether a file gives a call as one of a normalisation: `["written", kind, operand, axes, eps]`."""
    if len(entry) != 5:
        return False
    _, kind, operand, axes, eps = entry
    if kind == "done":
        return operand in (0, 1) and axes == []
    numbers = isinstance(axes, list) and all(type(axis) is int and axis < 0 for axis in axes)
    real = isinstance(eps, float) and 0 < eps < math.inf
    known = kind in ("layer_norm", "rms_norm") and operand in (0, 1)
    return known and real and numbers and len(set(axes)) == len(axes) > 0


class Found(NamedTuple):
    """These calls are part of normalisations, by name.

    Attributes:
        norms: what calls stand for.
        unused: calls whose values nothing else needs.
    """

    norms: dict[str, WrittenNorm]
    unused: frozenset[str]


@dataclass(frozen=True)
class _Part:
    """A part of a normalisation, as far as it has been computed.

    Attributes:
        kind: a "mean", what it is taken off ("centred"), that times a gain ("gained"), "squares", their mean ("power"),
            its "sum" with `eps`, the "root" of that, or the "inverse" of the root.
        x: what is normalised.
        of: its version.
        axes: of the mean, counted from the last.
        centred: whether squares are of what the mean is taken off.
        eps: what was added.
        version: of the part itself.
        made_of: ids of tensors of which it was made, its own among them.
    """

    kind: str
    x: Tensor
    of: int
    axes: tuple[int, ...] = ()
    centred: bool = False
    eps: float = 0.0
    version: int = 0
    made_of: frozenset[int] = frozenset()


class _Last(NamedTuple):
    """This is the last call of a normalisation.

    Attributes:
        name: of the call.
        norms: by name, what it stands for, and what the call does that takes the mean off, if one does.
        changed: parts that have another value once the normalisation is computed as a whole.
        made_of: all its parts.
    """

    name: str
    norms: dict[str, WrittenNorm]
    changed: frozenset[int]
    made_of: frozenset[int]


class _Call(NamedTuple):
    """A call that takes or gives parts."""

    name: str
    takes: frozenset[int]
    gives: frozenset[int]


class WrittenNorms:
    """All calls of a run are told here, in order; the normalisations among them are found at the end."""

    def __init__(self) -> None:
        self._parts: dict[int, _Part] = {}
        self._centring: dict[int, str] = {}  # names of the calls that take means off
        self._times: Counter[str] = Counter()
        self._lasts: list[_Last] = []
        self._calls: list[_Call] = []
        self._kept: list[Any] = []  # so that ids stay those of these tensors

    def called(self, name: str, function: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Note a call.

        Args:
            name: of the call, unique in the network; empty where it has none.
            function: its name.
            args: what it is called with.
            kwargs: the same by name.
            out: what it gives.
        """
        self._times[name] += 1
        given, made = list(tensors_in((args, kwargs))), list(tensors_in((out,)))
        self._kept += [*given, *made]
        takes = self._known(given)
        if not self._known(made):  # neither changed in place nor handed on
            self._read(name, function, args, kwargs, made)
        gives = self._known(made)
        if gives or (takes and (made or function not in LOOKS)):
            self._calls.append(_Call(name, takes, gives if len(gives) == len(made) else frozenset()))

    def left(self, out: Any) -> None:
        """Note what a module returns, which anything may use."""
        if takes := self._known(tensors_in((out,))):
            self._calls.append(_Call("", takes, frozenset()))

    def found(self) -> Found:
        """Return the normalisations of which nothing else uses a part that changes."""
        lasts = self._lasts
        while True:
            unused = self._unused(lasts)
            stand_for = Counter(pair for last in lasts for pair in last.norms.items())
            kept = [last for last in lasts if last.changed <= unused and self._are_all(last, stand_for)]
            if len(kept) == len(lasts):
                break
            lasts = kept
        norms = {name: norm for last in lasts for name, norm in last.norms.items()}
        changed = frozenset[int]().union(*(last.changed for last in lasts))
        times = Counter(c.name for c in self._calls if c.gives and c.gives <= unused and not c.gives & changed)
        names = {name for name, count in times.items() if name and count == self._times[name]}
        return Found(norms, frozenset(names - set(norms)))

    def _are_all(self, last: _Last, stand_for: Mapping[tuple[str, WrittenNorm], int]) -> bool:
        """Return whether all calls of the names of a normalisation stand for the same."""
        return all(stand_for[pair] == self._times[pair[0]] for pair in last.norms.items())

    def _known(self, tensors: Iterable[Tensor]) -> frozenset[int]:
        return frozenset(id(tensor) for tensor in tensors if id(tensor) in self._parts)

    def _unused(self, lasts: Sequence[_Last]) -> frozenset[int]:
        """Return the parts that nothing needs once these normalisations are computed as a whole."""
        names, unused = {last.name for last in lasts}, frozenset[int]().union(*(last.made_of for last in lasts))
        while True:
            needed = [c.takes for c in self._calls if c.name not in names and not (c.gives and c.gives <= unused)]
            left = unused.difference(*needed)
            if left == unused:
                return unused
            unused = left

    def _read(self, name: str, function: str, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> None:
        if function == "var_mean" and len(made) == 2:
            self._note(made[0], _statistics("var", args, kwargs))
            self._note(made[1], _statistics("mean", args, kwargs))
        elif len(made) == 1:
            part = self._part(function, args, kwargs)
            self._note(made[0], part)
            if part is not None and part.kind == "centred":
                self._centring[id(made[0])] = name
            if name and len(args) == 2 and not kwargs:
                self._end(name, function, args)

    def _note(self, out: Tensor, part: _Part | None) -> None:
        if part is not None:
            self._parts[id(out)] = replace(part, version=out._version, made_of=part.made_of | {id(out)})

    def _of(self, value: Any, kind: str) -> _Part | None:
        """Return what a tensor is, if it is a part of this kind and nothing has changed since."""
        part = self._parts.get(id(value)) if isinstance(value, Tensor) else None
        if part is None or part.kind != kind or (part.x._version, value._version) != (part.of, part.version):
            return None
        return part

    def _part(self, function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Part | None:
        """Return what a call gives, if that is a part of a normalisation."""
        first, second = (*args, None, None)[:2]
        if not isinstance(first, Tensor):
            first, second = second, first if function in ADDS else None
        power = function in POWERS and not kwargs and type(second) in (int, float)
        if function == "square" or (power and second == 2) or (function in MULTIPLIES and first is second):
            centred = self._of(first, "centred")
            return replace(centred, kind="squares") if centred else _begun("squares", first)
        if function in MULTIPLIES:
            centred = self._of(first, "centred") or self._of(second, "centred")
            known = id(first) in self._parts and id(second) in self._parts
            return replace(centred, kind="gained") if centred is not None and not known else None
        if function in ("mean", "var"):
            return self._mean(function, args, kwargs)
        if function in SUBTRACTS and not kwargs:
            mean = self._of(second, "mean")
            return replace(mean, kind="centred") if mean is not None and mean.x is first else None
        if function in ADDS and not kwargs:
            own = self._of(first, "power")
            real = type(second) in (int, float) and second > 0
            return replace(own, kind="sum", eps=float(second)) if own is not None and real else None
        under, root = self._of(first, "sum"), self._of(first, "root")
        if under is not None and (function == "sqrt" or (power and second == 0.5)):
            return replace(under, kind="root")
        if under is not None and (function == "rsqrt" or (power and second == -0.5)):
            return replace(under, kind="inverse")
        inverts = function == "reciprocal" or (function in DIVIDES_A_NUMBER and second == 1)
        return replace(root, kind="inverse") if root is not None and inverts else None

    def _mean(self, function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Part | None:
        """Return a mean or a variance, or the mean of squares that is one."""
        found = _statistics(function, args, kwargs)
        squares = self._of(args[0], "squares") if args else None
        if found is None or squares is None:
            return found
        centred = bool(squares.axes)
        if function == "var" or (centred and squares.axes != found.axes):
            return None
        return replace(squares, kind="power", axes=found.axes, centred=centred)

    def _end(self, name: str, function: str, args: Sequence[Any]) -> None:
        """Note a call that ends a normalisation."""
        by = [(0, self._of(args[1], "root"))] if function in DIVIDES else []
        if function in MULTIPLIES:
            by = [(k, self._of(args[1 - k], "inverse")) for k in (0, 1)]
        for operand, part in by:
            if part is None:
                continue
            x = args[operand]
            over = self._of(x, "centred") or self._of(x, "gained")
            if part.centred and over is not None and over.x is part.x and over.axes == part.axes:
                takes_off = next(each for each in over.made_of if each in self._centring)
                norms = {
                    self._centring[takes_off]: WrittenNorm("layer_norm", 0, part.axes, part.eps),
                    name: WrittenNorm("done", operand, (), 0.0),
                }
                changed = frozenset({takes_off, id(x)})
                self._lasts.append(_Last(name, norms, changed, part.made_of | over.made_of))
            elif not part.centred and x is part.x:
                norms = {name: WrittenNorm("rms_norm", operand, part.axes, part.eps)}
                self._lasts.append(_Last(name, norms, frozenset(), part.made_of))


def _begun(kind: str, x: Any, axes: tuple[int, ...] = (), centred: bool = False) -> _Part | None:
    """Return a part of a tensor, if it is one of real numbers with more axes than the batch."""
    real = isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 1
    return _Part(kind, x, x._version, axes, centred) if real else None


def _statistics(function: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Part | None:
    """Return a mean, or a variance over the whole of what it is of, that keeps its axes, none of them the batch."""
    order = ("input", "dim", "keepdim") if function == "mean" else ("input", "dim", "unbiased", "keepdim")
    given = dict(zip(order, args, strict=False)) | dict(kwargs)
    x, dim = given.get("input"), given.get("dim", given.get("axis"))
    dims = [dim] if type(dim) is int else dim
    if not isinstance(x, Tensor) or not isinstance(dims, tuple | list) or not dims or not given.get("keepdim"):
        return None
    if function == "var" and given.get("unbiased", given.get("correction", 1)) not in (False, 0):
        return None
    axes = tuple(sorted(int(axis) % x.dim() - x.dim() for axis in dims))
    if given.get("dtype") not in (None, x.dtype) or -x.dim() in axes:
        return None
    return _begun("mean" if function == "mean" else "power", x, axes, function == "var")
