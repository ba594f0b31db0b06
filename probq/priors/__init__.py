"""Priors give codes and widths their probabilities before data; `Plan` takes a `code_prior` and a `width_prior`."""

from probq.priors.bit_planes import BitPlanes
from probq.priors.code_prior import CodePrior, OnRung
from probq.priors.codes import Laplace, Normal, RoundedPrior, SpikeSlab
from probq.priors.drop_bits import DropBits
from probq.priors.energy_codes import EnergyCodes
from probq.priors.entries import from_entry, to_entry
from probq.priors.prior_codes import BeforeRounding, PriorCodes
from probq.priors.three_wells import ThreeWells
from probq.priors.widths import Energy, Geometric, WidthPrior

__all__ = [
    "BeforeRounding",
    "BitPlanes",
    "CodePrior",
    "DropBits",
    "Energy",
    "EnergyCodes",
    "Geometric",
    "Laplace",
    "Normal",
    "OnRung",
    "PriorCodes",
    "RoundedPrior",
    "SpikeSlab",
    "ThreeWells",
    "WidthPrior",
    "from_entry",
    "to_entry",
]
