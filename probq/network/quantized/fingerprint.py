"""A fingerprint says what a network computes: its operations in order, with options and constants but no weights."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probq.network.tracing.arguments import shapes_of_batch
from probq.utils.random_stream import Stream
from probq.utils.structures.tensors import call, tensors_in, with_tensors

BATCH = 2
LONGEST = 300  # characters of an operation that are kept as they are
IDLE = frozenset({"inplace", "momentum", "generator"})  # no matter in evaluation mode
DROPOUTS = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"})


def fingerprint(
    net: nn.Module, signature: Sequence[tuple[tuple[int, ...], torch.dtype]], form: tuple[Any, ...] | None = None
) -> list[str]:
    """Return the operations that a network in evaluation mode calls, a line each; `#3` is the result of the third.

    Two networks with equal lines and equal tensors give equal outputs. A network that cannot run on tensors of this
    signature alone is described by its modules instead.

    Args:
        net: the network; it is left untouched.
        signature: shape without the batch, and type, of the tensors among its arguments.
        form: the arguments as `form_of` gives them; by default tensors alone.
    """
    copied = copy.deepcopy(net).eval()
    like = next((p for p in copied.parameters() if p.is_floating_point()), torch.empty(0))
    args = [
        torch.ones(shape, dtype=like.dtype, device=like.device)
        if dtype.is_floating_point
        else torch.zeros(shape, dtype=dtype, device=like.device)
        for shape, dtype in shapes_of_batch(signature, form, BATCH)
    ]
    recorder = _CallRecorder(copied, args)
    try:
        with Stream(0).drawing(), torch.no_grad(), recorder:
            given = tuple(args if form is None else with_tensors(form, args))
            recorder.lines.append(f"return {recorder.text(call(copied, given))}")
    except Exception:
        return [f"{name or 'network'}: {type(m).__name__}({m.extra_repr()})" for name, m in net.named_modules()]
    return recorder.lines


class _CallRecorder(TorchFunctionMode):
    """This mode writes down every call of a torch function that gives or changes a tensor."""

    def __init__(self, net: nn.Module, args: Sequence[Tensor]) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._kept: list[Any] = [net, args]  # alive, so that no other object gets their identity
        stored = net.state_dict(keep_vars=True)
        self._labels = {id(tensor): name for name, tensor in reversed(stored.items())}
        self._labels |= {id(tensor): f"input {place}" for place, tensor in enumerate(args, 1)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, given = _name(func), _arguments(func, args, kwargs)
        idle = name in DROPOUTS and not given.get("training", True)
        texts = [] if idle else [self.text(value) for key, value in given.items() if key not in IDLE]
        out = func(*args, **kwargs)
        if idle:
            self._labels[id(out)] = self.text(args[0])
            self._kept.append(out)
        elif next(tensors_in(out), None) is not None or name == "__setitem__":
            line = f"{name}({', '.join(texts)})"
            digest = hashlib.sha256(line.encode()).hexdigest()[:16]
            self.lines.append(line if len(line) <= LONGEST else f"{line[:LONGEST]}... {digest}")
            self._made(args[0] if name == "__setitem__" else out)
        return out

    def _made(self, out: Any) -> None:
        made = list(tensors_in(out))
        for place, tensor in enumerate(made):
            self._labels[id(tensor)] = f"#{len(self.lines)}" + (f".{place}" if len(made) > 1 else "")
        self._kept.append(out)

    def text(self, value: Any) -> str:
        """Return a value as it stands in a line."""
        if isinstance(value, Tensor):
            return self._labels.get(id(value)) or _constant(value)
        if isinstance(value, tuple | list):
            return f"[{', '.join(map(self.text, value))}]"
        if isinstance(value, Mapping):
            return f"[{', '.join(f'{key}={self.text(one)}' for key, one in value.items())}]"
        if isinstance(value, slice):
            return f"{self.text(value.start)}:{self.text(value.stop)}:{self.text(value.step)}"
        if isinstance(value, torch.device):
            return "device"
        plain = isinstance(value, bool | int | float | complex | str | torch.dtype | None)
        return str(value) if plain else type(value).__name__


def _name(func: Any) -> str:
    """Return a function's name, the same for one in place and its twin, for a method and its function."""
    name = str(getattr(func, "__name__", type(func).__name__))
    if name == "__get__":
        return str(getattr(func.__self__, "__name__", name))
    return name if name.startswith("__") else name.removesuffix("_")


def _arguments(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments by name where the function tells them, defaults included."""
    try:
        bound = inspect.signature(func).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    bound.apply_defaults()
    return dict(bound.arguments)


def _constant(tensor: Tensor) -> str:
    """Return the type, shape and contents of a tensor that is neither stored nor computed."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind}{list(tensor.shape)} {hashlib.sha256(data).hexdigest()[:16]}"
