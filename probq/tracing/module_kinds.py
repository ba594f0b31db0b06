"""The kinds of module that probq knows: layers, normalisations, and functions that become tables."""

from __future__ import annotations

from torch import nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
QUANTIZABLE = (nn.Linear, *CONVOLUTIONS, nn.Embedding)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Functions of one number that become tables; a class derived from one of them may be anything.
TABLES = (
    nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.ELU, nn.LeakyReLU,
)  # fmt: skip
