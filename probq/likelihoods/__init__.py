"""A likelihood is a function from a network's output to a `torch.distributions` law of the target."""

from probq.likelihoods.classes import Categorical, Classes, categorical, hits
from probq.likelihoods.network_likelihood import Likelihood as Likelihood
from probq.likelihoods.network_likelihood import as_network_likelihood as as_network_likelihood
from probq.likelihoods.network_likelihood import only_tensor
from probq.likelihoods.normal import Normal
from probq.likelihoods.per_output import PerOutput
from probq.likelihoods.usual import fits, for_target, for_targets, is_usual

__all__ = [
    "Categorical",
    "Classes",
    "Normal",
    "PerOutput",
    "categorical",
    "fits",
    "for_target",
    "for_targets",
    "hits",
    "is_usual",
    "only_tensor",
]
