"""A codebook says what values a quantized number may take; a ladder is codebooks of growing width."""

from probq.codebooks.binary import binary
from probq.codebooks.codebook import Codebook, Grid, Table
from probq.codebooks.ladder import Ladder, ladder
from probq.codebooks.levels import learned, levels
from probq.codebooks.powers_of_two import powers_of_two
from probq.codebooks.product import product
from probq.codebooks.pruned import pruned
from probq.codebooks.ternary import ternary
from probq.codebooks.uniform import uniform
from probq.codebooks.vector import VectorCodebook, vector

__all__ = [
    "Codebook",
    "Grid",
    "Ladder",
    "Table",
    "VectorCodebook",
    "binary",
    "ladder",
    "learned",
    "levels",
    "powers_of_two",
    "product",
    "pruned",
    "ternary",
    "uniform",
    "vector",
]
