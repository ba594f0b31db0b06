"""A product of two computed tensors is a stand-in whose operands are modules, so that hooks round both.

`x * y` and `x @ y` are such products where both depend on the input; that of a tensor with itself has one operand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from probq.network.tracing.stand_ins import Explicit, StandIn

PRODUCTS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"mul": torch.mul, "matmul": torch.matmul}
)
ELEMENTWISE = frozenset({"mul"})


class Operand(nn.Module):
    """An operand hands on one of the tensors that a product multiplies; hooks on it round that tensor.

    Attributes:
        first: whether the tensor is the network's own input, reached by no trained parameter.
    """

    def __init__(self, first: bool = False) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor."""
        return x


class Product(StandIn):
    """A product computes one call of a function that multiplies two tensors, both of which depend on the input.

    Args:
        kind: the function, a key of `PRODUCTS`.
        shared: whether both are one tensor.
        firsts: for both, `Operand.first`.

    Attributes:
        left, right: the operands; without `right` where they are one tensor.
    """

    def __init__(self, kind: str, shared: bool = False, firsts: tuple[bool, bool] = (False, False)) -> None:
        super().__init__(kind)
        self.shared = shared
        self.left = Operand(firsts[0])
        if not shared:
            self.right = Operand(firsts[1])

    @property
    def tabulated(self) -> bool:
        """Return that it becomes no table."""
        return False

    @property
    def stepped(self) -> bool:
        """Return that its results are not rounded: they are integers of their own."""
        return False

    @property
    def sides(self) -> tuple[str, str]:
        """Return the names of both operands within the product."""
        return ("left", "left") if self.shared else ("left", "right")

    @property
    def entry(self) -> list[Any]:
        """Return what `made_from` makes the same of."""
        return ["product", self.kind, self.shared, [self.get_submodule(side).first for side in self.sides]]

    def takes(self, x: Any, y: Any) -> bool:
        """Return whether these are tensors as they were on the example."""
        return isinstance(y, Tensor) and (x is y) == self.shared

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """Return what the call computes."""
        x = self.left(x)
        return PRODUCTS[self.kind](x, x if self.shared else self.right(others[0]))


def made_from(entry: Any) -> StandIn:
    """Return the stand-in that gave an entry."""
    if entry[0] == "product":
        kind, shared, firsts = entry[1:]
        return Product(kind, shared, tuple(firsts))
    return Explicit(entry[1]) if entry[0] == "explicit" else StandIn(*entry)


def first_operands(net: nn.Module) -> Iterator[str]:
    """Yield the names of the quantizers of those operands that are the network's own input."""
    yield from (f"{name}.input" for name, module in net.named_modules() if isinstance(module, Operand) and module.first)
