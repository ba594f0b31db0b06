"""Targets suggest a likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probq.likelihoods.classes import Categorical, categorical
from probq.likelihoods.network_likelihood import Likelihood, as_network_likelihood
from probq.likelihoods.normal import Normal
from probq.likelihoods.per_output import PerOutput, by_output
from probq.utils.errors import ProbqError
from probq.utils.structures.walk import Structure, map_leaves, named_leaves


def for_target(target: Tensor, output: Any = None) -> Likelihood:
    """Return the usual likelihood of a target: categorical for integers, normal with learned noise for real numbers.

    Args:
        target: the target of a batch.
        output: of the network for it. Where the shapes allow classes on axis 1 alone, as `cross_entropy` has them, they
            are there, otherwise on the last axis.

    Raises:
        ProbqError: if both would do.
    """
    if target.is_floating_point():
        return Normal()
    if not isinstance(output, Tensor) or output.dim() < 3:
        return categorical
    found = [axis for axis in (1, -1) if fits(_without(output, axis), target.shape)]
    if len(found) == 2:
        raise ProbqError(
            f"the classes of outputs of shape {tuple(output.shape)} for targets of shape {tuple(target.shape)} may be "
            "on axis 1 or on the last one; say which by likelihood=probq.likelihoods.Categorical(axis=1) or (axis=-1)"
        )
    return Categorical(axis=1) if found == [1] else categorical


def for_targets(targets: Structure, output: Any) -> Likelihood:
    """Return the usual likelihood of each target, for those of several outputs.

    Args:
        targets: tensors in a tuple, list or dictionary, None where an output has none.
        output: of the network for them, built alike.

    Raises:
        ProbqError: if it is not, or two would do for one of them.
    """
    left = iter([None if target is None else name for name, target in named_leaves(targets, "obs")])
    names = map_leaves(lambda _: next(left), targets)
    given = by_output(names, output)
    return PerOutput(map_leaves(lambda y, name: None if y is None else for_target(y, given[name]), targets, names))


def _without(output: Tensor, axis: int) -> torch.Size:
    kept = list(output.shape)
    del kept[axis]
    return torch.Size(kept)


def is_usual(likelihood: Likelihood) -> bool:
    """Return whether a likelihood is one of those here that take a tensor."""
    return likelihood is categorical or as_network_likelihood(likelihood).takes_one


def fits(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Return whether targets have the shape of a law, up to axes of length 1."""
    return [n for n in shape if n != 1] == [n for n in target if n != 1]
