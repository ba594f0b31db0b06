"""Criteria say how much loss each width of each quantizer costs, without training."""

from probq.criteria.clado import clado
from probq.criteria.kl import kl
from probq.criteria.loss import loss

__all__ = ["clado", "kl", "loss"]
