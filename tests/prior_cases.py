"""Four examples with two classes, and the codebooks that priors of codes are tried on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from probq.codebooks import Codebook, binary, pruned, ternary, uniform

X = torch.tensor([[0.3, 0.9, -0.2], [0.7, 0.2, 0.4], [0.1, 0.5, -1.0], [1.0, -0.3, 0.2]])
Y = torch.tensor([0, 1, 1, 0])
BOOKS: Mapping[str, Codebook] = MappingProxyType(
    {"pruned": pruned(), "binary": binary(), "ternary": ternary(), "4 bits": uniform(4)}
)
