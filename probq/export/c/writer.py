"""An integer model becomes one C99 header: integers only, no allocation, weights packed at their own width.

The header holds `void NAME_run(const T *input, int32_t *output)` for one example, NAME taken from the file's name. Its
values live in static pools whose size is known when it is written, so it is not reentrant. It computes what
`IntegerModel.run` computes, integer for integer, with any C99 compiler whose right shift of negative numbers is
arithmetic; a compiler of another kind refuses it.
"""

import math
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from probq.export.c.code.program import CSource, calls, functions
from probq.export.c.code.text import array, checked_name, identifier, indented
from probq.export.c.code.values import I8, I16, I32, U8, Type
from probq.export.c.compiler import build, execute
from probq.export.c.generator import generated, input_type
from probq.export.common import results
from probq.export.common.model_argument import require_model
from probq.integer import IntegerModel
from probq.utils.atomic_write import replace_atomically
from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path, target_path

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic")
TYPES = (U8, I8, I16, I32)

_HEAD = """\
/* {name}: an integer network, written by probq.

   {name}_run(input, output) computes one example; it needs no other memory than the static arrays below.
   Include this file in one C or C++ file only. It is not reentrant.

   model sha256   {sha256}
   output unit    {scale} (real output = integer * unit)
   input          {input}
   output         shape {shape}
   memory         {memory} bytes of scratch, {constants} bytes of constants */
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

#define {name}_INPUT_SIZE {inputs}
#define {name}_OUTPUT_SIZE {outputs}

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
#include "{header}"

int main(void)
{{
    static {type} input[{name}_INPUT_SIZE];
    static int32_t output[{name}_OUTPUT_SIZE];
    while (fread(input, sizeof input, 1, stdin) == 1) {{
        {name}_run(input, output);
        if (fwrite(output, sizeof output, 1, stdout) != 1) return 1;
    }}
    return 0;
}}
"""

_TEST = """\
/* Computes {count} examples of {name} and compares the outputs; returns 0 when none differs. */
#include <stdio.h>
#include "{header}"

{input}
{output}
int main(void)
{{
    static int32_t result[{name}_OUTPUT_SIZE];
    long differing = 0;
    for (long i = 0; i < {count}; i++) {{
        {name}_run(test_input + i * {name}_INPUT_SIZE, result);
        for (long o = 0; o < {name}_OUTPUT_SIZE; o++) differing += result[o] != test_output[i * {name}_OUTPUT_SIZE + o];
    }}
    printf("%ld of %ld outputs differ\\n", differing, (long){count} * {name}_OUTPUT_SIZE);
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
    text += ["", *p.helpers.values(), *functions(p)]
    kind = input_type(p, model.input).name
    text += [f"static inline void {name}_run(const {kind} *input, int32_t *output)", "{", *indented(lines), "}", ""]
    text += ["#if defined(__cplusplus)", "}", "#endif", f"#endif /* {_guard(name)} */", ""]
    return "\n".join(text).replace("*restrict ", f"*{name.upper()}_RESTRICT ")


def _named(path: Path, name: str | None) -> str:
    return identifier(path.stem) if name is None else checked_name(name)


def _guard(name: str) -> str:
    return f"PROBQ_{name.upper()}_H"


def _head(model: IntegerModel, p: CSource, pools: dict[int, int]) -> str:
    node = model.input
    scale = Fraction(model.output_scale)
    exact = f"{scale.numerator} / {scale.denominator}"
    if scale.numerator == 1 or scale.denominator == 1:
        exact += f" = 2^{math.frexp(model.output_scale)[1] - 1}" if math.frexp(model.output_scale)[0] == 0.5 else ""
    low, high = p.ranges[node.name].limits
    unit = "indices" if node.attributes.get("index") else f"integers of {Fraction(node.attributes['scale'])} each"
    constants = sum(_size(text) for text in p.constants)
    return _HEAD.format(
        name=p.name, upper=p.name.upper(), sha256=model.sha256(), scale=exact,
        shape=list(p.ranges[model.output].low.shape),
        input=f"shape {list(p.ranges[node.name].low.shape)}, {unit}, {low} .. {high}",
        memory=sum(bits // 8 * size for bits, size in pools.items()), constants=constants, guard=_guard(p.name),
        digest=model.sha256()[:16].upper(),
        inputs=p.ranges[node.name].low.size, outputs=p.ranges[model.output].low.size,
    )  # fmt: skip


def _size(text: str) -> int:
    """Return the number of bytes of a constant array, from its definition."""
    found = re.match(r"static const u?int(\d+)_t \w+\[(\d+)\]", text)
    return int(found[1]) // 8 * int(found[2]) if found else 0


def run(path: str | PathLike[str], integers: Any, flags: Sequence[str] = ("-O2",)) -> np.ndarray:
    """Return what a header computes when the system's C compiler has built it, int64 `[batch, ...]`.

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
def opened(path: str | PathLike[str], flags: Sequence[str] = ("-O2",)) -> Iterator[Callable[[Any], np.ndarray]]:
    """Give what `run` does as a function of the integers; the header is compiled once, for all of its calls.

    Raises:
        ProbqError: as `run`.
    """
    path = checked_path(path).resolve()
    name, kind, inputs, shape = _signature(path)
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "main.c", Path(folder) / "main"
        shutil.copyfile(path, Path(folder) / "model.h")
        source.write_text(_MAIN.format(header="model.h", type=kind.name, name=name), encoding="ascii")
        build(source, program, [*flags, *WARNINGS])

        def compute(integers: Any) -> np.ndarray:
            x = np.asarray(integers)
            if x.ndim == 0 or x.dtype.kind not in "iu" or x[:1].size not in (inputs, 0):
                raise ProbqError(
                    f"{path.name} takes {inputs} integers for each example, not {x.dtype} of shape {x.shape}"
                )
            if x.size and not kind.low <= x.min() <= x.max() <= kind.high:
                raise ProbqError(f"integers {x.min()} .. {x.max()} do not fit {kind.name}, the input of {path.name}")
            result = execute(program, np.ascontiguousarray(x, kind.name.removesuffix("_t")).tobytes())
            return results.shaped(np.frombuffer(result, np.int32).astype(np.int64), (len(x), *shape), path)

        yield compute


def _signature(path: Path) -> tuple[str, Type, int, list[int]]:
    """Return a header's name, input type, number of inputs and shape of the output."""
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ProbqError(f"cannot read {path}: {error}") from error
    sizes = re.search(r"#define (\w+)_INPUT_SIZE (\d{1,9})\n", text)
    kind = re.search(r"_run\(const (\w+) \*input, int32_t \*output\)", text)
    types = [each for each in TYPES if kind and each.name == kind[1]]
    shape = re.search(r"\n   output         shape \[([\d, ]*)\]\n", text)
    lengths = re.findall(r"\d+", shape[1]) if shape else []
    if not sizes or not types or not shape or any(len(n) > 9 for n in lengths):
        raise ProbqError(f"{path} is not a header that probq wrote")
    return sizes[1], types[0], int(sizes[2]), [int(n) for n in lengths]


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
    x = np.asarray(integers)
    expected = model.run(x)
    p = generated(model, name := _named(Path(header), name))
    kind = input_type(p, model.input)
    text = _TEST.format(
        name=name, header=header, count=len(x), input=array("test_input", kind, x),
        output=array("test_output", I32, expected),
    )  # fmt: skip
    with replace_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
