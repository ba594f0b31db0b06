"""Restarts of one fit as chains: what they must have in common to be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probq.errors import ProbqError
from probq.quantized import Quantized


def checked_chains(q: Quantized | Sequence[Quantized]) -> list[Quantized]:
    """One network, or several of the same layers, plan, temperature and budget, as a list.

    Raises:
        ProbqError: if there is none, or they differ; chains of different problems cannot be compared.
    """
    chains = [q] if isinstance(q, Quantized) else list(q)
    if not chains or not all(isinstance(chain, Quantized) for chain in chains):
        raise ProbqError("give a quantized network, or a list of them, one for each chain")
    for k, chain in enumerate(chains[1:], 1):
        difference = next((name for name, a, b in _terms(chains[0], chain) if a != b), None)
        if difference is not None:
            raise ProbqError(
                f"chains 0 and {k} differ in their {difference}; restart one and the same fit, e.g. with probq.restarts"
            )
    return chains


def _terms(a: Quantized, b: Quantized) -> list[tuple[str, Any, Any]]:
    return [
        ("layers", [m.name for m in a.layers], [m.name for m in b.layers]),
        ("plan", _plan(a), _plan(b)),
        ("temperature", a.temperature, b.temperature),
        ("budget", a.budget, b.budget),
    ]


def _plan(q: Quantized) -> list[Any]:
    return [
        (name, z.ladder.bits, z.gates, tuple(z.log2_scale.shape), z.multipliers, getattr(z, "nearest", 1), z.free)
        for name, z in q.named_quantizers()
    ]
