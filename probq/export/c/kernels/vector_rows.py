"""Weights of vectors are stored in C as their table and rows of packed codes, with the C that looks a row up."""

from collections.abc import Callable

import numpy as np

from probq.export.c.code.program import CSource
from probq.export.c.code.text import INDENT
from probq.export.c.code.values import I8, U8, U16
from probq.export.c.kernels import weight_rows
from probq.export.c.kernels.weight_rows import Rows
from probq.integer import Node
from probq.integer.packing import VectorPacking, bits_of, pack

_LOOK_UP = """\
static inline void NAME(const uint8_t *restrict from, int8_t *restrict to, int32_t codes)
{
    for (int32_t j = 0; j < codes; j++) {
        const uint8_t *at = from + j * BITS / 8;
        const uint32_t code = CODE;
        const int8_t *vector = TABLE + (OFFSETcode) * SIZE;
        for (int32_t k = 0; k < SIZE; k++)
            to[PLACE] = vector[k];
    }
}
"""


def has_vectors(node: Node) -> bool:
    """Return whether the codes of a layer's weight are those of vectors."""
    return isinstance(node.packing_of("weight"), VectorPacking)


def rows(p: CSource, node: Node, arrange: Callable[[np.ndarray], np.ndarray]) -> Rows:
    """Return the weight of a node as the matrix that `arrange` makes of it, looked up or unpacked a row at a time.

    Weights of vectors keep their rows; `arrange` may only move what is in a row, alike in all of them.
    """
    packing, weight = node.packing_of("weight"), node.tensors["weight"]
    if not isinstance(packing, VectorPacking):
        return weight_rows.rows(p, node, arrange)
    places = arrange(np.arange(weight.size).reshape(weight.shape))
    origin, row = places[0].reshape(-1), weight[0].size
    if not np.array_equal(places, origin + row * np.arange(len(weight)).reshape(-1, 1)):
        return weight_rows.packed(p, arrange(weight))
    codes = packing.codes(weight).reshape(len(weight), -1)
    blob = np.stack([pack(each, packing.of_codes) for each in codes])
    name = p.constant(np.concatenate([blob.reshape(-1), np.zeros(4, np.uint8)]), U8)
    call = _look_up(p, packing, codes.shape[1], origin)
    return Rows(name, I8, row, False, (f"{call}({name} + ROW * {blob.shape[1]}, INTO, {codes.shape[1]});",))


def _look_up(p: CSource, packing: VectorPacking, codes: int, origin: np.ndarray) -> str:
    """Return the name of the function that looks up a row.

    Args:
        p: the program.
        packing: of the weight.
        codes: in a row.
        origin: for each number of the row, its place in the row of the integer model.
    """
    tables, count, size = packing.table.shape
    table = p.constant(packing.table.reshape(-1), I8)
    place = f"j * {size} + k"
    if not np.array_equal(origin, np.arange(len(origin))):
        place = f"{p.constant(np.argsort(origin), U16 if len(origin) <= 2**16 else None)}[{place}]"
    bits = bits_of(range(count))
    octets = " | ".join(f"(uint32_t)at[{k}]" + (f" << {8 * k}" if k else "") for k in range((bits + 7 + 7) // 8))
    code = f"({octets}) >> (j * {bits} % 8) & {2**bits - 1}u" if bits else "0"
    text = _LOOK_UP.replace("BITS", str(bits)).replace("CODE", code).replace("TABLE", table)
    text = text.replace("OFFSET", f"(uint32_t)(j % {tables}) * {count}u + " if tables > 1 else "")
    text = text.replace("SIZE", str(size)).replace("PLACE", place).replace("    ", INDENT)
    return p.helper(f"vectors_{table.rpartition('_')[2]}", text)
