"""Restarts of one fit are compared as chains if they have the same layers, plan, likelihood, temperature and budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probq.likelihoods import as_network_likelihood
from probq.network.quantized.quantized import Quantized
from probq.network.quantizers.base import Quantizer
from probq.network.quantizers.weight import WeightQuantizer
from probq.utils.errors import ProbqError


def check_chains(q: Quantized | Sequence[Quantized]) -> list[Quantized]:
    """Return one network, or several that can be compared as chains, as a list.

    Raises:
        ProbqError: if there is none, or they differ; chains of different problems cannot be compared.
    """
    chains = list(q) if isinstance(q, Sequence) else [q]
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
        ("layers", [(m.name, m.shape) for m in a.layers], [(m.name, m.shape) for m in b.layers]),
        ("plan", _plan(a), _plan(b)),
        ("likelihood", *(as_network_likelihood(q.likelihood).identity() for q in (a, b))),
        ("temperature", a.temperature, b.temperature),
        ("budget", a.budget, b.budget),
    ]


def _plan(q: Quantized) -> Any:
    """Return all of the plan that the posterior depends on; where training began (the spread) is not compared."""
    tables = {name: (table.bits, table.signed) for name, table in q.activations.items()}
    return q.sites, tables, [(name, *_laws(z)) for name, z in q.named_quantizers()]


def _laws(z: Quantizer) -> list[Any]:
    both = [z.ladder, z.gates, tuple(z.log2_scale.shape), z.multipliers, z.free, z.width_prior, z.chosen_estimator]
    return [*both, z.nearest, z.code_prior_law, z.free_codes] if isinstance(z, WeightQuantizer) else both
