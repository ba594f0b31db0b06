"""Networks of integers have a content, a meaning and a file; numpy is all they need."""

from probq.integer.model import IntegerModel
from probq.integer.node import Node

__all__ = ["IntegerModel", "Node"]
