"""Calls of functions in a network's forward are counted here, module by module, and lead to the stand-ins of some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probq.network.explicit.functions import EXPLICIT
from probq.network.normalisers.kinds import read_normaliser
from probq.network.tracing.product_calls import LAYER_CALLS, LayerCall, Operand, Product, Quotient
from probq.network.tracing.stand_ins import ALONE, FUNCTIONS, Entered, Explicit, Shortened, StandIn, stand_ins

# What torch calls the functions of `ARITHMETIC`, and products of matrices.
OPERATORS = MappingProxyType(
    {
        **dict.fromkeys(("add", "add_", "__add__", "__radd__", "__iadd__"), "add"),
        **dict.fromkeys(("sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__"), "sub"),
        **dict.fromkeys(("rsub", "__rsub__"), "rsub"),
        **dict.fromkeys(("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"), "mul"),
        **dict.fromkeys(("matmul", "__matmul__", "bmm", "mm"), "matmul"),
        **dict.fromkeys(("div", "div_", "divide", "divide_", "true_divide", "true_divide_"), "div"),
        **dict.fromkeys(("__truediv__", "__itruediv__", "__div__", "__idiv__"), "div"),
    }
)
OTHER_NAMES = MappingProxyType({"__pow__": "pow", "log_sigmoid": "logsigmoid", "_threshold": "threshold"})


class Call(NamedTuple):
    """A call of a function that may have a stand-in.

    Attributes:
        kind: of `ARITHMETIC`, `FUNCTIONS`, `NORMALISERS`, `PRODUCTS`, `EXPLICIT`, `SHORTENED`, `ALONE`, `LAYER_CALLS`.
        args: its arguments; tensors alone where it normalises.
        kwargs: those by name, without `inplace`.
        in_place: whether it changes its first argument.
    """

    kind: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    in_place: bool


def read_call(func: Any, args: Any, kwargs: Any) -> Call | None:
    """Return a call, or None where the function is none that can have a stand-in."""
    name = str(getattr(func, "__name__", ""))
    kind = OPERATORS.get(name)
    if (normaliser := read_normaliser(name, args, kwargs)) is not None:
        return Call(normaliser.kind, normaliser.tensors, normaliser.options, False)
    if (layer := read_layer(name, args, kwargs)) is not None:
        return Call(name, *layer, False)
    if name in EXPLICIT:
        return Call(name, tuple(args), kwargs, False)
    if name == "batch_norm":
        order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = dict(zip(order, args, strict=False)) | kwargs
        statistics = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5} | given
        return Call(name, tuple(statistics[key] for key in order), {}, False) if len(args) <= len(order) else None
    if (shortened := read_shortened(name, args, kwargs)) is not None:
        return Call(*shortened, {}, name.endswith("_") or bool(kwargs.get("inplace")))
    if name in ALONE and args:
        return Call(name, tuple(args), kwargs, False)
    if kind is None:
        kind = OTHER_NAMES.get(name, name.removesuffix("_"))
        if kind not in FUNCTIONS or not args:
            return None
        named = {key: value for key, value in kwargs.items() if key != "inplace"}
        in_place = name.endswith("_") and not name.endswith("__")
        return Call(kind, tuple(args), named, in_place or bool(kwargs.get("inplace")))
    if len(args) != 2 or kwargs:
        return None
    return Call(kind, tuple(args), {}, name.startswith("__i") or (name.endswith("_") and name[0] != "_"))


@dataclass
class Frame:
    """A frame is one call of a module, with the number of calls of each kind that its forward has made."""

    name: str
    module: nn.Module
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, kind: str) -> str:
        """Return the name, within the module, of the next call of a kind."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return f"{kind}()" if self.counts[kind] == 1 else f"{kind}(){self.counts[kind]}"


class Calls(TorchFunctionMode):
    """This mode sees the functions that the forwards of a network's modules call, and those of no hook in `hidden`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.frames, self.paused = net, list[Frame](), 0

    def called(self, frame: Frame, name: str, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what a call gives that the frame's module knows by a name."""
        raise NotImplementedError

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what any other call gives."""
        return func(*args, **kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        call = read_call(func, args, kwargs) if self.frames else None
        if call is None:
            out = self.other(func, args, kwargs)
            self.seen("", func, args, kwargs, out)
            return out
        frame = self.frames[-1]
        name = frame.count(call.kind)
        out = self.called(frame, name, call, func, args, kwargs)
        self.seen(f"{frame.name}.{name}".removeprefix("."), func, args, kwargs, out)
        return out

    def seen(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note what any call gave, by the name of the call if it has one."""

    def entered(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Return what a module gives that this mode calls in the place of a function, and sees the calls of."""
        with self:  # torch takes a mode off for what it calls itself
            return module(*args, **kwargs)

    def hidden(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of probq's own whose calls are not those of the network."""

        def quiet(*args: Any) -> Any:
            self.paused += 1
            try:
                return function(*args)
            finally:
                self.paused -= 1

        return quiet

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the network's modules as they are entered and left, within the context."""
        handles = []
        for name, module in self.net.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        return lambda module, args: self.frames.append(Frame(name, module))

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:
        self.frames.pop()


class Router(Calls):
    """A router calls stand-ins in the place of functions."""

    def called(self, frame: Frame, name: str, call: Call, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what the stand-in gives, if there is one."""
        stand_in = frame.module._modules.get(name)
        if isinstance(stand_in, Explicit):
            return self.entered(stand_in, args, kwargs)
        if isinstance(stand_in, Entered) and (stand_in.joins or stand_in.kind in ALONE):
            x, *rest = call.args
            return stand_in(x[stand_in.operand], x, *rest) if stand_in.joins else stand_in(x, *rest, **call.kwargs)
        if isinstance(stand_in, Shortened):
            y = stand_in(*call.args)
            return args[0].copy_(y) if call.in_place else y
        if not isinstance(stand_in, StandIn) or not isinstance(call.args[stand_in.operand], Tensor):
            return func(*args, **kwargs)
        x = call.args[stand_in.operand]
        others = _others(stand_in, call)
        if isinstance(stand_in, Product | Quotient) and not stand_in.takes(x, *others):
            return func(*args, **kwargs)
        y = stand_in(x.clone() if call.in_place else x, *others)
        return x.copy_(y) if call.in_place else y


def _others(stand_in: StandIn, call: Call) -> tuple[Any, ...]:
    """Return what a stand-in computes with besides its tensor."""
    if stand_in.tabulated:
        return ()
    every = stand_in.normalises or isinstance(stand_in, LayerCall) or stand_in.kind == "batch_norm"
    return call.args[1:] if every else (call.args[1 - stand_in.operand],)


def routed(net: nn.Module) -> Any:
    """Return a context that gives the router of a network within which stand-ins are called, None if it has none."""
    return _routed(net) if next(stand_ins(net), None) is not None else nullcontext()


@contextmanager
def _routed(net: nn.Module) -> Iterator[Router]:
    router = Router(net)
    with router.watching():
        yield router


def read_layer(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Return input, weight and bias of a call with a weight, and its options; None where a function is no such."""
    if name not in LAYER_CALLS:
        return None
    if name == "embedding":
        plain = len(args) < 4 and not kwargs.get(
            "max_norm"
        )  # the row of padding_idx is another one's in training alone
        return ((*args[:2], None), {}) if plain and len(args) > 1 else None
    order = ("input", "weight", "bias", *LAYER_CALLS[name][1])
    given = dict(zip(order, args, strict=False)) | dict(kwargs)
    tensors = tuple(given.pop(part, None) for part in order[:3])
    return tensors, {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}


_LIMITS = MappingProxyType({"clamp": ("min", "max"), "clamp_min": ("min",), "clamp_max": ("max",)})


def read_shortened(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]] | None:
    """Return kind and arguments, by position, of a call that is exact where its constants are short, or None."""
    name = {"concat": "cat", "concatenate": "cat", "hardtanh_": "hardtanh"}.get(name, name)
    plain = name.removesuffix("_").replace("clip", "clamp")
    named = dict(kwargs)
    if name in ("cat", "stack"):
        given = (*args, *(named.pop(key) for key in ("tensors", "dim", "axis") if key in named))
        return None if named or not isinstance(given[0], tuple | list) else (name, given)
    if plain in _LIMITS:
        for key, value in zip(_LIMITS[plain], args[1:], strict=False):
            named.setdefault(key, value)
        limits = named.pop("min", None), named.pop("max", None)
        return ("clamp", (args[0], *limits)) if args and not named else None
    if name == "hardtanh":
        given = (*args, *(named[key] for key in ("min_val", "max_val") if key in named))[:3]
        return "clamp", (*given, *(-1.0, 1.0)[len(given) - 1 :])
    if name == "pad":
        order = ("input", "pad", "mode", "value")
        named |= dict(zip(order, args, strict=False))
        return name, tuple(
            named.get(key, default) for key, default in zip(order, (None, (), "constant", None), strict=True)
        )
    two = len(args) == 2 and not named and all(isinstance(a, Tensor) for a in args)
    kind = {"max": "maximum", "fmax": "maximum", "min": "minimum", "fmin": "minimum"}.get(name, name)
    return (kind, args) if two and kind in ("maximum", "minimum") else None


def first_operands(net: nn.Module) -> Iterator[str]:
    """Yield the names of the quantizers of those operands that are the network's own input."""
    yield from (f"{name}.input" for name, module in net.named_modules() if isinstance(module, Operand) and module.first)
