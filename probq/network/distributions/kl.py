"""Kullback-Leibler divergences are exact here, and in nats: of the posterior from the prior, and of laws of targets."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution, kl_divergence, register_kl

from probq.likelihoods.per_output import OutputLaws
from probq.network.distributions.codes import Codes
from probq.network.distributions.uniform_codes import UniformCodes
from probq.network.distributions.widths import Widths
from probq.utils.errors import ProbqError


def total_divergence(p: Distribution, q: Distribution) -> float:
    """Return `KL(p || q)` of all targets in nats; that of several outputs is the sum of theirs.

    Raises:
        ProbqError: if there is none in closed form.
    """
    if isinstance(p, OutputLaws) and isinstance(q, OutputLaws):
        return sum(total_divergence(law, q.laws[name]) for name, law in p.laws.items())
    try:
        return float(kl_divergence(p, q).sum())
    except NotImplementedError as error:
        raise ProbqError(
            f"torch knows no divergence of a {type(p).__name__} from a {type(q).__name__} law; give batches of "
            "(input, target), and probq.criteria.loss where a criterion is asked for"
        ) from error


@register_kl(Widths, Widths)
def _kl_widths(p: Widths, q: Widths) -> Tensor:
    """Return `sum_k P(gate k is reached) KL(Bernoulli(p_k) || Bernoulli(q_k))`, written over the rungs."""
    log_p = p.log_probs
    return (log_p.exp() * (log_p - q.log_probs)).sum(-1)


@register_kl(Codes, UniformCodes)
def _kl_codes(p: Codes, q: UniformCodes) -> Tensor:
    """Return `sum over weights of log K - H(code)`."""
    return q.log_count() - p.entropy() + q.gate_term
