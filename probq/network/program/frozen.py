"""This module respects what a network's owner has frozen."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from probq.network.quantizers.plan import Plan
from probq.network.tracing.layer import Layer
from probq.network.tracing.module_kinds import NORMS

FEW = 4  # names that a note spells out


def keep_frozen(plan: Plan | None, net: nn.Module, layer: Layer) -> Plan | None:
    """Return the plan of a layer; where the weight is frozen it rounds, because the codes are not to be learned."""
    if plan is None or layer.is_product or net.get_parameter(layer.weight).requires_grad:
        return plan
    return replace(plan, codes=1, free_codes=False, code_prior=None, estimator=None)


def held_norms(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the batch normalisations whose statistics are held.

    They are in evaluation mode while the network is in training mode, or with all of their parameters frozen.
    """
    return tuple(name for name, m in net.named_modules() if isinstance(m, NORMS) and _is_held(m, net.training))


def _is_held(norm: nn.Module, training: bool) -> bool:
    parameters = list(norm.parameters())
    return not norm.training and (training or (bool(parameters) and not any(p.requires_grad for p in parameters)))


def freezing_notes(net: nn.Module) -> list[str]:
    """Return sentences on what `fit` will leave as it is."""
    notes = []
    frozen = [name for name, p in net.named_parameters() if p.is_floating_point() and not p.requires_grad]
    if frozen:
        notes.append(
            f"{_listed(frozen)} stay what they are, because requires_grad is False; weights among them are rounded to "
            "the nearest level, at widths and scales that are learned"
        )
    held = held_norms(net)
    if held:
        notes.append(f"the statistics of {_listed(held)} stay what they are, because they are in evaluation mode")
    return notes


def _listed(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more
