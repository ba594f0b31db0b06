"""Helpers for tests of probq and of its extensions: a zoo of awkward networks, and oracles by enumeration."""

from probq.testing.deployed import deployed
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
    "book_levels",
    "code_probabilities",
    "decided_copy",
    "deployed",
    "enumerate_elbo",
    "lenet5",
    "rung_probabilities",
    "vgg7",
    "width_states",
    "zoo",
]
