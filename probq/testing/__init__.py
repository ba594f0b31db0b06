"""Helpers for tests of probq and of its extensions: a zoo of awkward networks, and oracles by enumeration."""

from probq.testing.enumerable import Small, enumerable
from probq.testing.mean_field import Joint, MeanField, ascend, best_mean_field, enumerate_joint, posterior_of
from probq.testing.oracles import (
    book_levels,
    code_probabilities,
    decided_copy,
    enumerate_elbo,
    rung_probabilities,
    width_states,
)
from probq.testing.zoo import lenet5, vgg7, zoo

__all__ = [
    "Joint",
    "MeanField",
    "Small",
    "ascend",
    "best_mean_field",
    "book_levels",
    "code_probabilities",
    "decided_copy",
    "enumerable",
    "enumerate_elbo",
    "enumerate_joint",
    "lenet5",
    "posterior_of",
    "rung_probabilities",
    "vgg7",
    "width_states",
    "zoo",
]
