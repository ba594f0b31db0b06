"""Kullback-Leibler divergences of the posterior from the prior are exact here, and in nats."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import register_kl

from probq.network.distributions.codes import Codes
from probq.network.distributions.uniform_codes import UniformCodes
from probq.network.distributions.widths import Widths


@register_kl(Widths, Widths)
def _kl_widths(p: Widths, q: Widths) -> Tensor:
    """Return `sum_k P(gate k is reached) KL(Bernoulli(p_k) || Bernoulli(q_k))`, written over the rungs."""
    log_p = p.log_probs
    return (log_p.exp() * (log_p - q.log_probs)).sum(-1)


@register_kl(Codes, UniformCodes)
def _kl_codes(p: Codes, q: UniformCodes) -> Tensor:
    """Return `sum over weights of log K - H(code)`."""
    return q.log_count() - p.entropy() + q.gate_term
