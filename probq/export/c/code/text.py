"""Pieces of C are written here: literals, arrays, indices and loops."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from probq.export.c.code.values import Type
from probq.utils.errors import ProbqError

INDENT = "    "
WIDTH = 110


def literal(value: int) -> str:
    """Return a C expression for an integer, of 32 bits where it fits, else of 64.

    >>> literal(-5), literal(-2**31), literal(2**40)
    ('-5', '(-2147483647 - 1)', 'INT64_C(1099511627776)')
    """
    if -(2**31) < value < 2**31:
        return str(value)
    if value == -(2**31):
        return "(-2147483647 - 1)"
    if value == -(2**63):
        return "(-INT64_C(9223372036854775807) - 1)"
    return f"INT64_C({value})" if value >= 0 else f"(-INT64_C({-value}))"


def array(name: str, kind: Type, values: np.ndarray) -> str:
    """Return the definition of a constant array."""
    flat = values.reshape(-1).tolist()
    if kind.bits >= 32 and kind.low < 0:
        words: list[str] = [literal(int(v)) for v in flat]
    else:
        words = [str(v) for v in flat] if kind.bits < 64 else [f"UINT64_C({v})" for v in flat]
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) > WIDTH:
            lines.append(line)
            line = ""
        line += word + ","
    body = "\n".join([*lines, line.rstrip(",")])
    return f"static const {kind.name} {name}[{len(flat)}] = {{\n{body}\n}};\n"


def index(variables: Sequence[str], strides: Sequence[int], offset: int = 0) -> str:
    """Return an index such as `i * 12 + j + 3`, without the terms that are zero.

    >>> index(["i", "j"], [12, 1], 3), index([], [])
    ('i * 12 + j + 3', '0')
    """
    terms = [v if s == 1 else f"{v} * {s}" for v, s in zip(variables, strides, strict=True) if s]
    return " + ".join(terms + [str(offset)] * (offset != 0 or not terms))


def loops(counts: Iterable[tuple[str, int]], body: Sequence[str]) -> list[str]:
    """Return the body inside `for` loops, the first one outermost."""
    lines = list(body)
    for variable, count in reversed(list(counts)):
        head = f"for (int32_t {variable} = 0; {variable} < {count}; {variable}++) {{"
        lines = [head, *indented(lines), "}"]
    return lines


def indented(lines: Iterable[str]) -> list[str]:
    """Return the lines one level deeper."""
    return [INDENT + line if line and not line.startswith("#") else line for line in lines]


def nest(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, tuple[int, ...]]]:
    """Return the loops over a shape as (count, stride of every operand).

    They are merged, and in the order of the first operand's memory.

    >>> nest((2, 3), [(3, 1), (3, 1)]), nest((2, 3), [(1, 2), (0, 1)])
    ([(6, (1, 1))], [(3, (2, 1)), (2, (1, 0))])
    """
    axes = [(n, tuple(s[k] for s in strides)) for k, n in enumerate(shape) if n != 1]
    axes.sort(key=lambda axis: -axis[1][0])
    merged: list[tuple[int, tuple[int, ...]]] = []
    for count, steps in axes:
        if merged and all(a == b * count for a, b in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = (merged[-1][0] * count, steps)
        else:
            merged.append((count, steps))
    return merged


def comment(text: str) -> str:
    """Return text that cannot end a comment or leave its line."""
    return re.sub(r"[^\w .,:;()@^+=-]", "_", text, flags=re.ASCII)


def checked_name(name: str) -> str:
    """Return a name that a user chose, if C, C++ and Verilog take it.

    Raises:
        ProbqError: if they do not.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name, flags=re.ASCII):
        raise ProbqError(f"{name!r:.80} is no name in C; use letters, digits and underscores, a letter first")
    return name


def identifier(text: str) -> str:
    """Return a C identifier made of any text.

    >>> identifier("my-net.v2"), identifier("3d")
    ('my_net_v2', 'm_3d')
    """
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    return name if re.match(r"[A-Za-z]", name) else f"m_{name}"
