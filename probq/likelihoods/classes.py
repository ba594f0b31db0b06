"""Targets are classes under these likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, OneHotCategorical
from torch.distributions import Categorical as CategoricalLaw

from probq.likelihoods.network_likelihood import NetworkLikelihood
from probq.utils.errors import ProbqError

IGNORED = -100  # the target that `torch.nn.functional.cross_entropy` leaves out


class Classes(CategoricalLaw):
    """In this categorical law some targets are not observed, and classes may count differently.

    `log_prob(y) = weight[y] * log softmax(logits)[y]`, and 0 where `y` is ignored; with smoothing it is mixed with the
    mean of that over all classes.

    Args:
        logits: the logits of the classes, `[..., classes]`.
        weight: factor of each class `[classes]`, or None.
        ignore_index: the target that is not observed.
        smoothing: share of the mean over all classes, 0 to 1.
    """

    def __init__(
        self, logits: Tensor, weight: Tensor | None = None, ignore_index: int = IGNORED, smoothing: float = 0.0
    ) -> None:
        self.weight, self.ignore_index, self.smoothing = weight, ignore_index, smoothing
        super().__init__(logits=logits)

    def observed(self, value: Tensor) -> Tensor:
        """Return which targets are not ignored."""
        return value.long() != self.ignore_index  # unsigned bytes would take -100 for 156

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of every target in nats."""
        if value.is_floating_point() and (value != value.round()).any():
            raise ValueError("classes are whole numbers, and some targets are not")
        ignored = ~self.observed(value)
        value = value.long().masked_fill(ignored, 0)
        log_prob = super().log_prob(value)
        if self.weight is not None:
            log_prob = log_prob * self.weight[value]
        if self.smoothing:
            every = self.logits if self.weight is None else self.logits * self.weight
            log_prob = torch.lerp(log_prob, every.mean(-1), self.smoothing)
        return log_prob.masked_fill(ignored, 0.0)


def categorical(output: Tensor) -> Distribution:
    """Return the law `target ~ Categorical(softmax(output))`, classes on the last axis.

    It is in float32 where autocast gave less.

    A target of -100 is not observed, as in `torch.nn.functional.cross_entropy`. `Categorical` has the other options.
    """
    return Classes(_precise(output))


class Categorical(NetworkLikelihood, nn.Module):
    """This likelihood is `target ~ Categorical(softmax(output))`, classes on any axis, with options of `cross_entropy`.

    The log-probability of a target `y` is `weight[y] * log softmax(output)[y]`, so that a sum over targets is minus
    `torch.nn.functional.cross_entropy(output, y, weight, ignore_index=..., reduction="sum")`. Weights of mean 1 over
    the targets leave the balance of data and prior as it is.

    With `smoothing` it is `(1 - s) weight[y] log p[y] + s mean_k weight[k] log p[k]`, `p = softmax(output)`, in
    training mode alone: losses on held-out data stay those of the targets. This is the mean of the log-probability over
    targets that are drawn anew from all classes with probability `s`, so that the bound of a fit is the one of such
    data.

    Args:
        axis: of the output that runs over classes; 1 for `[N, C, H, W]` or `[N, C, T]`, -1 for `[N, T, C]`. None: the
            last one of outputs `[N, C]`; others need it said.
        weight: factor of each class `[classes]`, positive or 0.
        ignore_index: target that is not observed; neither loss nor accuracy count it.
        smoothing: share `s` of all classes in each target, 0 or more and below 1; 0.1 is usual.

    Raises:
        ProbqError: if the weights are not numbers of 0 or more, or the smoothing is no share.

    Source of the smoothing: C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, 2016, "Rethinking the Inception
    Architecture for Computer Vision".

    Example:
        >>> law = Categorical(axis=1, ignore_index=255)(torch.zeros(2, 3, 4))
        >>> law.log_prob(torch.tensor([[0, 1, 2, 255]] * 2)).sum(1)
        tensor([-3.2958, -3.2958])
    """

    weight: Tensor | None

    def __init__(
        self,
        axis: int | None = None,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int = IGNORED,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if axis is not None and (type(axis) is not int or axis == 0):
            raise ProbqError(f"axis is that of the classes, such as 1 or -1 (axis 0 runs over examples), not {axis!r}")
        if type(ignore_index) is not int:
            raise ProbqError(f"ignore_index is the integer that marks a target to leave out, not {ignore_index!r}")
        if isinstance(smoothing, bool) or not isinstance(smoothing, int | float) or not 0 <= smoothing < 1:
            raise ProbqError(f"smoothing is the share of all classes in a target, 0 to below 1, not {smoothing!r}")
        self.axis, self.ignore_index, self.smoothing = axis, ignore_index, float(smoothing)
        self.register_buffer("weight", None if weight is None else _weight(weight))

    def forward(self, output: Tensor) -> Distribution:
        """Return the law of the target given the output."""
        if self.axis is None and output.dim() > 2:
            raise ProbqError(
                f"the outputs have shape {tuple(output.shape)}: say which axis runs over classes, by "
                "probq.likelihoods.Categorical(axis=1, ...) or (axis=-1, ...)"
            )
        axis = -1 if self.axis is None else self.axis
        if not -output.dim() < axis < output.dim():
            raise ProbqError(
                f"the classes are on axis {self.axis} of the output, which has shape {tuple(output.shape)}; give "
                "Categorical(axis=...) another one"
            )
        logits = _precise(output).movedim(axis, -1)
        if self.weight is not None and len(self.weight) != logits.shape[-1]:
            raise ProbqError(
                f"Categorical(weight=...) has {len(self.weight)} numbers for outputs of {logits.shape[-1]} classes; "
                "give one for each class"
            )
        return Classes(logits, self.weight, self.ignore_index, self.smoothing if self.training else 0.0)

    def extra_repr(self) -> str:
        """Return the options."""
        smoothing = f", smoothing={self.smoothing}" if self.smoothing else ""
        return f"axis={self.axis}, weight={self.weight}, ignore_index={self.ignore_index}{smoothing}"

    def metadata(self) -> dict[str, Any]:
        """Return the axis of the classes."""
        return {"class axis": self.axis}

    def identity(self) -> Any:
        """Return all options, for none is learned."""
        weight = None if self.weight is None else self.weight.tolist()
        return Categorical, self.axis, self.ignore_index, weight, self.smoothing

    def to_entry(self) -> dict[str, Any]:
        """Return the options; weights are a tensor of the state."""
        entry = {"kind": "categorical", "axis": self.axis, "ignore_index": self.ignore_index}
        return entry | ({"smoothing": self.smoothing} if self.smoothing else {})


def _weight(weight: Any) -> Tensor:
    try:
        found = torch.as_tensor(weight).detach().to(torch.get_default_dtype(), copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProbqError(f"weight is a factor for each class, a list of numbers, not {weight!r:.80}") from error
    if found.dim() != 1 or not len(found) or not (found.isfinite() & (found >= 0)).all() or not found.any():
        raise ProbqError(f"weight is a factor of 0 or more for each class, not all of them 0; not {weight!r:.80}")
    return found


def _precise(output: Tensor) -> Tensor:
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def observed(law: Distribution, value: Tensor) -> Tensor:
    """Return which targets a law counts, bool of the targets' shape."""
    return law.observed(value) if isinstance(law, Classes) else torch.ones_like(value, dtype=torch.bool)


def hits(law: Distribution, value: Tensor) -> tuple[int, int] | None:
    """Return how many observed targets are the law's most probable class, and how many are observed.

    The result is None where targets are no classes.
    """
    while isinstance(law, Independent):
        law = law.base_dist
    if isinstance(law, Bernoulli):
        return int(((law.logits > 0) == value.bool()).sum()), value.numel()
    if not isinstance(law, CategoricalLaw | OneHotCategorical):
        return None
    value = value.argmax(-1) if isinstance(law, OneHotCategorical) else value.long()
    right = law.logits.argmax(-1) == value
    seen = observed(law, value)
    return int((right & seen).sum()), int(seen.sum())
