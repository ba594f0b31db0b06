"""Tests of probq and of its extensions find help here: a zoo of awkward networks, and oracles by enumeration."""

from probq.testing.deployed import deployed
from probq.testing.deployed_structures import deployed_structures
from probq.testing.enumerable import Small, enumerable, fit_law, law_parameters
from probq.testing.mean_field import (
    Joint,
    MeanField,
    best_mean_field,
    best_mean_fields,
    distance,
    enumerate_joint,
    marginals,
    posterior_of,
)
from probq.testing.oracles import (
    book_levels,
    code_probabilities,
    decided_copy,
    enumerate_elbo,
    rung_probabilities,
    width_states,
)
from probq.testing.simulation import calibration, draw_from_prior, rank
from probq.testing.zoo import lenet5, vgg7, zoo

__all__ = [
    "Joint",
    "MeanField",
    "Small",
    "best_mean_field",
    "best_mean_fields",
    "book_levels",
    "calibration",
    "code_probabilities",
    "decided_copy",
    "deployed",
    "deployed_structures",
    "distance",
    "draw_from_prior",
    "enumerable",
    "enumerate_elbo",
    "enumerate_joint",
    "fit_law",
    "law_parameters",
    "lenet5",
    "marginals",
    "posterior_of",
    "rank",
    "rung_probabilities",
    "vgg7",
    "width_states",
    "zoo",
]
