"""An integer model becomes one C99 header: integers only, no allocation, weights packed at their own width.

The header holds `void NAME_run(const T *input, int32_t *output)` for one example, NAME taken from the file's name. If
there are several inputs or outputs, each has a parameter, such as `input_pixels` and `output_boxes`. Its values live in
static pools whose size is known when it is written, so it is not reentrant. It computes what
`IntegerModel.run` computes, integer for integer, with any C99 compiler whose right shift of negative numbers is
arithmetic; a compiler of another kind refuses it.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from probq.export.c.code.program import CSource, calls, functions
from probq.export.c.code.text import checked_name, identifier, indented
from probq.export.c.compiler import build, execute
from probq.export.c.generator import exact, generated
from probq.export.c.ports import Port, from_bytes, given, parsed, to_bytes, vectors
from probq.export.common import results
from probq.export.common.model_argument import require_model
from probq.integer import IntegerModel
from probq.integer.ports.outputs import as_computed, by_name
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path, target_path

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic")

_HEAD = """\
/* {name}: an integer network, written by probq.

   {name}_run({arguments}) computes one example; it needs no other memory than the static arrays below.
   Include this file in one C or C++ file only. It is not reentrant.

   model sha256   {sha256}
   output unit    {scale}
{ports}
   memory         {memory} bytes of scratch{wide}, {constants} bytes of constants */
#if defined({guard}) && !defined({guard}_{digest})
#error "two models are named {name}; write one of them under another name: write(model, path, name=...)"
#elif !defined({guard})
#define {guard}
#define {guard}_{digest}
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__cplusplus)
#define {upper}_RESTRICT __restrict
extern "C" {{
#else
#define {upper}_RESTRICT restrict
#endif

{sizes}

/* One function for each step, compiled without a look at the others: it stays quick, and GCC 12, where it knows two
   places in one pool, may take a step for one without effect and drop it. */
#if defined(__has_attribute)
#if __has_attribute(noipa)
#define {upper}_STEP static __attribute__((noipa)) void
#endif
#endif
#if defined(__GNUC__) && !defined({upper}_STEP)
#define {upper}_STEP static __attribute__((noinline)) void
#elif !defined({upper}_STEP)
#define {upper}_STEP static void
#endif
#if defined(__GNUC__)
#define {upper}_POOL __attribute__((aligned(64))) static
#else
#define {upper}_POOL static
#endif

/* Rounding relies on an arithmetic right shift of negative numbers. */
typedef char {name}_shift_is_arithmetic[((-5) >> 1) == -3 ? 1 : -1];
"""

_MAIN = """\
#include <stdio.h>
#include "model.h"

int main(void)
{{
{buffers}
    while ({read}) {{
        {name}_run({arguments});
        if ({written}) return 1;
    }}
    return 0;
}}
"""

_TEST = """\
/* Computes {count} examples of {name} and compares the outputs; returns 0 when none differs. */
#include <stdio.h>
#include "{header}"

{vectors}
int main(void)
{{
{buffers}
    long differing = 0;
    for (long i = 0; i < {count}; i++) {{
        {name}_run({arguments});
{compared}
    }}
    printf("%ld of %ld outputs differ\\n", differing, (long){count} * {total});
    return differing ? 1 : 0;
}}
"""


def write(model: IntegerModel, path: str | PathLike[str], name: str | None = None) -> None:
    """Write the header; it appears whole or not at all.

    Args:
        model: the integers.
        path: the path of the header.
        name: prefix of all names; by default the file's name without its ending, as a C identifier. Two models in one
            program need two names.

    Raises:
        ProbqError: a value could leave 31 bits and is no sum that is rounded next, or has no elements; the name is no
            C identifier, or the file cannot be written.
    """
    require_model(model, "export.c.write")
    path = target_path(path)
    text = header(model, _named(path, name))
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="ascii")


def header(model: IntegerModel, name: str) -> str:
    """Return the text of the header.

    Raises:
        ProbqError: as `write`.
    """
    p = generated(model, name)
    lines, pools = calls(p)
    kinds = {8: "uint8_t", 16: "int16_t", 32: "int32_t", 64: "uint64_t"}
    text = [_head(model, p, pools), *p.constants]
    text += [f"{name.upper()}_POOL {kinds[bits]} {name}_pool{bits}[{size}];" for bits, size in sorted(pools.items())]
    if p.wide:
        text += ["#if defined(__SSE2__)", f"{name.upper()}_POOL int16_t {name}_wide[{p.wide}];", "#endif"]
    text += ["", *p.helpers.values(), *functions(p)]
    parameters = ", ".join(port.parameter for port in p.ports)
    text += [f"static inline void {name}_run({parameters})", "{", *indented(lines), "}", ""]
    text += ["#if defined(__cplusplus)", "}", "#endif", f"#endif /* {_guard(name)} */", ""]
    return "\n".join(text).replace("*restrict ", f"*{name.upper()}_RESTRICT ")


def _named(path: Path, name: str | None) -> str:
    return identifier(path.stem) if name is None else checked_name(name)


def _guard(name: str) -> str:
    return f"PROBQ_{name.upper()}_H"


def _head(model: IntegerModel, p: CSource, pools: dict[int, int]) -> str:
    units = {output.scale for output in model.outputs}
    scale = f"{exact(units.pop())} (real output = integer * unit)" if len(units) == 1 else "that of each output below"
    constants = sum(_size(text) for text in p.constants)
    return _HEAD.format(
        name=p.name, upper=p.name.upper(), sha256=model.sha256(), scale=scale, guard=_guard(p.name),
        arguments=", ".join(port.name for port in p.ports), ports="\n".join(port.line for port in p.ports),
        sizes="\n".join(f"#define {p.name}_{port.macro} {port.size}" for port in p.ports),
        memory=sum(bits // 8 * size for bits, size in pools.items()), constants=constants,
        wide=f" ({2 * p.wide} more on x86)" if p.wide else "", digest=model.sha256()[:16].upper(),
    )  # fmt: skip


def _size(text: str) -> int:
    """Return the number of bytes of a constant array, from its definition."""
    found = re.match(r"static const u?int(\d+)_t \w+\[(\d+)\]", text)
    return int(found[1]) // 8 * int(found[2]) if found else 0


def run(path: str | PathLike[str], integers: Any, flags: Sequence[str] = ("-O2",)) -> Any:
    """Return what a header computes when the system's C compiler has built it, int64 `[batch, ...]`.

    The result is a tuple of arrays where the model has several outputs.

    Args:
        path: the path of a header that `write` wrote.
        integers: those of `IntegerModel.quantize_input`, the batch first.
        flags: for the compiler.

    Raises:
        ProbqError: there is no compiler, the file is not such a header, or the integers do not fit it.
    """
    with opened(path, flags) as compute:
        return compute(integers)


@contextmanager
def opened(path: str | PathLike[str], flags: Sequence[str] = ("-O2",)) -> Iterator[Callable[[Any], Any]]:
    """Give what `run` does as a function of the integers; the header is compiled once, for all of its calls.

    Raises:
        ProbqError: as `run`.
    """
    path = checked_path(path).resolve()
    name, ports = _signature(path)
    inputs, outputs = ([port for port in ports if port.is_input is end] for end in (True, False))
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "main.c", Path(folder) / "main"
        shutil.copyfile(path, Path(folder) / "model.h")
        source.write_text(_main(name, ports), encoding="ascii")
        build(source, program, [*flags, *WARNINGS])

        def compute(integers: Any) -> Any:
            arrays = given(inputs, integers, path.name)
            count = len(arrays[inputs[0].name])
            found = from_bytes(outputs, execute(program, to_bytes(inputs, arrays)))
            pairs = zip(outputs, found, strict=True)
            return as_computed([results.shaped(each, (count, *port.shape), path) for port, each in pairs])

        yield compute


def _main(name: str, ports: Sequence[Port]) -> str:
    """Return a program that reads examples and writes their outputs."""
    read = [f"fread({port.name}, sizeof {port.name}, 1, stdin) == 1" for port in ports if port.is_input]
    written = [f"fwrite({port.name}, sizeof {port.name}, 1, stdout) != 1" for port in ports if not port.is_input]
    buffers = [f"    static {port.kind.name} {port.name}[{name}_{port.macro}];" for port in ports]
    return _MAIN.format(
        name=name, buffers="\n".join(buffers), read=" && ".join(read), written=" || ".join(written),
        arguments=", ".join(port.name for port in ports),
    )  # fmt: skip


def _signature(path: Path) -> tuple[str, list[Port]]:
    """Return a header's name, and its inputs and outputs."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ProbqError(f"cannot read {path}: {error}") from error
    found = parsed(text)
    if found is None:
        raise ProbqError(f"{path} is not a header that probq wrote")
    return found


def write_test(
    model: IntegerModel, path: str | PathLike[str], integers: Any, header: str = "", name: str | None = None
) -> None:
    """Write a C program with inputs and the outputs they must give; it returns 0 when none differs.

    Args:
        model: the integers.
        path: the path of the program.
        integers: inputs as `IntegerModel.quantize_input` gives them, the batch first.
        header: name of the header it includes, by default `path` with the ending `.h` and without a final `_test`.
        name: that the header was written with, by default of its file.

    Raises:
        ProbqError: the integers leave the input's range, or the file cannot be written.
    """
    path = target_path(path)
    header = header or f"{path.stem.removesuffix('_test')}.h"
    expected = by_name(model.output, model.run(integers)).values()
    ports = generated(model, name := _named(Path(header), name)).ports
    inputs, outputs = ([port for port in ports if port.is_input is end] for end in (True, False))
    arrays = given(inputs, integers, header) | dict(zip((port.name for port in outputs), expected, strict=True))
    sizes = {port.name: f"{name}_{port.macro}" for port in ports}
    compared = [
        f"        for (long o = 0; o < {sizes[o]}; o++) differing += {o}[o] != test_{o}[i * {sizes[o]} + o];"
        for o in (port.name for port in outputs)
    ]
    arguments = [f"test_{port.name} + i * {sizes[port.name]}" for port in inputs] + [port.name for port in outputs]
    total = " + ".join(sizes[port.name] for port in outputs)
    total = total if len(outputs) == 1 else f"({total})"
    text = _TEST.format(
        name=name, header=header, count=len(arrays[inputs[0].name]), vectors="\n".join(vectors(ports, arrays)),
        buffers="\n".join(f"    static int32_t {o.name}[{sizes[o.name]}];" for o in outputs),
        arguments=", ".join(arguments), compared="\n".join(compared), total=total,
    )  # fmt: skip
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
