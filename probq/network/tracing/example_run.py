"""A network is run on its example here, in evaluation mode and with gradients, and left as it was."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import call, described


def run_example(net: nn.Module, args: tuple[Any, ...], *contexts: Any) -> None:
    """Run a network once, all of its parameters trainable.

    Args:
        net: the network.
        args: its arguments.
        contexts: context managers within which it runs, the outermost first.

    Raises:
        ProbqError: if it cannot run on them.
    """
    training = [m for m in net.modules() if m.training]
    trainable = [(p, p.requires_grad) for p in net.parameters() if p.is_floating_point()]
    net.eval()
    for parameter, _ in trainable:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            call(net, args)
    except ProbqError:
        raise
    except Exception as error:
        hint = (
            "; several inputs are one tuple, or a dictionary by keyword, also in batches: ((a, b), target)"
            if isinstance(error, TypeError)
            else ""
        )
        raise ProbqError(f"the network cannot run on the example (shapes {described(args)}): {error}{hint}") from error
    finally:
        for module in training:
            module.training = True
        for parameter, wanted in trainable:
            parameter.requires_grad_(wanted)
