"""Numbers are rounded so that the backward pass also tells the gates what other rungs would have given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.rounding.nearest import inside_range, per_rung

# Takes one and the same part from every tensor of a shape.
Part: TypeAlias = Callable[[Tensor], Tensor]
# From a part of the gradient, and what takes that part, to the inner products with every rung, `[*gates, B]`.
InnerProducts: TypeAlias = Callable[[Tensor, Part], Tensor]

GATE_SAMPLE = 32768
ENTROPY_SAMPLE = 8192


def round_input(x: Tensor, onehot: Tensor, scales: Tensor, grids: Sequence[Grid], rung: int | None = None) -> Tensor:
    """Round a layer's input to the grid that the one-hot `onehot` `[B]` names: `scale * nearest(x / scale)`.

    Gradients: to `x` clipped straight-through; to the chosen scale as in learned step sizes; to `onehot` the inner
    product of the incoming gradient with what each rung would have given, from a random part of the batch, scaled up.

    Args:
        x: input, any shape.
        onehot: drawn rung, shape `[B]`.
        scales: one positive scale per rung, shape `[B]`.
        grids: one grid per rung.
        rung: the drawn one, where it is known as a number.

    Source: S. K. Esser, J. L. McKinstry, D. Bablani, R. Appuswamy, D. S. Modha, 2020, "Learned Step Size
    Quantization" (gradient of the scale).
    """
    return _RoundInput.apply(x, onehot, scales, tuple(grids), int(onehot.argmax()) if rung is None else rung)


class _RoundInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, onehot: Tensor, scales: Tensor, grids: tuple[Grid, ...], rung: int) -> Tensor:
        y = on_grid(x, scales[rung], grids[rung])
        ctx.save_for_backward(x, y, scales)
        ctx.rung, ctx.grids = rung, grids
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,), (x, y, scales) = grads, ctx.saved_tensors
        scale, grid = float(scales[ctx.rung]), ctx.grids[ctx.rung]
        low, high = (grid.start - grid.step / 2) * scale, (grid.stop + grid.step / 2) * scale
        of_x = inside_range(grad, x, low, high)
        of_scales = of_onehot = None
        if ctx.needs_input_grad[2]:
            of_scales = torch.zeros_like(scales)
            of_scales[ctx.rung] = (_dot(grad, y) - _dot(of_x, x)) / scale
        if ctx.needs_input_grad[1]:
            part = random_part(x)
            of_onehot = products(part(grad), part(x), scales, ctx.grids) * (x.numel() / part(x).numel())
        return of_x, of_onehot, of_scales, None, None


def products(grad: Tensor, x: Tensor, scales: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Return `<grad, on_grid(x)>` on every rung at once, shape `[B]`.

    Args:
        grad: shaped like `x`.
        x: values.
        scales: the scales of every rung, `[B]` or `[B, *broadcastable to x]`.
        grids: the grids of every rung.
    """
    start, step, count = per_rung(grids, x)
    shaped = scales.reshape(start.shape) if scales.dim() == 1 else scales
    codes = (x * (1 / (shaped * step))).add_(0.5 - start / step).floor_().clamp_min_(0)
    codes = torch.minimum(codes, count - 1, out=codes)
    if scales.dim() > 1:
        values = codes.mul_(step).add_(start).mul_(shaped)
        return _wide(values.reshape(len(grids), -1)) @ _wide(grad.reshape(-1))
    # what all numbers have in common is multiplied by behind the sum: three passes fewer
    flat = _wide(grad.reshape(-1))
    return (_wide(codes.reshape(len(grids), -1)) @ flat * step.reshape(-1) + start.reshape(-1) * flat.sum()) * scales


def on_grid(x: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return `scale * nearest(x / scale)` without a gradient, in as few passes as torch allows."""
    codes = (x * (1 / (scale * grid.step))).add_(0.5 - grid.start / grid.step).floor_().clamp_(0, grid.count - 1)
    if grid.start == 0:
        return codes.mul_(scale * grid.step)
    return codes.mul_(grid.step).add_(grid.start).mul_(scale)


def random_part(x: Tensor, size: int = GATE_SAMPLE) -> Part:
    """Return a function that takes the same random slice of the first axis, some `size` numbers, from tensors like `x`.

    The slices are disjoint, each drawn with its share of the rows: what is scaled up by `rows / slice` is unbiased.
    """
    rows = x.shape[0] if x.dim() else 1
    slices = -(-rows // max(1, min(rows, size * rows // max(x.numel(), 1)))) if rows else 1
    k = int(torch.randint(max(rows, 1), ())) * slices // max(rows, 1)
    first, last = -(-k * rows // slices), -(-(k + 1) * rows // slices)
    return lambda tensor: tensor[first:last] if tensor.dim() else tensor


def gate_gradient(value: Tensor, onehot: Tensor, inner: InnerProducts) -> Tensor:
    """Return `value` unchanged; its backward pass gives `onehot` the products `<gradient, value of rung k>`.

    Args:
        value: the tensor of the drawn rung.
        onehot: drawn rungs `[*gates, B]`; the gradient is summed over what shares a gate.
        inner: function of a part of the gradient, and of a function that takes this part from tensors shaped like it,
            to the inner products `[*gates, B]`. With one shared gate the part is random, and the result scaled up.
    """
    return _GateGradient.apply(value, onehot, inner)


class _GateGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, onehot: Tensor, inner: InnerProducts) -> Tensor:
        ctx.shared, ctx.inner = onehot.dim() == 1, inner
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        if not ctx.needs_input_grad[1]:
            return grad, None, None
        if not ctx.shared:
            return grad, ctx.inner(grad, lambda tensor: tensor), None
        part = random_part(grad)
        return grad, ctx.inner(part(grad), part) * (grad.numel() / part(grad).numel()), None


def inner_products(grad: Tensor, values: Sequence[Tensor], gates: tuple[int, ...] = ()) -> Tensor:
    """Return `<grad, value>` for each of the values of `B` rungs, summed over what shares a gate, `[*gates, B]`."""
    return torch.stack([(grad * value).sum_to_size(gates) for value in values], -1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)  # as they lie in memory: flattening copies nothing
    return torch.dot(_wide(a.reshape(-1)), _wide(b.reshape(-1)))


def _wide(a: Tensor) -> Tensor:
    """Return a tensor in float32 at least.

    Products of bfloat16 vectors are slow loops on a CPU, and their results have 8 bits.
    """
    return a.to(torch.promote_types(a.dtype, torch.float32))
