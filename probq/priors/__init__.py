"""Priors give codes and widths their probabilities before data; `Plan` takes a `code_prior` and a `width_prior`."""

from probq.priors.codes import CodePrior, Laplace, Normal, SpikeSlab
from probq.priors.entries import from_entry, to_entry
from probq.priors.prior_codes import PriorCodes
from probq.priors.widths import Energy, Geometric, WidthPrior

__all__ = [
    "CodePrior",
    "Energy",
    "Geometric",
    "Laplace",
    "Normal",
    "PriorCodes",
    "SpikeSlab",
    "WidthPrior",
    "from_entry",
    "to_entry",
]
