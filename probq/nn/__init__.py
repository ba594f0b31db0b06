"""Modules of torch that multiply inside are spelled out here, so that `quantize` sees all that they multiply."""

from probq.nn.attention import MultiheadAttention
from probq.nn.recurrent import GRU, LSTM

__all__ = ["GRU", "LSTM", "MultiheadAttention"]
