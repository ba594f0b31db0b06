"""Networks of integers: what they hold, what they mean, and their files; numpy only."""

from probq.integer.model import IntegerModel
from probq.integer.node import Node

__all__ = ["IntegerModel", "Node"]
