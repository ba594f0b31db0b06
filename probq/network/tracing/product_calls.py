"""A product of two computed tensors is a stand-in whose operands are modules, so that hooks round both.

`x * y` and `x @ y` are such products where both depend on the input; that of a tensor with itself has one operand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from probq.network.matrices.matrix import Matrix
from probq.network.matrices.views import as_parameter
from probq.network.normalisers.written import WrittenNorm
from probq.network.tracing.stand_ins import Entered, Explicit, Shortened, StandIn, Written

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


class Rounded(nn.Module):
    """This hands on a tensor of a quotient, `raw` if it is the network's own real input; a hook on it rounds that."""

    def __init__(self, raw: bool) -> None:
        super().__init__()
        self.raw = raw

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor."""
        return x


class Quotient(StandIn):
    """A quotient computes one division of two tensors, both of which depend on the input; a step rounds each of them.

    Args:
        raws: of dividend and divisor, as in `Rounded`.
    """

    def __init__(self, *raws: bool) -> None:
        super().__init__("div")
        self.dividend, self.divisor = map(Rounded, raws)

    @property
    def entry(self) -> list[Any]:
        """Return what `made_from` makes the same of."""
        return ["quotient", self.dividend.raw, self.divisor.raw]

    def takes(self, x: Any, y: Any) -> bool:
        """Return whether these are tensors as they were on the example."""
        return isinstance(y, Tensor) and (x.is_floating_point() or y.is_floating_point())

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """Return what the call computes."""
        real = next(a.dtype for a in (x, *others) if a.is_floating_point())
        x, y = (a if a.is_floating_point() else a.to(real) for a in (x, *others))
        return self.dividend(x) / self.divisor(y)


# Functions that multiply with a weight, each with the module that computes the same and its arguments in order.
LAYER_CALLS: Mapping[str, tuple[Any, tuple[str, ...]]] = MappingProxyType(
    {"linear": (nn.Linear, ()), "embedding": (nn.Embedding, ())}
    | {
        f"conv{axes}d": (kind, ("stride", "padding", "dilation", "groups"))
        for axes, kind in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)
    }
    | {
        f"conv_transpose{axes}d": (kind, ("stride", "padding", "output_padding", "groups", "dilation"))
        for axes, kind in enumerate((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), 1)
    }
)


class LayerCall(StandIn):
    """A layer's call computes one call of a function with a weight that is the network's, or computed of its tensors.

    Args:
        kind: the function, a key of `LAYER_CALLS`.
        weight: the name of a parameter or buffer; or the shape of what is computed once, and belongs to the layer.
        bias: the name of a parameter, None where nothing is added.
        options: the function's other arguments by name.
        value: what the layer's own weight is at first, if it has one.

    Attributes:
        layer: a module with these tensors, once `attach` has made it.
    """

    def __init__(
        self,
        kind: str,
        weight: str | Sequence[int],
        bias: str | None,
        options: Mapping[str, Any],
        value: Tensor | None = None,
    ) -> None:
        super().__init__(kind, kwargs=options)
        self.weight, self.bias, self.value = weight, bias, value
        self.layer: Any = None

    @property
    def owns(self) -> bool:
        """Return whether the weight belongs to the layer alone."""
        return not isinstance(self.weight, str)

    @property
    def stepped(self) -> bool:
        """Return that its results are not rounded."""
        return False

    @property
    def entry(self) -> list[Any]:
        """Return what `made_from` makes the same of."""
        weight = self.weight if isinstance(self.weight, str) else list(self.weight)
        return ["layer", self.kind, weight, self.bias, self.kwargs]

    def attach(self, net: nn.Module) -> None:
        """Make the layer of the network's own tensors; a buffer among them becomes a frozen parameter.

        Raises:
            AttributeError: if the network has none of that name.
        """
        if isinstance(self.weight, str):
            weight = as_parameter(net, self.weight)
        else:
            value = torch.zeros(list(self.weight)) if self.value is None else self.value
            weight = nn.Parameter(value.detach().clone(), value.requires_grad)
            self.value = None
        self.layer = self._made(weight)
        self.layer.bias = None if self.bias is None else as_parameter(net, self.bias)

    def _made(self, weight: nn.Parameter) -> Any:
        kind, groups, transposed = (
            LAYER_CALLS[self.kind][0],
            self.kwargs.get("groups", 1),
            self.kind.startswith(("conv_t", "emb")),
        )
        ends = (weight.shape[0], weight.shape[1] * groups)
        sizes = (*(ends if transposed else ends[::-1]), *([tuple(weight.shape[2:])] if weight.dim() > 2 else ()))
        options = {} if kind is nn.Embedding else {"bias": False}
        layer = kind(*sizes, device="meta", **options, **self.kwargs)
        layer.weight = weight
        return layer

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """Return what the call computes."""
        found: Tensor = self.layer(x)
        return found


class MatrixCall(LayerCall):
    """A matrix's call computes one product of matrices, one of which is a tensor of the network, or computed of such.

    Args:
        operand: which of both depends on the network's input.
        weight: as in `LayerCall`.
        axes, sizes: how the weight becomes the matrix `[out, in]`, as in `Matrix`; none where it is that.
        vector: whether it is called with a vector, and gives no axis of outputs.
        value: as in `LayerCall`.
        groups: how many matrices there are, each for an index of the axes between the batch and those of matrices, such
            as heads; the weight of several is that of a convolution in groups.
    """

    def __init__(
        self,
        operand: int,
        weight: str | Sequence[int],
        axes: Sequence[int],
        sizes: Sequence[int],
        vector: bool = False,
        value: Tensor | None = None,
        groups: int = 1,
    ) -> None:
        super().__init__("matmul", weight, None, {}, value)
        self.operand, self.axes, self.sizes, self.vector = operand, list(axes), list(sizes), vector
        self.groups = groups

    @property
    def entry(self) -> list[Any]:
        """Return what `made_from` makes the same of."""
        weight = self.weight if isinstance(self.weight, str) else list(self.weight)
        entry = ["matrix", self.operand, weight, self.axes, self.sizes, self.vector]
        return entry if self.groups == 1 else [*entry, None, self.groups]

    def _made(self, weight: nn.Parameter) -> Any:
        if self.groups > 1:
            outputs, inputs, _ = weight.shape
            layer: Any = nn.Conv1d(inputs * self.groups, outputs, 1, 1, 0, 1, self.groups, bias=False, device="meta")
            layer.weight = weight
            return layer
        if self.axes:
            return Matrix(weight, self.axes, self.sizes)
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = weight
        return layer

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        """Return what the call computes; a matrix in front multiplies the last axis but one."""
        if self.vector:
            return super().forward(x).squeeze(-1)
        if self.groups > 1:
            x = x if self.operand else x.transpose(-2, -1)
            y = super().forward(x.reshape(x.shape[0], -1, x.shape[-1])).reshape(*x.shape[:-2], -1, x.shape[-1])
            return y if self.operand else y.transpose(-2, -1)
        if self.operand == 0:
            return super().forward(x)
        return super().forward(x.transpose(-2, -1)).transpose(-2, -1)


def made_from(entry: Any) -> StandIn:
    """Return the stand-in that gave an entry."""
    if entry[0] == "product":
        kind, shared, firsts = entry[1:]
        return Product(kind, shared, tuple(firsts))
    if entry[0] == "quotient":
        return Quotient(*entry[1:])
    if entry[0] == "layer":
        return LayerCall(*entry[1:])
    if entry[0] == "matrix":
        return MatrixCall(*entry[1:])
    if entry[0] == "shortened":
        return Shortened(*entry[1:])
    if entry[0] == "entered":
        return Entered(*entry[1:])
    if entry[0] == "written":
        kind, operand, axes, eps = entry[1:]
        return Written(WrittenNorm(kind, operand, tuple(axes), eps))
    return Explicit(entry[1]) if entry[0] == "explicit" else StandIn(*entry)
