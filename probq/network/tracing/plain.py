"""probq takes a network as a copy without wrappers, whose weights are plain parameters."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from probq.utils.errors import ProbqError

HALF = (torch.bfloat16, torch.float16)
ORIGINALS = ("_g", "_v", "_orig")  # how the names end of what the older utilities compute a tensor from


def plain_copy(net: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return a copy of a network without wrappers, whose weights are plain parameters, and notes on what was fused.

    `DataParallel`, `DistributedDataParallel` and `torch.compile` are taken off; weights that `weight_norm`,
    `spectral_norm`, a pruning mask or another parametrization computes become what they are in evaluation mode.

    What is of half precision becomes float32.

    Raises:
        ProbqError: if the network cannot be taken as it is.
    """
    check_kind(net)
    copied = _unwrapped(copy.deepcopy(net, _computed(net)))
    short = {str(tensor.dtype) for tensor in (*copied.parameters(), *copied.buffers()) if tensor.dtype in HALF}
    if short:
        copied._apply(in_single_precision)
    for module in copied.modules():
        module._compiled_call_impl = None
    training = [module for module in copied.modules() if module.training]
    copied.eval()  # spectral norms change whenever they are computed in training
    with torch.no_grad():
        fused = [f"{name}.{tensor}" for name, module in copied.named_modules() for tensor in _fuse(module)]
    for module in training:
        module.training = True
    halves = [f"its tensors of {' and '.join(sorted(short))} are float32 in the copy, which computes in it: posteriors "
              "cannot be fitted in less; give it inputs in float32"]  # fmt: skip
    return copied, halves * bool(short) + [
        f"{name.removeprefix('.')} was computed from other tensors (a parametrization, a normalised weight or a "
        "pruning mask); it is a plain parameter from here on, whose zeros "
        "Plan(keep_zeros=True, weight=probq.codebooks.ladder(2, 4, 8)) keeps"
        for name in fused
    ]


def in_single_precision(tensor: Tensor) -> Tensor:
    """Return a tensor itself, or in float32 where it is of half precision."""
    return tensor.float() if tensor.dtype in HALF else tensor


def check_kind(net: nn.Module) -> None:
    """Raise for networks whose layers or weights are out of reach, and say what to give instead."""
    if not isinstance(net, nn.Module):
        raise ProbqError(f"a network is a torch.nn.Module, not {type(net).__name__}")
    for name, module in net.named_modules():
        where = f"{name} ({type(module).__name__})" if name else f"the network ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise ProbqError(f"{where} is scripted or traced and hides its layers; give the network it was made from")
        if type(module).__module__.startswith("torch.ao.nn"):
            raise ProbqError(f"{where} is quantized by torch already; give the network in float")
        if hasattr(module, "quantizers") and hasattr(module, "weight_names"):
            raise ProbqError(f"{where} is quantized by probq already; give the network in float, or go on with this")
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ProbqError(f"{name} has no shape yet; call net(example) once, so that lazy modules know theirs")
        if tensor.is_meta:
            raise ProbqError(f"{name} is a meta tensor without values; load the network's weights first")


def _computed(net: nn.Module) -> dict[int, Any]:
    """Return copies of the tensors that modules hold and that have a history, which `deepcopy` refuses."""
    memo: dict[int, Any] = {}
    for module in net.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return memo


def _unwrapped(net: nn.Module) -> nn.Module:
    """Return the network with wrappers taken off everywhere."""
    while True:
        inner = vars(net)["_modules"].get("_orig_mod")  # of what torch.compile returns
        if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = net.module
        if inner is None:
            break
        net = inner
    for name, child in net._modules.items():
        if child is not None:
            net._modules[name] = _unwrapped(child)
    return net


def _fuse(module: nn.Module) -> list[str]:
    """Make the computed tensors of a module plain parameters, and return their names."""
    removers = ((WeightNorm, remove_weight_norm), (SpectralNorm, remove_spectral_norm))
    fused = []
    for hook in list(module._forward_pre_hooks.values()):
        name = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)
        remove: Any = next((remove for kind, remove in removers if isinstance(hook, kind)), None)
        if isinstance(hook, prune.BasePruningMethod):
            remove = prune.remove
        if remove is not None and isinstance(name, str):
            own = [p.requires_grad for end in ORIGINALS if (p := module._parameters.get(name + end)) is not None]
            remove(module, name)
            for key, left in list(module._load_state_dict_pre_hooks.items()):  # that torch leaves behind
                if isinstance(getattr(left, "hook", left), SpectralNormLoadStateDictPreHook):
                    del module._load_state_dict_pre_hooks[key]
            module.get_parameter(name).requires_grad_(any(own))
            fused.append(name)
    if parametrize.is_parametrized(module):
        fused += _fuse_parametrizations(module)
    return fused


def _fuse_parametrizations(module: Any) -> list[str]:
    """Do the same for `torch.nn.utils.parametrize`.

    Its own removal would change the class that the original shares.
    """
    found = {name: (getattr(module, name).detach().clone(), made) for name, made in module.parametrizations.items()}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, (value, made) in found.items():
        originals = list(made.parameters(recurse=False))
        if originals:
            module.register_parameter(name, nn.Parameter(value, any(p.requires_grad for p in originals)))
        else:
            module.register_buffer(name, value)
    return list(found)
