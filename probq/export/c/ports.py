"""The parameters of a header's function, one for each input and output, and how a program reads and writes them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from probq.export.c.code.text import array, identifier
from probq.export.c.code.values import I8, I16, I32, U8, Type
from probq.utils.errors import ProbqError

TYPES = (U8, I8, I16, I32)


@dataclass(frozen=True)
class Port:
    """A port is a parameter of the function, an array for one example.

    Attributes:
        name: of the parameter, and in capitals in the macro of its size; "input" or "output" where there is one.
        kind: the type of one element.
        shape: without the batch.
        about: what stands behind the shape in the header's comment.
    """

    name: str
    kind: Type
    shape: tuple[int, ...]
    about: str = ""

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)

    @property
    def is_input(self) -> bool:
        """Return whether it is read."""
        return self.name.startswith("input")

    @property
    def parameter(self) -> str:
        """Return the declaration."""
        return f"{'const ' if self.is_input else ''}{self.kind.name} *{self.name}"

    @property
    def macro(self) -> str:
        """Return the end of the name of the macro with its size."""
        return f"{self.name.upper()}_SIZE"

    @property
    def line(self) -> str:
        """Return its line in the header's comment."""
        return f"   {self.name:<14} shape {list(self.shape)}{self.about}"


def names(kind: str, of: Sequence[str]) -> list[str]:
    """Return the names of parameters for inputs or outputs; the kind alone where there is one.

    >>> names("input", ["x"]), names("output", ["output.a", "output.b@2"])
    (['input'], ['output_a', 'output_b_2'])
    """
    if len(of) == 1:
        return [kind]
    found: list[str] = []
    for name in of:
        own = f"{kind}_{identifier('x' + name.removeprefix(f'{kind}.'))[1:]}"
        while own.upper() in (other.upper() for other in found):
            own += "_"
        found.append(own)
    return found


def about(node: Any, limits: tuple[int, int]) -> str:
    """Return what the header says about an input behind its shape."""
    unit = "indices" if node.attributes.get("index") else f"integers of {Fraction(node.attributes['scale'])} each"
    return f", {unit}, {limits[0]} .. {limits[1]}"


def parsed(text: str) -> tuple[str, list[Port]] | None:
    """Return the name and the ports of a header, or None where probq did not write it."""
    found = re.search(r"static inline void (\w{1,1000})_run\(([\w *,]{1,100000})\)\n", text)
    if not found:
        return None
    ports = []
    for parameter in found[2].split(", "):
        own = re.fullmatch(r"(?:const )?(\w+) \*(\w+)", parameter)
        kind = next((kind for kind in TYPES if own and kind.name == own[1]), None)
        shape = own and re.search(rf"\n   {own[2]} +shape \[([\d, ]*)\]", text)
        if not own or kind is None or not shape or any(len(n) > 9 for n in re.findall(r"\d+", shape[1])):
            return None
        port = Port(own[2], kind, tuple(int(n) for n in re.findall(r"\d+", shape[1])))
        if f"#define {found[1]}_{port.macro} {port.size}\n" not in text:
            return None
        ports.append(port)
    inputs = [port.is_input for port in ports]
    return (found[1], ports) if True in inputs and False in inputs else None


def given(ports: Sequence[Port], integers: Any, what: str) -> dict[str, np.ndarray]:
    """Return the integers of each input by the name of its parameter.

    Args:
        ports: the inputs.
        integers: an array, or a dictionary by the names of the model's inputs where there are several.
        what: the header, for messages.

    Raises:
        ProbqError: they are not those of the inputs, do not fit their types, or are batches of different lengths.
    """
    if len(ports) == 1:
        arrays = {ports[0].name: np.asarray(integers)}
    else:
        own = [port.name for port in ports]
        keys = names("input", list(integers)) if isinstance(integers, Mapping) else []
        if sorted(keys) != sorted(own):
            raise ProbqError(f"{what} takes a dictionary of the integers of {', '.join(own)}")
        arrays = dict(zip(keys, map(np.asarray, integers.values()), strict=True))
    for port in ports:
        _check(port, arrays[port.name], what)
    if len({len(x) for x in arrays.values()}) > 1:
        raise ProbqError(f"{what} is given batches of different lengths; give one length")
    return {port.name: arrays[port.name] for port in ports}


def _check(port: Port, x: np.ndarray, what: str) -> None:
    if x.ndim == 0 or x.dtype.kind not in "iu" or x[:1].size not in (port.size, 0):
        raise ProbqError(f"{what} takes {port.size} integers for each example, not {x.dtype} of shape {x.shape}")
    if x.size and not port.kind.low <= x.min() <= x.max() <= port.kind.high:
        raise ProbqError(f"integers {x.min()} .. {x.max()} do not fit {port.kind.name}, the {port.name} of {what}")


def to_bytes(ports: Sequence[Port], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return what a program reads: for each example the inputs in order."""
    rows = []
    for port in ports:
        x = np.ascontiguousarray(arrays[port.name], port.kind.name.removesuffix("_t"))
        rows.append(x.view(np.uint8).reshape(len(x), port.size * port.kind.bits // 8))
    return np.concatenate(rows, axis=1).tobytes()


def from_bytes(ports: Sequence[Port], data: bytes) -> list[np.ndarray]:
    """Return what a program wrote, int64 `[examples, elements]` of each output."""
    total = sum(port.size for port in ports)
    found = np.frombuffer(data[: len(data) // (4 * total) * 4 * total], np.int32).astype(np.int64).reshape(-1, total)
    return np.split(found, np.cumsum([port.size for port in ports])[:-1].tolist(), axis=1)


def vectors(ports: Iterable[Port], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return the definitions of a test program's inputs and outputs, as constant arrays."""
    return [array(f"test_{port.name}", port.kind, arrays[port.name]) for port in ports]
