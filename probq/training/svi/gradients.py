"""Gradients of a step are checked here to be those of the network that was run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from probq.utils.errors import ProbqError, sentence

RECOMPUTED = (
    "the network computes activations a second time in the backward pass (torch.utils.checkpoint), when its layers are "
    "no longer quantized; switch that off for the fit, e.g. by model.gradient_checkpointing_disable()"
)


def check_graph_kept(loss: Tensor) -> None:
    """Raise where a part of the network would be run again in the backward pass, outside of probq, without a word.

    Args:
        loss: a scalar with its graph.

    Raises:
        ProbqError: if a reentrant `torch.utils.checkpoint` stands in the graph.
    """
    stack: list[Any] = [loss.grad_fn]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if type(node).__name__ == "CheckpointFunctionBackward":
            raise ProbqError(RECOMPUTED)
        seen.add(node)
        stack.extend(before for before, _ in node.next_functions)


@contextmanager
def explain_gradients() -> Iterator[None]:
    """Compute gradients within, and tell what torch raises in a sentence; lack of memory stays what it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except torch.utils.checkpoint.CheckpointError as error:
        raise ProbqError(RECOMPUTED) from error
    except RuntimeError as error:
        why = sentence(error).partition(" Hint:")[0]
        raise ProbqError(
            f"the gradients of a step cannot be computed: {why:.200}. If the network itself does not train either, "
            "mend that first; inplace=True is the usual reason"
        ) from error
