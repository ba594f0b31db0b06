"""A network and data are made ready for a criterion."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

from probq.criteria.measuring.perturbed import Batch, PerturbedNetwork
from probq.criteria.measuring.quantizers_of import quantizers_of
from probq.network.program.program import check_posterior
from probq.network.quantized.quantized import Quantized
from probq.priors.energies.energy import Energy
from probq.training.ptq.input_scales import set_input_scales
from probq.utils.arguments import check_number
from probq.utils.batches import Batches, first_examples, with_targets
from probq.utils.errors import ProbqError

NOISE = 1e-6  # nats; what float32 leaves of equal losses


def perturbed_network(
    q: Quantized, batches: Iterable[Any], examples: int, criterion: str, labels: bool, of: str = "both"
) -> PerturbedNetwork:
    """Return the network to measure, with scales set from the data if they were not.

    Args:
        q: from `quantize`.
        batches: of (input, target), or of inputs where no labels are needed.
        examples: greatest number of examples.
        criterion: its name, for messages.
        labels: whether targets are needed.
        of: "weights", "inputs" or "both", the quantizers that are perturbed.

    Raises:
        ProbqError: if there is no data, no such quantizer has a choice, or targets are needed and absent.
    """
    data = checked_examples(q, batches, examples, criterion, labels, of)
    return PerturbedNetwork(with_scales(q, data), data, of)


def checked_examples(
    q: Quantized, batches: Iterable[Any], examples: int, criterion: str, labels: bool, of: str
) -> list[Batch]:
    """Return the first examples of the data, once all that a criterion was given is checked.

    Args:
        q: as in `perturbed_network`, like all others.
        batches: the data.
        examples: greatest number of examples.
        criterion: its name, for messages.
        labels: whether targets are needed.
        of: "weights", "inputs" or "both".

    Raises:
        ProbqError: as `perturbed_network`.
    """
    check_posterior(q, criterion)
    quantizers_of(q, of)
    check_number("examples", examples, 1)
    data = first_examples(batches, examples, q.device, f"criteria.{criterion}")
    if labels and any(y is None for _, y in data):
        raise ProbqError(
            f"criteria.{criterion} needs labels: batches of (input, target); without any, use probq.criteria.kl"
        )
    return data


def with_scales(q: Quantized, data: Iterable[Batch]) -> Quantized:
    """Return a copy of a network with scales, set from the data if they were not."""
    own = copy.deepcopy(q)
    if not own.calibrated:
        several = list(data)
        set_input_scales(
            own, Batches(with_targets(several), own.device), targets=all(y is not None for _, y in several)
        )
    return own


def tell_negative(energy: Energy) -> Energy:
    """Warn where a narrower rung was found better than the widest one; the energy itself stays as measured."""
    least = min(float(row.min()) for row in energy.unary)
    if least < -NOISE:
        warnings.warn(
            f"{energy.negative} of {len(energy) - len(energy.names)} energies of {energy.label} are negative, the "
            f"least {least:.3g}: those narrower widths did better on these examples than the widest ones; more "
            "examples make that rarer",
            UserWarning,
            stacklevel=3,
        )
    return energy
