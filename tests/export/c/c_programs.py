"""Headers of several models in one C program: one compilation for all of them, and which of them differ."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from random_models import inputs, seeded
from shrinking import smallest

from probq import IntegerModel
from probq.export.c import writer
from probq.export.c.compiler import build, execute
from probq.export.c.ports import given, to_bytes
from probq.integer.ports.outputs import by_name

Models = Mapping[str, tuple[IntegerModel, np.ndarray]]


def differing(models: Models, folder: Path, *all_flags: tuple[str, ...]) -> dict[str, int]:
    """Outputs that differ in one program made of several models, by model; compiled with each set of flags."""
    includes, body, data = [], [], []
    for name, (model, x) in models.items():
        writer.write(model, folder / f"{name}.h")
        _, ports = writer._signature(folder / f"{name}.h")
        inputs = [port for port in ports if port.is_input]
        includes.append(f'#include "{name}.h"')
        body += [
            "    {",
            *[f"      static {port.kind.name} {port.name}[{port.size}];" for port in ports],
            f"      for (int k = 0; k < {len(next(iter(given(inputs, x, name).values())))}; k++) {{",
            *[f"        if (fread({port.name}, sizeof {port.name}, 1, stdin) != 1) return 1;" for port in inputs],
            f"        {name}_run({', '.join(port.name for port in ports)});",
            *[f"        fwrite({port.name}, sizeof {port.name}, 1, stdout);" for port in ports if not port.is_input],
            "      } }",
        ]
        data.append(to_bytes(inputs, given(inputs, x, name)))
    text = ["#include <stdio.h>", *includes, "int main(void)", "{", *body, "    return 0;", "}", ""]
    (folder / "main.c").write_text("\n".join(text))
    found = dict.fromkeys(models, 0)
    for flags in all_flags:
        build(folder / "main.c", folder / "main", [*flags, *writer.WARNINGS])
        out, start = np.frombuffer(execute(folder / "main", b"".join(data)), np.int32), 0
        for name, (model, x) in models.items():
            found_by_name = by_name(model.output, model.run(x)).values()
            expected = np.concatenate([each.reshape(len(each), -1) for each in found_by_name], axis=1).reshape(-1)
            found[name] += int((out[start : start + expected.size] != expected).sum())
            start += expected.size
        assert start == out.size
    return found


def smallest_differing(seeds: Iterable[int], folder: Path, *all_flags: tuple[str, ...]) -> IntegerModel | None:
    """The smallest part of a seed's model of which any output differs; None where no model does.

    All are compiled in one program first. Only if one differs, its parts are, each by itself, with the flags that
    showed it.
    """
    models = {f"m{seed}": (model := seeded(seed), inputs(model, 12)) for seed in seeds}
    for flags in all_flags:
        wrong = [name for name, count in differing(models, folder, flags).items() if count]
        if wrong:
            return smallest(models[wrong[0]][0], lambda part: _differs(part, folder, flags))  # noqa: B023
    return None


def _differs(model: IntegerModel, folder: Path, flags: tuple[str, ...]) -> bool:
    return differing({"m": (model, inputs(model, 12))}, folder, flags)["m"] > 0
