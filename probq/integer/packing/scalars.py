"""Integer tensors are codes on codebooks, bit-packed at their own width: `value = codebook[rung][code]`."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from probq.utils.errors import ProbqError

Levels = range | tuple[int, ...]
LARGEST_LEVEL = 2**61  # the difference of two levels fits int64
MOST_ELEMENTS = 2**31  # per tensor


@dataclass(frozen=True, eq=False)
class Packing:
    """A packing says how an integer tensor is stored: `value = codebooks[rung][code]`.

    Args:
        codebooks: ascending integer levels, one codebook per rung; `K` levels take `ceil(log2 K)` bits per code.
        rung: integers that broadcast to the tensor's shape: `()` one rung for all, `(O, 1, 1, 1)` one per channel,
            or the full shape.

    Raises:
        ProbqError: a codebook is empty, not ascending or not of integers within +-2^61, or a rung has no codebook.

    >>> pack([-1, 1, 1], Packing((range(-1, 2, 2),), np.array(0)))
    array([6], dtype=uint8)
    """

    codebooks: tuple[Levels, ...]
    rung: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "rung", np.asarray(self.rung))
        if not self.codebooks:
            raise ProbqError("a packing needs at least one codebook")
        for levels in self.codebooks:
            _check_levels(levels)
        if self.rung.dtype.kind not in "iu":
            raise ProbqError(f"rungs are integers, not {self.rung.dtype}: they count the codebooks from 0")
        if self.rung.size and not 0 <= self.rung.min() <= self.rung.max() < len(self.codebooks):
            raise ProbqError(f"rungs must lie between 0 and {len(self.codebooks) - 1}, one less than the codebooks")


def _check_levels(levels: Levels) -> None:
    if not isinstance(levels, range | tuple):
        raise ProbqError(f"a codebook's levels are a range or a tuple of integers, not {type(levels).__name__}")
    if not levels:
        raise ProbqError("a codebook needs at least one level")
    if isinstance(levels, range):
        ascending = levels.step > 0
    else:
        if not all(type(level) is int for level in levels):
            raise ProbqError("a codebook's levels are Python integers; convert them with int()")
        ascending = all(a < b for a, b in itertools.pairwise(levels))
    if not ascending:
        raise ProbqError("a codebook's levels must ascend; sort them and drop what occurs twice")
    if levels[0] < -LARGEST_LEVEL or levels[-1] > LARGEST_LEVEL:
        raise ProbqError("a codebook's levels must lie within +-2^61")


def bits_of(levels: Levels) -> int:
    """Return the width `ceil(log2 K)` in bits of a code that addresses `K` levels; one level takes 0 bits.

    >>> bits_of(range(-1, 2)), bits_of((0,))
    (2, 0)
    """
    return (len(levels) - 1).bit_length()


def smallest(values: Any) -> Packing:
    """Return the contiguous codebook `min .. max` of integers of any shape, one rung for all.

    >>> smallest([3, -4, 0]).codebooks
    (range(-4, 4),)
    """
    values = _integers(values)
    levels = range(int(values.min()), int(values.max()) + 1) if values.size else range(1)
    return Packing((levels,), np.array(0))


def pack(values: Any, packing: Packing) -> np.ndarray:
    """Return the codes of `values` concatenated in C order, each at its own width, least significant bit first.

    Args:
        values: integers of any shape to which `packing.rung` broadcasts.
        packing: the codebooks and the rung of every value.

    Returns:
        uint8 `[ceil(size_in_bits / 8)]`; the last byte is filled up with zeros.

    Raises:
        ProbqError: a value is not a level of its codebook, or the rungs do not fit the shape.
    """
    values = _integers(values)
    total = size_in_bits(values.shape, packing)
    flat, stream = values.reshape(-1), np.zeros(total, np.uint8)
    offsets = _offsets(values.shape, packing)
    for levels, where in _groups(values.shape, packing):
        codes, width = _codes(flat[where], levels), bits_of(levels)
        if offsets is None:
            return np.packbits(_to_bits(codes, width), bitorder="little")
        for k, bit in enumerate(_to_bits(codes, width).T):
            stream[offsets[where] + k] = bit
    return np.packbits(stream, bitorder="little")


def unpack(blob: Any, shape: tuple[int, ...], packing: Packing) -> np.ndarray:
    """Return the integers that `pack` wrote, int64 of the given shape.

    A tensor of 0 bits is a read-only view that takes no memory, whatever its shape.

    Raises:
        ProbqError: the blob's length is wrong, its spare bits are not zero, or a code has no level.
    """
    blob, total = np.asarray(blob, np.uint8).reshape(-1), size_in_bits(shape, packing)
    if blob.size != -(-total // 8):
        raise ProbqError(f"{blob.size} bytes where {-(-total // 8)} hold {total} bits; the blob or its shape is wrong")
    if total % 8 and blob[-1] >> (total % 8):
        raise ProbqError("the spare bits of the last byte are not zero; the blob was not written by pack")
    if total == 0:
        lowest = np.array([levels[0] for levels in packing.codebooks], np.int64)
        return np.broadcast_to(lowest[packing.rung], shape)
    bits, values = np.unpackbits(blob, bitorder="little", count=total), np.empty(math.prod(shape), np.int64)
    offsets = _offsets(shape, packing)
    for levels, where in _groups(shape, packing):
        width = bits_of(levels)
        codes = np.zeros(values[where].shape, np.int64)
        for k in range(width):
            bit = bits[k::width] if offsets is None else bits[offsets[where] + k]
            codes |= bit.astype(np.int64) << k
        values[where] = _values(codes, levels)
    return values.reshape(shape)


def size_in_bits(shape: tuple[int, ...], packing: Packing) -> int:
    """Return the bits that the codes of a tensor of this shape take, without allocating anything of its size.

    >>> size_in_bits((2, 3), Packing((range(4), range(1)), np.array([[0], [1]])))
    6

    Raises:
        ProbqError: the rungs do not broadcast to the shape.
    """
    rung, elements = packing.rung, math.prod(shape)
    fits = rung.ndim <= len(shape) and all(
        r in (1, s) for r, s in zip(rung.shape[::-1], tuple(shape)[::-1], strict=False)
    )
    if not fits:
        raise ProbqError(f"rungs of shape {rung.shape} do not broadcast to a tensor of shape {tuple(shape)}")
    if elements == 0:
        return 0
    counts = np.bincount(rung.reshape(-1), minlength=len(packing.codebooks))
    bits = sum(int(count) * bits_of(levels) for count, levels in zip(counts, packing.codebooks, strict=True))
    return bits * (elements // rung.size)


def _integers(values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "iu" and values.size:
        raise ProbqError(f"only integers can be packed, not {values.dtype}; round them first")
    if values.dtype == np.uint64 and values.size and values.max() > LARGEST_LEVEL:
        raise ProbqError("integers must lie within +-2^61")
    return values.astype(np.int64, copy=False)


def _one_rung(packing: Packing) -> bool:
    return packing.rung.size == 1 or len(packing.codebooks) == 1


def _offsets(shape: tuple[int, ...], packing: Packing) -> np.ndarray | None:
    """Return the bit at which each value starts, int64 [elements]; None where all have one rung."""
    if _one_rung(packing):
        return None
    widths = np.array([bits_of(levels) for levels in packing.codebooks], np.uint8)[packing.rung]
    widths = np.broadcast_to(widths, shape).reshape(-1)
    offsets = np.cumsum(widths, dtype=np.int64)
    offsets -= widths
    return offsets


def _groups(shape: tuple[int, ...], packing: Packing) -> Iterator[tuple[Levels, Any]]:
    """Return each codebook in use with the index of the flattened values that are stored on it."""
    if _one_rung(packing):
        yield packing.codebooks[packing.rung.reshape(-1)[0] if packing.rung.size else 0], slice(None)
        return
    rung = packing.rung.astype(np.min_scalar_type(len(packing.codebooks)))  # few bytes: a radix sort
    rung = np.broadcast_to(rung, shape).reshape(-1)
    order = np.argsort(rung, kind="stable")
    ends = np.cumsum(np.bincount(rung, minlength=len(packing.codebooks)))
    for levels, where in zip(packing.codebooks, np.split(order, ends[:-1]), strict=True):
        if where.size:
            yield levels, where


def _codes(values: np.ndarray, levels: Levels) -> np.ndarray:
    inside = (values >= levels[0]) & (values <= levels[-1])
    if isinstance(levels, range):
        codes, left = np.divmod(values - levels[0], levels.step)
        inside &= left == 0
    else:
        codes = np.searchsorted(np.array(levels), values).clip(0, len(levels) - 1)
        inside &= np.array(levels)[codes] == values
    if not inside.all():
        wrong = int(values[~inside][0])
        raise ProbqError(f"{wrong} is not a level of its codebook {_short(levels)}; round to the codebook first")
    return codes


def _short(levels: Levels) -> str:
    return str(levels) if isinstance(levels, range) or len(levels) < 9 else f"({levels[0]}, ..., {levels[-1]})"


def _values(codes: np.ndarray, levels: Levels) -> np.ndarray:
    if codes.size and codes.max() >= len(levels):
        raise ProbqError(f"code {codes.max()} has no level in a codebook of {len(levels)}; the blob is damaged")
    return levels[0] + codes * levels.step if isinstance(levels, range) else np.array(levels, np.int64)[codes]


def _to_bits(codes: np.ndarray, width: int) -> np.ndarray:
    """Return the bits of codes, uint8 [elements, width], least significant bit first."""
    octets = codes.astype("<i8").view(np.uint8).reshape(-1, 8)[:, : -(-width // 8)]
    return np.unpackbits(octets, axis=1, bitorder="little", count=width)
