"""One run of a network on the example shows which calls of functions need a stand-in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from probq.codebooks.rounding.short_numbers import needs_step
from probq.network.explicit.functions import EXPLICIT, is_spelled_out
from probq.network.matrices.views import read_matrices, read_matrix
from probq.network.normalisers.kinds import NORMALISERS
from probq.network.normalisers.masks import MASKED, is_mask, is_truth
from probq.network.normalisers.written import WrittenNorms
from probq.network.tracing.arguments import own_copy
from probq.network.tracing.example_run import run_example
from probq.network.tracing.module_kinds import QUANTIZABLE, TABLES
from probq.network.tracing.product_calls import (
    ELEMENTWISE,
    LAYER_CALLS,
    PRODUCTS,
    LayerCall,
    MatrixCall,
    Product,
    Quotient,
)
from probq.network.tracing.products import COMPUTED, MULTIPLY
from probq.network.tracing.routing import Call, Calls, Frame
from probq.network.tracing.stand_ins import (
    ALONE,
    ARITHMETIC,
    FUNCTIONS,
    SHORTENED,
    Entered,
    Explicit,
    Shortened,
    StandIn,
    Written,
    place_stand_ins,
)
from probq.nn.recurrent import GRU, LSTM
from probq.utils.structures.tensors import tensors_in

# Functions that take the shape of a tensor alone, or its type.
SHAPED = frozenset(f"{kind}_like" for kind in ("zeros", "ones", "full")) | {"new_zeros", "new_ones", "new_full"}


@dataclass(frozen=True)
class Found:
    """This is a call that needs a stand-in, and the largest magnitudes that enter and leave it, and of a divisor."""

    stand_in: StandIn
    entering: float
    leaving: float
    divisor: float = 0.0


class CallFinder(Calls):
    """This mode notes the calls that need a stand-in.

    These are functions that become tables, products of two tensors that depend on the network's input, and operations
    with constants that need a step. A constant is a number or a tensor that does not depend on the network's input. It
    needs a step of its own where it learns, where it has many binary digits, and where it meets the network's own
    input, which nothing has rounded yet.

    Attributes:
        found: the calls by the names of their stand-ins.
        explicit: functions that are to be spelled out, by the names that they have to have.
        written: normalisations that forwards spell out.
        products: for each module that multiplies, whether anything that it multiplies depends on the input.

    Args:
        net: the network.
        args: the example.
        unused: names of calls whose values nothing needs.
    """

    def __init__(self, net: nn.Module, args: tuple[Any, ...], unused: frozenset[str] = frozenset()) -> None:
        super().__init__(net)
        self.unused, self.written = unused, WrittenNorms()
        self.found: dict[str, Found] = {}
        self.explicit: dict[str, Explicit] = {}
        self.products: dict[str, bool] = {}
        # which tensors depend on the input, and whether they are more than the input; alive, so that ids stay theirs
        self._computed = {id(a): not a.is_floating_point() for a in tensors_in(args)}
        self._kept: list[Any] = [args]

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what a call gives, and note what depends on the input."""
        out = func(*args, **kwargs)
        if getattr(func, "__name__", "") in SHAPED:
            if self.frames and isinstance(self.frames[-1].module, GRU | LSTM):
                self._note(out, computed=True)  # states, which later steps compute
            return out
        given = [self._computed[id(t)] for t in tensors_in((args, kwargs)) if id(t) in self._computed]
        if given:
            name = str(getattr(func, "__name__", ""))
            changed = args[0] if name == "__setitem__" else out
            self._note(changed, any(given) or name.startswith(COMPUTED))
        return out

    def seen(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note what may be part of a normalisation that is spelled out, and whether a product is of constants alone."""
        if self.frames and str(getattr(func, "__name__", "")).startswith(MULTIPLY):
            place = self.frames[-1].name
            depends = any(map(self._depends, tensors_in((args, kwargs))))
            self.products[place] = self.products.get(place, False) or depends
        self.written.called(name, str(getattr(func, "__name__", "")), args, kwargs, out)

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.written.left(out)
        super()._leave(module, args, out)

    def _note(self, out: Any, computed: bool) -> None:
        for tensor in tensors_in(out):
            self._computed[id(tensor)] = computed or self._computed.get(id(tensor), False)
        self._kept.append(out)

    def called(self, frame: Frame, name: str, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what a call gives, and note it if it needs a stand-in."""
        if isinstance(module := frame.module._modules.get(name), Written):
            return self.entered(module, args, kwargs)
        if f"{frame.name}.{name}".removeprefix(".") in self.unused:
            return self.other(func, args, kwargs)
        if call.kind in EXPLICIT and (call.kind not in ALONE or is_spelled_out(call.kind, call.args, call.kwargs)):
            return self._spelled_out(frame, name, call, func)
        if call.kind in SHORTENED and (joined := self._joined(call)) is None:
            if places := self._constants(call):
                full = f"{frame.name}.{name}".removeprefix(".")
                before = self.found.get(full, Found(Shortened(call.kind, places), 0.0, 0.0))
                self.found[full] = before
            return self.other(func, args, kwargs)
        inside = type(frame.module) in TABLES
        stand_in = joined if call.kind in SHORTENED else None if inside else self._stand_in(call)
        if isinstance(stand_in, LayerCall) and isinstance(frame.module, QUANTIZABLE):
            stand_in = None
        if stand_in is None:
            return self.other(func, args, kwargs)
        operands = call.args[0] if isinstance(call.args[0], tuple | list) else call.args
        entering = _size(operands[stand_in.operand])
        divisor = _size(operands[1]) if isinstance(stand_in, Quotient) else 0.0
        out = self.other(func, args, kwargs)
        self._note(out, computed=True)
        full = f"{frame.name}.{name}".removeprefix(".")
        before = self.found.get(full, Found(stand_in, 0.0, 0.0))
        before.stand_in.raw |= stand_in.raw
        before.stand_in.meet(call.args, _size(out))
        pairs = (before.entering, entering), (before.leaving, _size(out)), (before.divisor, divisor)
        self.found[full] = Found(before.stand_in, *map(max, pairs))
        return out

    def _joined(self, call: Call) -> Entered | None:
        """Return what a list needs that joins the network's own input, in one place, with what layers computed."""
        if not isinstance(call.args[0], tuple | list):
            return None
        known = [(k, self._computed[id(a)]) for k, a in enumerate(call.args[0]) if self._depends(a)]
        raw = [k for k, computed in known if not computed]
        return Entered(call.kind, raw[0]) if len(raw) == 1 and len(known) > 1 else None

    def _constants(self, call: Call) -> list[int]:
        """Return which operands of a call are constants that need few binary digits."""
        operands = call.args[0] if isinstance(call.args[0], tuple | list) else call.args
        if not any(self._computed.get(id(operand), False) for operand in operands):
            return []
        constants = [a.is_floating_point() if isinstance(a, Tensor) else isinstance(a, float) for a in operands]
        return [
            place
            for place, a in enumerate(operands)
            if constants[place] and not self._depends(a) and not is_mask(a) and needs_step(a, "add", raw=False)
        ]

    def _spelled_out(self, frame: Frame, name: str, call: Call, func: Any) -> Any:
        """Return what a function gives that is spelled out, by what is within where that stands in the network."""
        module = frame.module._modules.get(name)
        if isinstance(module, Explicit):
            return self.entered(module, call.args, call.kwargs)
        given = sum(id(t) in self._computed for t in tensors_in((call.args, call.kwargs)))
        if given >= EXPLICIT[call.kind][1] and is_spelled_out(call.kind, call.args, call.kwargs):
            self.explicit[f"{frame.name}.{name}".removeprefix(".")] = Explicit(call.kind)
        return self.other(func, call.args, call.kwargs)

    def _stand_in(self, call: Call) -> StandIn | None:
        """Return the stand-in that a call needs, if it does."""
        places = [place for place, a in enumerate(call.args[:2]) if self._depends(a)]
        if call.kind in LAYER_CALLS:
            return self._layer(call) if places == [0] else None
        if call.kind == "batch_norm":
            return Entered(call.kind, 0) if places == [0] and not self._computed[id(call.args[0])] else None
        if call.kind in ALONE:
            raw = places[:1] == [0] and not self._computed[id(call.args[0])] and call.args[0].is_floating_point()
            return Entered(call.kind, 0) if raw and "linear" in call.kwargs.get("mode", "linear") else None
        if len(places) == 2:
            return self._entered(call) or _product(call) or self._quotient(call)
        if len(places) != 1 or (call.in_place and places[0]):
            return None
        operand = places[0]
        x, raw = call.args[operand], not self._computed[id(call.args[operand])]
        if not x.is_floating_point() or not x.numel():
            return None
        if call.kind in NORMALISERS:
            return self._normaliser(call, raw)
        if call.kind in FUNCTIONS:
            others = [*call.args[1:], *call.kwargs.values()]
            plain = operand == 0 and all(a is None or isinstance(a, bool | int | float | str) for a in others)
            return StandIn(call.kind, 0, raw, call.args[1:], call.kwargs) if plain else None
        constant, kind = call.args[1 - operand], call.kind
        if kind == "matmul":
            found = read_matrix(self.net, constant, x, operand)
            if found is None:
                several = read_matrices(constant, x, operand)
                return several and MatrixCall(operand, list(several[0].shape), [], [], False, *several)
            return MatrixCall(operand, *found[:3], constant.dim() == 1, found[3])
        if operand and kind in ("sub", "rsub"):
            kind = "rsub" if kind == "sub" else "sub"
        if kind not in ARITHMETIC or (operand and kind == "div") or (kind == "add" and is_mask(constant)):
            return None
        if not needs_step(constant, kind, raw):
            return None
        if kind == "mul" and not raw and isinstance(constant, float) and constant <= MASKED and is_truth(x):
            return None  # what it makes is a mask to add
        return StandIn(kind, operand, raw)

    def _entered(self, call: Call) -> StandIn | None:
        """Return what a sum of the network's own input and of what layers computed needs."""
        computed = [self._computed[id(a)] for a in call.args]
        if call.kind not in ("add", "sub") or computed[0] == computed[1] or call.in_place:
            return None
        return Entered("rsub" if call.kind == "sub" and computed[0] else call.kind, computed.index(False))

    def _quotient(self, call: Call) -> Quotient | None:
        """Return the quotient of two tensors which depend on the input, each with the batch as its first axis."""
        x, y = call.args
        real = x.is_floating_point() or y.is_floating_point()
        if call.kind != "div" or not real or x.dim() != y.dim() or not x.dim() or len(x) != len(y):
            return None
        return Quotient(*(not self._computed[id(a)] for a in call.args)) if x.numel() and y.numel() else None

    def _layer(self, call: Call) -> StandIn | None:
        """Return what stands in for a call with a constant weight, and a bias that is a tensor of the network."""
        x, weight, bias = call.args
        own = {id(t): name for name, t in (*self.net.named_buffers(), *self.net.named_parameters())}
        axes = {"embedding": 1, "linear": 2}.get(call.kind, weight.dim())
        if (bias is not None and id(bias) not in own) or x.dim() < axes:
            return None
        name = None if bias is None else own[id(bias)]
        if id(weight) in own:
            return LayerCall(call.kind, own[id(weight)], name, call.kwargs)
        if call.kind == "linear" and bias is None and (found := read_matrix(self.net, weight.T, x, 0)) is not None:
            return MatrixCall(0, *found[:3], value=found[3])
        return LayerCall(call.kind, list(weight.shape), name, call.kwargs, weight)

    def _normaliser(self, call: Call, raw: bool) -> StandIn | None:
        """Return what stands in for a softmax or a normalisation whose gain and shift are tensors of the network."""
        own = {id(t): name for name, t in (*self.net.named_buffers(), *self.net.named_parameters())}
        parts = zip(("gain", "shift"), call.args[1:], strict=True)
        names = {part: own.get(id(tensor)) for part, tensor in parts if tensor is not None}
        return None if None in names.values() else StandIn(call.kind, 0, raw, (), {**call.kwargs, **names})

    def _depends(self, value: Any) -> bool:
        return isinstance(value, Tensor) and id(value) in self._computed


def find_calls(net: nn.Module, args: tuple[Any, ...]) -> tuple[dict[str, Found], frozenset[str]]:
    """Return the calls of forwards that need a stand-in, by its name, and the modules whose products read constants.

    Functions that multiply tensors inside are spelled out in the network, and normalisations that forwards spell out
    become one call each; the calls in both are found by another run.

    Raises:
        ProbqError: if the network cannot run on the arguments.
    """
    unused: frozenset[str] | None = None
    while True:
        own = own_copy(args)
        finder = CallFinder(net, own, unused or frozenset())
        run_example(net, own, finder.watching())
        made: dict[str, StandIn] = dict(finder.explicit)
        if unused is None:  # normalisations that forwards spell out are looked for once
            norms, unused = finder.written.found()
            made |= {name: Written(norm) for name, norm in norms.items()}
        if not made:
            return finder.found, frozenset(name for name, depends in finder.products.items() if not depends)
        place_stand_ins(net, made)


def _size(x: Tensor) -> float:
    """Return the largest magnitude of a tensor, of what is finite in it."""
    return float(torch.where(x.isfinite(), x, 0).detach().abs().max())


def _product(call: Call) -> Product | None:
    """Return the product that two tensors which depend on the input need, each with the batch as its first axis."""
    x, y = call.args
    real = x.is_floating_point() and y.is_floating_point() and x.numel() and y.numel()
    axes = 1 if call.kind in ELEMENTWISE else 3  # a matrix has two of its own
    if call.kind not in PRODUCTS or not real or x.dim() != y.dim() or x.dim() < axes or len(x) != len(y):
        return None
    return Product(call.kind, x is y)
