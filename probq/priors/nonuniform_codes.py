"""Laws of codes that are not uniform have a log-probability for each level, and an exact divergence."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import register_kl

from probq.codebooks.rounding.stochastic import times_log
from probq.network.distributions.codes import Codes
from probq.network.distributions.uniform_codes import UniformCodes


class NonuniformCodes(UniformCodes):
    """This is a law of independent codes, each with a log-probability for each of its levels.

    A kind of it says `log_probs` and `rsample`.
    """

    def log_probs(self, levels: Tensor) -> Tensor:
        """Return the log-probability of levels, shaped as the weight or `[*weight, m]`."""
        raise NotImplementedError

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of one level for each weight, a scalar; the support is not checked."""
        return self.log_probs(value).sum() - self.gate_term

    def divergences(self, law: Codes) -> Tensor:
        """Return `KL(law || prior)` of each code in nats, shape of the weight."""
        levels, log_probs = law.window()
        return (times_log(log_probs) - log_probs.exp() * self.log_probs(levels)).sum(-1)


@register_kl(Codes, NonuniformCodes)
def _kl_codes(p: Codes, q: NonuniformCodes) -> Tensor:
    """Return `sum over weights of sum_j p_j log(p_j / q_j)`."""
    return q.divergences(p).sum() + q.gate_term
