"""Laws are compared at a temperature here: raised to a power, and normalised."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal, OneHotCategorical
from torch.distributions import kl_divergence as divergence_of_laws

from probq.utils.errors import ProbqError


def tempered_divergence(teacher: Distribution, network: Distribution, temperature: float) -> Tensor:
    """Return `KL(p^(1/T) / Z || q^(1/T) / Z')` of every number of the targets, in nats.

    Args:
        teacher: the law `p`.
        network: the law `q`, of the same shape.
        temperature: `T`.

    Raises:
        ProbqError: if the laws are of different kinds or shapes, or have no power in closed form and `T` is not 1.

    Example:
        >>> import torch
        >>> a, b = (Categorical(logits=torch.tensor([logits])) for logits in ([2.0, 0.0], [0.0, 0.0]))
        >>> tempered_divergence(a, b, 2.0)
        tensor([0.1109])
    """
    p, q = _each(teacher), _each(network)
    shapes = (p.batch_shape + p.event_shape, q.batch_shape + q.event_shape)
    if isinstance(p, Categorical | OneHotCategorical) and isinstance(q, Categorical | OneHotCategorical):
        shapes = (p.logits.shape, q.logits.shape)
    if shapes[0] != shapes[1]:
        raise ProbqError(
            f"the teacher's outputs have a law of shape {tuple(shapes[0])}, and those of the network one of "
            f"{tuple(shapes[1])}; give a teacher for the same targets"
        )
    if isinstance(p, Categorical | OneHotCategorical) and isinstance(q, Categorical | OneHotCategorical):
        a, b = ((law.logits / temperature).log_softmax(-1) for law in (p, q))
        return (a.exp() * (a - b)).sum(-1)
    if isinstance(p, Bernoulli) and isinstance(q, Bernoulli):
        return divergence_of_laws(*(Bernoulli(logits=law.logits / temperature) for law in (p, q)))
    if isinstance(p, Normal) and isinstance(q, Normal):
        return divergence_of_laws(*(Normal(law.loc, law.scale * math.sqrt(temperature)) for law in (p, q)))
    if temperature != 1:
        raise ProbqError(
            f"a {type(q).__name__} law has no distillation at a temperature; give the teacher temperature=1, as in "
            "probq.distillation.offline(net, temperature=1)"
        )
    try:
        return divergence_of_laws(p, q)
    except NotImplementedError as error:
        raise ProbqError(
            f"torch knows no divergence of a {type(p).__name__} from a {type(q).__name__} law, so that no teacher can "
            "help here; take a likelihood of classes or a normal one"
        ) from error


def _each(law: Distribution) -> Distribution:
    """Return the law of each number, where a law says that several belong together."""
    while isinstance(law, Independent):
        law = law.base_dist
    return law
