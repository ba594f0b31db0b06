"""probq knows these kinds of module: layers, normalisations, and functions that become tables."""

from __future__ import annotations

from typing import Any

from torch import nn

from probq.network.matrices.matrix import Matrix

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
QUANTIZABLE = (nn.Linear, Matrix, *CONVOLUTIONS, nn.Embedding)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Functions of one number that become tables; a class derived from one of them may be anything.
TABLES = (
    nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.ELU, nn.LeakyReLU,
)  # fmt: skip


def channel_axis_of(module: Any) -> int:
    """Return the axis of a layer's weight that runs over output channels."""
    return module.channel_axis if isinstance(module, Matrix) else int(isinstance(module, (nn.Embedding, *TRANSPOSED)))


def has_plain_forward(module: Any) -> bool:
    """Return whether a layer's forward is that of its kind in `torch.nn`, not of a subclass or of the object's own."""
    kind = next(kind for kind in QUANTIZABLE if isinstance(module, kind))
    return all(
        name not in vars(module) and getattr(type(module), name, None) is getattr(kind, name, None)
        for name in ("forward", "_conv_forward", "_output_padding")
    )
