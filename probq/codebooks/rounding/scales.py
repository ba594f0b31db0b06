"""Hardware applies these scales exactly: powers of two, or small integers times one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probq.codebooks import Grid
from probq.codebooks.rounding.nearest import all_levels, nearest_level
from probq.codebooks.rounding.vectors import Vectors
from probq.utils.errors import ProbqError

LEAST_SIZE, LARGEST_SIZE = 1e-12, 1e30  # of numbers that are quantized
LARGEST_OF_VECTORS = 1e18  # which are compared by squares
LEAST_GAIN = 2.0**-20  # of a normalisation: a dead channel needs a scale and a prior's width all the same
MOST_NUMBERS = 65536  # of a sample that sets a scale; more change little
MULTIPLIERS = 16  # integers 16 .. 31: scales 3 % apart from any real one at most, products still within 31 bits


@torch.no_grad()
def hardware_scale(log2_scale: Tensor, multipliers: int) -> Tensor:
    """Return the scale nearest to `2^t` that hardware applies exactly.

    A power of two (a shift) where `multipliers` is 1; otherwise `m 2^e` with an integer `m = multipliers ..
    2 multipliers - 1` (a multiplication, then a shift).
    """
    if multipliers == 1:
        return torch.exp2(torch.round(log2_scale))
    octave = torch.floor(log2_scale)
    return torch.round(torch.exp2(log2_scale - octave) * multipliers) / multipliers * torch.exp2(octave)


def attach_scale_gradient(value: Tensor, log2_scale: Tensor) -> Tensor:
    """Return a hardware scale with the gradient of `2^t`."""
    return value * (1 + math.log(2) * (log2_scale - log2_scale.detach()))


def thinned(numbers: Tensor) -> Tensor:
    """Return the numbers of one axis, or evenly chosen ones where there are very many."""
    count = len(numbers)
    if count <= MOST_NUMBERS:
        return numbers
    return numbers[torch.linspace(0, count - 1, MOST_NUMBERS, dtype=torch.float64).long()]


def check_size(numbers: Tensor, largest: float = LARGEST_SIZE) -> None:
    """Raise where numbers are too large for a scale: sums of their products are not finite in float32.

    Raises:
        ProbqError: with what to do.
    """
    size = float(numbers.detach().abs().max()) if numbers.numel() else 0.0
    if size > largest:
        raise ProbqError(
            f"a weight, or what enters a layer, is as large as {size:.3g}, and nothing above {largest:.0e} can be "
            "quantized; divide the data by a constant, for example by its largest value"
        )


def best_log2_scale(values: Tensor, levels: Grid | Vectors | Tensor, rows: int, multipliers: int = 1) -> Tensor:
    """Return the logarithm (base 2) of the scale with the least squared rounding error, for each of `rows` rows.

    A row of zeros, which every scale fits, has one as if its largest value were that of all rows, or else 1.

    Args:
        values: numbers to be quantized, reshaped to `[rows, -1]`.
        levels: the levels of the codebook.
        rows: number of scales.
        multipliers: see `hardware_scale`; 1 tries powers of two only.

    Raises:
        ProbqError: if a number is too large.
    """
    check_size(values)
    values = values.detach().reshape(rows, -1)
    table = all_levels(levels, values)
    reach = max(float(table.abs().max()), 1.0)
    sizes = values.abs().amax(1)
    sizes = torch.where(sizes > 0, sizes, sizes.max() if bool(sizes.any()) else 1.0)
    top = torch.ceil(torch.log2(sizes.clamp_min(LEAST_SIZE) / reach))
    steps = torch.arange(0, 8, 1 if multipliers == 1 else 1 / 8, device=top.device, dtype=top.dtype)
    tried = top - steps.unsqueeze(1)
    scales = hardware_scale(tried, multipliers).unsqueeze(2)
    # sub-vectors are found in one tensor at a time; of others, several candidates are tried in one pass
    at_once = 1 if isinstance(levels, Vectors) else max(1, MOST_NUMBERS // max(values.numel(), 1))
    errors = [_errors(values, each, levels) for each in scales.split(at_once)]
    return tried.gather(0, torch.cat(errors).argmin(0, keepdim=True)).squeeze(0)


def _errors(values: Tensor, scales: Tensor, levels: Grid | Vectors | Tensor) -> Tensor:
    """Return the squared rounding error of each row at each of some scales, shape `[scales, rows]`."""
    if isinstance(levels, Vectors):
        (scale,) = scales
        return (values - scale * nearest_level(values / scale, levels)).square().sum(1).unsqueeze(0)
    return (values - scales * nearest_level(values / scales, levels)).square().sum(2)
