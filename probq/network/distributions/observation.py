"""A likelihood's law gives the targets of a batch a log-probability for each example."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints

from probq.integer.ports.matching import matched
from probq.likelihoods import fits, hits
from probq.likelihoods.classes import observed
from probq.likelihoods.per_output import OutputLaws
from probq.utils.errors import ProbqError, sentence
from probq.utils.structures.targets import Targets


def as_targets(y: Any) -> Any:
    """Return targets as batches have them: a structure of tensors as `Targets`."""
    return y if y is None or isinstance(y, Tensor | Targets) else Targets(y)


class Observation(TorchDistribution):
    """An observation is a likelihood's law whose one batch axis is the examples; everything else is the event.

    That of several outputs is one of each, by name.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.real, 0)

    def __init__(self, law: Distribution) -> None:
        self.law, self._target = law, law.batch_shape + law.event_shape
        self.parts = {n: Observation(one) for n, one in law.laws.items()} if isinstance(law, OutputLaws) else None
        super().__init__(law.batch_shape[:1], self._target[1:], validate_args=False)

    def sites(self, value: Any) -> list[tuple[str, Observation, Any]]:
        """Return the sites of a program: for each, its name, law, and targets in the law's own shape, or None."""
        if self.parts is None:
            return [("obs", self, None if value is None else self.shaped(value))]
        if value is None:
            return [(name, part, None) for name, part in self.parts.items()]
        found = self._by_name(value)
        return [(name, part, _told(part.shaped, found[name], name)) for name, part in self.parts.items()]

    def _by_name(self, value: Any) -> dict[str, Tensor]:
        """Return the targets of each part.

        Raises:
            ProbqError: if they are not built like the likelihoods.
        """
        names = self.law.names  # type: ignore[attr-defined]
        return matched(names, value.of if isinstance(value, Targets) else value, "the targets")

    def shaped(self, value: Any) -> Any:
        """Return the targets in the law's own shape, which may have or lack axes of length 1.

        Raises:
            ProbqError: if they have another shape.
        """
        if self.parts is not None:
            return self._by_name(value)
        if not isinstance(value, Tensor):
            raise ProbqError(
                f"the targets are a {type(getattr(value, 'of', value)).__name__}, and the likelihood is of one tensor; "
                "give that, or probq.likelihoods.PerOutput(...) built like the targets"
            )
        if value.shape == self._target:
            return value
        if not fits(self._target, value.shape):
            raise ProbqError(
                f"targets of shape {tuple(value.shape)} do not fit outputs whose law has shape "
                f"{tuple(self._target)}; {_way_out(self.law, value)}"
            )
        return value.reshape(self._target)

    def log_prob(self, value: Any) -> Tensor:
        """Return the log-probability of each example's target, `[batch]`, of all outputs together.

        Raises:
            ProbqError: if the targets cannot come from the law, or it has no axis of examples.
        """
        if self.parts is not None:
            found = self._by_name(value)
            return torch.stack([_told(part.log_prob, found[name], name) for name, part in self.parts.items()]).sum(0)
        value = self.shaped(value)
        try:
            log_prob = self.law.log_prob(value)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:  # the law's own checks, or an index beyond its classes
            raise ProbqError(f"the data does not fit the likelihood: {_reason(self.law, value, error)}") from error
        if not log_prob.dim():
            raise ProbqError(
                "the network's outputs have no axis of examples where it runs on one example; let it keep the first "
                "axis, such as by squeeze(-1) in place of squeeze(), or leave out batches of one example"
            )
        return log_prob.reshape(log_prob.shape[0], -1).sum(-1)

    def hits(self, value: Any) -> tuple[int, int] | None:
        """Return how many targets are the law's most probable class, and how many are observed.

        The result is None where targets are no classes.
        """
        if self.parts is not None:
            given = self._by_name(value)
            found = [hit for name, part in self.parts.items() if (hit := part.hits(given[name])) is not None]
            return (sum(right for right, _ in found), sum(seen for _, seen in found)) if found else None
        return hits(self.law, self.shaped(value))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return drawn targets."""
        return self.law.sample(sample_shape)  # of several outputs by their names


def _told(function: Any, value: Tensor, name: str) -> Tensor:
    """Return what a function gives, with the name of an output in what is wrong with its targets."""
    try:
        result: Tensor = function(value)
    except ProbqError as error:
        raise ProbqError(f"{name.replace('obs.', 'output ')}: {error}") from error.__cause__
    return result


def _way_out(law: Distribution, value: Tensor) -> str:
    """Return what to do about targets that have not the shape of a law."""
    if not isinstance(law, Categorical):
        if value.is_floating_point() and value.numel() and (value == value.round()).all():
            return (
                "if they are classes, give whole numbers, y.long(); else change their shape or give another likelihood"
            )
        return "change the targets' shape or give another likelihood"
    if law.logits.dim() == value.dim():
        return (
            "give classes, e.g. y.argmax(axis) of one-hot targets; where each number is 0 or 1 by itself, real targets "
            "and likelihood=lambda output: torch.distributions.Bernoulli(logits=output)"
        )
    return (
        "targets have the outputs' shape without the axis of the classes: change their shape, or name that axis by "
        "likelihood=probq.likelihoods.Categorical(axis=...)"
    )


def _reason(law: Distribution, value: Tensor, error: Exception) -> str:
    """Return why a law cannot give targets."""
    if isinstance(law, Categorical) and value.numel():
        seen = observed(law, value)
        last, strange = law.logits.shape[-1] - 1, value[seen & ((value < 0) | (value >= law.logits.shape[-1]))]
        if len(strange):
            return (
                f"a target is {strange[0].item()}, but the outputs have classes 0 to {last}; change it, or leave it "
                "out by likelihood=probq.likelihoods.Categorical(axis=..., ignore_index=...)"
            )
    return sentence(error)
