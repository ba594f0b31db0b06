"""Only this module touches user code: it calls a network with other weights and other inputs of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probq.network.tracing.arguments import hook_input
from probq.network.tracing.module_kinds import NORMS
from probq.network.tracing.routing import routed
from probq.utils.errors import ProbqError, sentence
from probq.utils.random_stream import exclusive
from probq.utils.structures.tensors import arguments, call, described, map_tensors, tensors_in

Functions = Mapping[str, Callable[[Tensor], Tensor]]

NOTHING: Functions = MappingProxyType({})
NO_NOISE: Mapping[str, Callable[[Any, Tensor], Tensor]] = MappingProxyType({})


def substitute(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Functions,
    outputs: Functions,
    *args: Any,
    results: Functions = NOTHING,
    noise: Mapping[str, Callable[[Any, Tensor], Tensor]] | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Call a network with other weights and with functions applied to its layers' inputs.

    Args:
        net: the network; parameters, buffers and hooks are as before afterwards.
        tensors: replacements of parameters and buffers by name. What has several names is replaced under all of them,
            unless another one names its own replacement (a bias that two layers share is rounded for each).
        inputs: for each module name, a function of its input.
        outputs: for the name of each batch normalisation, a function that replaces it; what else a subclass computes,
            such as an activation, stays.
        args: the network's arguments, those by keyword last, as `Keywords`.
        results: for each module name, a function of its output.
        noise: for each module name, a function of the module and its input that gives what is added to its output.
        dtype: the dtype of all floating-point numbers, arguments included; None leaves them as they are.
    """
    with exclusive(), hooked(net, inputs, outputs, results, noise or {}):
        # a network may work in place on what it is given, which is the user's and is given again
        args = map_tensors(lambda a: _converted(a, dtype).clone(), args)
        with _standing_in(net, tensors, dtype):
            return call(net, args)


@contextmanager
def hooked(
    net: nn.Module,
    inputs: Functions,
    outputs: Functions,
    results: Functions = NOTHING,
    noise: Mapping[str, Callable[[Any, Tensor], Tensor]] = NO_NOISE,
) -> Iterator[None]:
    """Make the network's modules apply the functions that `substitute` takes, within the context."""
    handles = []
    with routed(net) as router:
        own = router.hidden if router else _same
        try:
            for name, function in inputs.items():
                hook = own(_input_hook(function))
                handles.append(net.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
            for name, addition in noise.items():
                hook = own(_noise_hook(addition))
                handles.append(net.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
            for name, function in outputs.items():
                hook = own(_output_hook(function))
                handles.append(net.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
            for name, function in results.items():
                handles.append(net.get_submodule(name).register_forward_hook(own(_result_hook(function))))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _same(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@contextmanager
def running(x: Any) -> Iterator[None]:
    """Run the network on a batch of the user's data within the context, and tell its errors together with the shapes.

    Args:
        x: a batch of inputs, or a tuple of the network's arguments.

    Raises:
        ProbqError: if the network raised; the cause is kept. A lack of memory stays what it is.
    """
    try:
        yield
    except (ProbqError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shapes = described(arguments(x))
        single = any(a.shape[:1] == (1,) for a in tensors_in(arguments(x)))
        hint = "; leave out a batch of one example, e.g. by DataLoader(..., drop_last=True)" if single else ""
        raise ProbqError(f"the network cannot run on a batch of shapes {shapes}: {sentence(error)}{hint}") from error


@contextmanager
def _standing_in(net: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[None]:
    """Put other tensors in the places of parameters and buffers within the context; a shared module is one place.

    `torch.func.functional_call` does so too, and looks up every name on its way: a tenth of a small network's step.
    """
    places: list[tuple[str, dict[str, Any], str]] = []
    for prefix, module in net.named_modules():
        for held in (module._parameters, module._buffers):
            places += [(f"{prefix}.{key}" if prefix else key, held, key) for key, t in held.items() if t is not None]
    own = {name: held[key] for name, held, key in places}
    shared = {id(own[name]): tensor for name, tensor in reversed(list(tensors.items())) if name in own}
    try:
        for name, held, key in places:
            tensor = own[name]
            new = tensors.get(name, shared.get(id(tensor), tensor.detach() if dtype else tensor))
            if new is not tensor:
                held[key] = _converted(new, dtype)
        yield
    finally:
        for name, held, key in places:
            if name in tensors or dtype or id(own[name]) in shared:
                held[key] = own[name]


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _input_hook(function: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (function(args[0]), *args[1:]), kwargs
        key = "input" if "input" in kwargs else next(iter(kwargs))
        return args, {**kwargs, key: function(kwargs[key])}

    return hook


def _output_hook(function: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not isinstance(module, NORMS) or getattr(module.forward, "__func__", None) is NORMS[0].forward:
            return function(hook_input(args, kwargs))
        with _InsteadOfNorm(function):
            return module.forward(*args, **kwargs)

    return hook


class _InsteadOfNorm(TorchFunctionMode):
    """A function stands in for batch normalisation within this context, in a module that computes more than that."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return self.function(hook_input(args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _result_hook(function: Callable[[Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return function(output)

    return hook


def _noise_hook(addition: Callable[[Any, Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return output + addition(module, hook_input(args, kwargs))

    return hook
