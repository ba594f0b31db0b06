"""The scales of all rungs of all quantizers are computed together."""

from __future__ import annotations

import torch
from torch import Tensor

from probq.codebooks.rounding.scales import attach_scale_gradient, hardware_scale
from probq.network.program.program import Program
from probq.network.quantizers.base import Quantizer, Rung
from probq.training.svi.elbo.width_laws import DrawnWidths


class Scales:
    """These are the scales of all quantizers of a network, in every step anew.

    Args:
        q: the network.
    """

    def __init__(self, q: Program) -> None:
        self.q = q
        self._groups: dict[int, list[tuple[str, Quantizer]]] = {}
        for name, quantizer in q.named_quantizers():
            self._groups.setdefault(quantizer.multipliers, []).append((name, quantizer))

    def now(self) -> dict[str, Tensor]:
        """Return the scale of every rung of every quantizer, `[B, *scales]`."""
        result = {}
        for multipliers, members in self._groups.items():
            flat = torch.cat([quantizer.log2_scale.reshape(-1) for _, quantizer in members])
            scales = attach_scale_gradient(hardware_scale(flat, multipliers), flat)
            parts = scales.split([quantizer.log2_scale.numel() for _, quantizer in members])
            for (name, quantizer), part in zip(members, parts, strict=True):
                result[name] = part.reshape(quantizer.log2_scale.shape)
        return result

    def rungs(self, widths: DrawnWidths, scales: dict[str, Tensor]) -> dict[str, Rung]:
        """Return the drawn rung of every quantizer, given the scales."""
        result = {}
        for name, quantizer in self.q.named_quantizers():
            if quantizer.gates:
                result[name] = quantizer.rung(widths.onehots[name].detach().argmax(-1))
            else:
                k = widths.rungs[name]
                result[name] = Rung(quantizer.levels(k), scales[name][k], k)
        return result
