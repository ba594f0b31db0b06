"""A quantized network is called with what is built like the example that it was quantized with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from probq.integer.ports.matching import matched
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import Keywords, map_tensors


@contextmanager
def called_alike(form: tuple[Any, ...], args: tuple[Any, ...]) -> Iterator[None]:
    """Run the network within the context, and where it raises tell in what its arguments differ from the example's.

    Args:
        form: the example's arguments.
        args: those given.

    Raises:
        ProbqError: if they are built otherwise; what the network raises besides stays what it is.
    """
    try:
        yield
    except ProbqError:
        raise
    except Exception as error:
        check_alike(form, args, error)
        raise


def check_alike(form: tuple[Any, ...], args: tuple[Any, ...], cause: Exception | None = None) -> None:
    """Raise if arguments are built otherwise than those of the example.

    Raises:
        ProbqError: with the first difference.
    """
    try:
        matched(map_tensors(lambda _: "tensor", _whole(form)), _whole(args), "what the network is called with")
    except ProbqError as error:
        raise error from cause


def _whole(args: tuple[Any, ...]) -> Any:
    """Return arguments as a user gives them: one alone, or a dictionary of those by keyword."""
    return args[0] if len(args) == 1 and isinstance(args[0], Tensor | Keywords) else args
