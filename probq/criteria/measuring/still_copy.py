"""A copy of a network has everything held still, so that a criterion moves what it learns from, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from probq.criteria.measuring.perturbed import Batch
from probq.criteria.measuring.ready import with_scales
from probq.network.program.program import Program
from probq.network.quantized.quantized import Quantized
from probq.network.tracing.module_kinds import NORMS
from probq.utils.errors import ProbqError


def still_copy(q: Quantized, data: Iterable[Batch]) -> Quantized:
    """Return a copy with scales whose parameters have no gradient, all on their widest rung, codes rounded.

    Batch normalisation takes the statistics of each batch, which narrower widths change; dropout is off.

    Args:
        q: from `quantize`.
        data: sets the scales if they were not.
    """
    own = with_scales(q, data)
    own.eval()
    own.rounding, own.folded = True, False
    for name, module in own.net.named_modules():
        if isinstance(module, NORMS) and name not in own.held:
            module.train()
    own.requires_grad_(False)
    fix_rungs(own, {})
    return own


def fix_rungs(q: Program, widths: Mapping[str, int]) -> None:
    """Fix all widths in place.

    Args:
        q: the network.
        widths: bits of the quantizers that are not on their widest rung, of tied ones the first.
    """
    for name, quantizer in q.named_quantizers():
        quantizer.fix(widths.get(q.sites.get(name, name), max(quantizer.ladder.bits)))


def check_finite(loss: Tensor, criterion: str, step: int) -> None:
    """Raise where a loss is not finite."""
    if not loss.detach().isfinite():
        raise ProbqError(f"the loss of criteria.{criterion} is {float(loss.detach())} at step {step}; check the data")
