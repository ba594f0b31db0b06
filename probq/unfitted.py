"""A word of warning where a posterior that was never fitted is drawn from."""

from __future__ import annotations

import warnings

from probq.network import Network
from probq.quantizer import OPEN


def unfitted(q: Network) -> bool:
    """Whether nothing was learned or set: no fit has seen the network, and every gate is where `quantize` left it.

    A network at the widths of an assignment is not unfitted: there is nothing left to learn of its widths.
    """
    quantizers = [quantizer for _, quantizer in q.named_quantizers()]
    if q.calibrated or all(quantizer.fixed is not None for quantizer in quantizers):
        return False
    return all(bool((quantizer.logits.detach() == OPEN).all()) for quantizer in quantizers)


def warn_unfitted(*networks: Network) -> None:
    """Warn, at the caller's caller's line, if one of the networks is unfitted."""
    if any(unfitted(q) for q in networks):
        warnings.warn(
            "the posterior was never fitted, so its draws are those of the starting point; run probq.fit first",
            UserWarning,
            stacklevel=3,
        )
