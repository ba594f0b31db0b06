"""A fit goes on only where the same call is made again: the same network, plan, data and options."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probq.decisions.widths import fixed_by_decision
from probq.network.quantized.fingerprint import fingerprint
from probq.network.quantized.network_state import network_state
from probq.network.quantized.quantized import Quantized
from probq.training.svi.learning_rates import check_optimizer
from probq.utils.batches import Batches
from probq.utils.errors import ProbqError
from probq.utils.random_states import generators, random_states, set_random_states

DEEPEST = 8
BESIDE = ("likelihood.", "originals.", "pairs")  # tensors that the options decide


def describe_network(q: Quantized) -> dict[str, Any]:
    """Return what decides how a fit of a network begins, a text for each name."""
    said = {f"the ladder of {name}": f"{p.ladder.bits} bits" for name, p in q.named_quantizers()}
    said |= {f"the quantizer of {name}": describe(vars_of(p)) for name, p in q.named_quantizers()}
    said["the ties of widths"] = describe(q.sites)
    said["the likelihood of the network"] = describe(q.likelihood)
    said |= {f"operation {k} of the network": text for k, text in enumerate(fingerprint(q.net, q.signature, q.form), 1)}
    for name, tensor in network_state(q)["tensors"].items():
        if not name.startswith(BESIDE):
            said[f"the starting value of {name}"] = describe(tensor)
    return said


def describe_call(
    data: Batches, validation: Batches | None, q: Quantized, options: Mapping[str, Any]
) -> dict[str, str]:
    """Return what decides a fit besides its network, a text for each name; random states stay what they are.

    Raises:
        ProbqError: if the data cannot be read again from where it was left.
    """
    sources = [each.source for each in (data, validation) if each is not None]
    if getattr(data.source, "persistent_workers", False):
        raise ProbqError(
            "workers that stay from one epoch to the next have random states of their own, which no checkpoint can "
            "hold; give the DataLoader persistent_workers=False"
        )
    states = random_states(*sources)
    try:
        return _describe_call(data, validation, q, options)
    finally:
        set_random_states(states, *sources)


def _describe_call(
    data: Batches, validation: Batches | None, q: Quantized, options: Mapping[str, Any]
) -> dict[str, str]:
    made = check_optimizer(options["optimizer"])
    said = {name: describe(value) for name, value in options.items()}
    said["the defaults of the optimizer"] = describe(made.defaults)
    if (teacher := options["teacher"]) is not None:
        net = getattr(teacher, "net", teacher)
        said["the teacher's tensors"] = describe(dict(net.state_dict()) if isinstance(net, torch.nn.Module) else None)
    said["the number of batches"], said["the number of examples"] = str(len(data)), str(data.size)
    said["the number of generators of the data"] = str(len(generators(data.source)))
    if validation is not None:
        said["the number of validation batches"] = str(len(validation))
        said["the number of validation examples"] = str(validation.size)
    said["whether widths are fixed"] = str(fixed_by_decision(q))
    return said


def check_same(folder: Any, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Raise at the first difference between the call that wrote checkpoints and the present one.

    Raises:
        ProbqError: with what differs, and how to go on.
    """
    name = next((name for name in (*here, *there) if there.get(name) != here.get(name)), None)
    if name is None:
        return
    was, now = _differing(there.get(name, "absent"), here.get(name, "absent"))
    hint = "; save and load the float network if the script trains it anew" if name.startswith("the starting") else ""
    raise ProbqError(
        f"{folder} holds checkpoints of another fit: {name} is {was} there and {now} here{hint}. Make the same call to "
        "go on with it, give another folder as checkpoint, or remove this one to begin anew"
    )


def describe(value: Any, deepest: int = DEEPEST) -> str:
    """Return a text that two values share only if a fit takes them for the same, in whatever process.

    Functions are told by name, tensors by their bytes, other objects by their attributes.

    Example:
        >>> describe({"rates": (0.1, torch.zeros(2))})
        '{rates: (0.1, float32 [2] af5570f5)}'
    """
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return str(value)
    if isinstance(value, Tensor | np.ndarray):
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        digest = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {digest[:8]}"
    if isinstance(value, functools.partial):
        return f"partial({', '.join(describe(v, deepest) for v in (value.func, value.args, value.keywords))})"
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, types.MethodType):
        return f"{describe(value.__self__, deepest)}.{value.__name__}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {describe(v, deepest - 1)}' for key, v in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(describe(v, deepest - 1) for v in value)})"
    name = type(value).__name__
    return f"{name}({describe(vars_of(value), deepest - 1)})" if deepest else name


def vars_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that make it what it is: for a module, all but what a fit moves."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    own = dict(getattr(value, "__dict__", {}))
    if isinstance(value, torch.nn.Module):
        return dict(_settings(own))
    return own


def _settings(own: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in own.items():
        if not name.startswith("_") and name != "training" and not isinstance(value, Tensor):
            yield name, value


def _differing(a: str, b: str, most: int = 60) -> tuple[str, str]:
    """Return two texts, cut to where they differ if they are long.

    Example:
        >>> _differing("Rates(0.1)", "Rates(0.2)")
        ('Rates(0.1)', 'Rates(0.2)')
        >>> _differing("a" * 99 + "b", "a" * 99 + "c")
        ('...aaaaaaaaaaaaaaaaaaaab', '...aaaaaaaaaaaaaaaaaaaac')
    """
    if max(len(a), len(b)) <= most:
        return a, b
    alike = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, alike - 20)
    shown = [text[start : start + most] + ("..." if len(text) > start + most else "") for text in (a, b)]
    before = "..." if start else ""
    return before + shown[0], before + shown[1]
