"""Headers of several models in one C program: one compilation for all of them, and which of them differ."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from random_models import inputs, seeded
from shrinking import smallest

from probq import IntegerModel
from probq.export.c import writer
from probq.export.c.compiler import build, execute

Models = Mapping[str, tuple[IntegerModel, np.ndarray]]


def differing(models: Models, folder: Path, *all_flags: tuple[str, ...]) -> dict[str, int]:
    """Outputs that differ in one program made of several models, by model; compiled with each set of flags."""
    includes, body, data = [], [], []
    for name, (model, x) in models.items():
        writer.write(model, folder / f"{name}.h")
        _, kind, size, shape = writer._signature(folder / f"{name}.h")
        includes.append(f'#include "{name}.h"')
        body += [
            f"    {{ static {kind.name} x[{size}]; static int32_t y[{int(np.prod(shape))}];",
            f"      for (int k = 0; k < {len(x)}; k++) {{",
            "        if (fread(x, sizeof x, 1, stdin) != 1) return 1;",
            f"        {name}_run(x, y); fwrite(y, sizeof y, 1, stdout); }} }}",
        ]
        data.append(x.astype(kind.name.removesuffix("_t")).tobytes())
    text = ["#include <stdio.h>", *includes, "int main(void)", "{", *body, "    return 0;", "}", ""]
    (folder / "main.c").write_text("\n".join(text))
    found = dict.fromkeys(models, 0)
    for flags in all_flags:
        build(folder / "main.c", folder / "main", [*flags, *writer.WARNINGS])
        out, start = np.frombuffer(execute(folder / "main", b"".join(data)), np.int32), 0
        for name, (model, x) in models.items():
            expected = model.run(x).reshape(-1)
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
