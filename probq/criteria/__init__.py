"""Criteria say what each width of each quantizer costs, before the network is trained for it."""

from probq.criteria.clado import clado
from probq.criteria.csmpq import csmpq
from probq.criteria.expected_error import expected_error
from probq.criteria.hawq import hawq
from probq.criteria.kl import kl
from probq.criteria.limpq import limpq
from probq.criteria.loss import loss
from probq.criteria.mixquant import mixquant
from probq.criteria.mpqco import mpqco
from probq.criteria.ompq import ompq
from probq.criteria.search import search

__all__ = [
    "clado",
    "csmpq",
    "expected_error",
    "hawq",
    "kl",
    "limpq",
    "loss",
    "mixquant",
    "mpqco",
    "ompq",
    "search",
]
