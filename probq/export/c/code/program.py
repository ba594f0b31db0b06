"""A C program is put together of steps that read and write buffers, constants, and a place for every buffer."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from probq.export.c.code.text import array, comment, indented
from probq.export.c.code.values import I8, I16, I32, I64, U8, U16, Buffer, ElementRange, Type, View, dense, narrowest

LINE = 64  # bytes; every buffer begins on a multiple
CONSTANTS = (U8, I8, U16, I16, I32, I64)


@dataclass(frozen=True)
class CStep:
    """A step is one function of the program: its parameters are named buffers, its body is C lines.

    A timed one takes the time step `t` of the loop that it is in.
    """

    title: str
    inputs: Mapping[str, Buffer]
    outputs: Mapping[str, Buffer]
    body: tuple[str, ...]
    timed: bool = False

    @property
    def buffers(self) -> Iterable[Buffer]:
        """Return all buffers that the step touches."""
        return (*self.inputs.values(), *self.outputs.values())


@dataclass
class CSource:
    """This holds what has been put together so far.

    Attributes:
        name: C identifier, the prefix of everything.
        ranges: the ranges of every node's value.
        views: where the value of each node lies.
        steps: in order.
        constants: definitions of constant arrays.
        helpers: texts of the helper functions in use, by their full names.
        ports: parameters of the function, inputs first.
        loops: first and last step of each loop, how many time steps it takes, and whether the last one comes first.
        wide: elements of the array that takes weights in 16 bits on processors that multiply them so.
        choices: first and last step of each branch of a switch, its choice, and the branch's number.
    """

    name: str
    ranges: Mapping[str, ElementRange]
    views: dict[str, View] = field(default_factory=dict)
    steps: list[CStep] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    helpers: dict[str, str] = field(default_factory=dict)
    ports: list[Any] = field(default_factory=list)
    loops: list[tuple[int, int, int, bool]] = field(default_factory=list)
    choices: list[tuple[int, int, View, int]] = field(default_factory=list)
    buffers: int = 0
    wide: int = 0

    def buffer(self, kind: Type, elements: int, fixed: str = "") -> Buffer:
        """Return a new buffer."""
        self.buffers += 1
        return Buffer(self.buffers, kind, elements, fixed)

    def view(self, kind: Type, shape: Sequence[int], order: Sequence[int] | None = None) -> View:
        """Return a new buffer for a value whose axes lie in the given order."""
        size = int(np.prod(shape, dtype=np.int64))
        return View(self.buffer(kind, size), tuple(shape), dense(shape, order))

    def constant(self, values: np.ndarray, kind: Type | None = None) -> str:
        """Name of a constant array, of the narrowest type by default."""
        kind = narrowest(int(values.min()), int(values.max()), CONSTANTS) if kind is None else kind
        name = f"{self.name}_data{len(self.constants)}"
        self.constants.append(array(name, kind, values))
        return name

    def helper(self, name: str, text: str) -> str:
        """Return the full name of a helper function whose text, with `NAME` for its name, is included once."""
        full = f"{self.name}_{name}"
        self.helpers.setdefault(full, text.replace("NAME", full))
        return full

    def step(
        self, title: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], body: Iterable[str],
        timed: bool = False,
    ) -> None:  # fmt: skip
        """Add a step; `outputs` holds its scratch as well."""
        self.steps.append(CStep(title, dict(inputs), dict(outputs), tuple(body), timed))


def functions(program: CSource) -> list[str]:
    """Return the C lines of every step's function."""
    lines: list[str] = []
    for number, step in enumerate(program.steps):
        parameters = [f"const {b.type.name} *restrict {name}" for name, b in step.inputs.items()]
        parameters += [f"{b.type.name} *restrict {name}" for name, b in step.outputs.items()]
        parameters += ["int32_t t"] * step.timed
        lines += [
            f"/* {comment(step.title)} */",
            f"{program.name.upper()}_STEP {program.name}_step{number}({', '.join(parameters)})",
        ]
        body = "\n".join(step.body)
        taken = [*step.inputs, *["t"] * step.timed]
        unused = [f"(void){each};" for each in taken if not re.search(rf"\b{each}\b", body)]
        lines += ["{", *indented([*unused, *step.body]), "}", ""]
    return lines


def calls(program: CSource) -> tuple[list[str], dict[int, int]]:
    """Return the C lines that call the steps, and the elements that the pool of each number of bits needs."""
    places, sizes = _placed(program.steps)

    def pointer(buffer: Buffer) -> str:
        place = f"{program.name}_pool{buffer.type.bits} + {places.get(buffer.key)}"
        return buffer.fixed or (f"({buffer.type.name} *)({place})" if buffer.type in (I8, I64) else place)

    lines: list[str] = []
    begins = {first: _counted(count, reverse) for first, _, count, reverse in program.loops}
    begins |= {
        first: f"if ({_element(pointer(choice.buffer), choice.offset)} == {number}) {{"
        for first, _, choice, number in program.choices
    }
    ends = {last for _, last, _, _ in (*program.loops, *program.choices)}
    inside = False
    for number, step in enumerate(program.steps):
        if number in begins:
            lines.append(begins[number])
            inside = True
        call = f"{program.name}_step{number}({', '.join([*map(pointer, step.buffers), *['t'] * step.timed])});"
        lines += indented([call]) if inside else [call]
        if number in ends:
            lines.append("}")
            inside = False
    return lines, sizes


def _counted(count: int, reverse: bool) -> str:
    """Return the line of C that begins a loop."""
    head = f"int32_t t = {count - 1}; t >= 0; t--" if reverse else f"int32_t t = 0; t < {count}; t++"
    return f"for ({head}) {{"


def _element(pointer: str, place: int) -> str:
    """Return an element at a pointer."""
    return f"({pointer})[{place}]"


def _placed(steps: Sequence[CStep]) -> tuple[dict[int, int], dict[int, int]]:
    """Return the offset of every buffer in the pool of its width.

    The largest come first, each into the first gap free while it lives.
    """
    life: dict[int, tuple[Buffer, int, int]] = {}
    for number, step in enumerate(steps):
        for buffer in step.buffers:
            if not buffer.fixed:
                life[buffer.key] = (buffer, life.get(buffer.key, (buffer, number, number))[1], number)
    places: dict[int, int] = {}
    placed: dict[int, list[tuple[tuple[int, int], int, int]]] = {}  # by bits: place, first and last step
    sizes: dict[int, int] = {}
    for buffer, first, last in sorted(life.values(), key=lambda each: (-each[0].elements, each[0].key)):
        bits, unit = buffer.type.bits, LINE * 8 // buffer.type.bits
        others = placed.setdefault(bits, [])
        size = -(-buffer.elements // unit) * unit
        place = 0
        for start, end in sorted(span for span, since, until in others if since <= last and first <= until):
            if place + size <= start:
                break
            place = max(place, end)
        places[buffer.key] = place
        others.append(((place, place + size), first, last))
        sizes[bits] = max(sizes.get(bits, 0), place + size)
    return places, sizes
