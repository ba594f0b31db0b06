"""The arguments that networks and their modules are called with."""

from __future__ import annotations

from typing import Any


def arguments(example: Any) -> tuple[Any, ...]:
    """The positional arguments that an example stands for: itself, or its members if it is a tuple or a list."""
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def hook_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The input tensor of a module called with `args` and `kwargs`."""
    return args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
