"""Headers of several models in one C program: one compilation for all of them, and which of them differ."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import HealthCheck, find, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy
from random_models import inputs

from probq import IntegerModel
from probq.export import c
from probq.export.c_compile import build, execute

Models = Mapping[str, tuple[IntegerModel, np.ndarray]]


def differing(models: Models, folder: Path, *all_flags: tuple[str, ...]) -> dict[str, int]:
    """Outputs that differ in one program made of several models, by model; compiled with each set of flags."""
    includes, body, data = [], [], []
    for name, (model, x) in models.items():
        c.write(model, folder / f"{name}.h")
        _, kind, size, shape = c._signature(folder / f"{name}.h")
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
        build(folder / "main.c", folder / "main", [*flags, *c.WARNINGS])
        out, start = np.frombuffer(execute(folder / "main", b"".join(data)), np.int32), 0
        for name, (model, x) in models.items():
            expected = model.run(x).reshape(-1)
            found[name] += int((out[start : start + expected.size] != expected).sum())
            start += expected.size
        assert start == out.size
    return found


def smallest_differing(
    drawn: SearchStrategy[IntegerModel], count: int, folder: Path, *all_flags: tuple[str, ...], seed: int = 0
) -> IntegerModel | None:
    """The smallest model found for which any output differs; None where none of `count` does.

    All are compiled in one program first. Only if one differs, hypothesis draws the same again and shrinks it, one
    program for each try, with the flags that showed it.
    """
    models: dict[str, IntegerModel] = {}
    _found(drawn, count, seed, lambda model: models.update({f"m{model.sha256()}": model}))
    assert len(models) > count // 2
    batch = {name: (model, inputs(model, 12)) for name, model in models.items()}
    for flags in all_flags:
        known = {name: bool(wrong) for name, wrong in differing(batch, folder, flags).items()}
        if any(known.values()):
            return _found(drawn, count, seed, _Differs(known, folder, flags))
    return None


class _Differs(NamedTuple):
    """Whether any output of a model differs; `known` holds the answers by name."""

    known: dict[str, bool]
    folder: Path
    flags: tuple[str, ...]

    def __call__(self, model: IntegerModel) -> bool:
        name = f"m{model.sha256()}"
        if name not in self.known:
            self.known[name] = bool(differing({name: (model, inputs(model, 12))}, self.folder, self.flags)[name])
        return self.known[name]


def _found(
    drawn: SearchStrategy[IntegerModel], count: int, seed: int, wanted: Callable[[IntegerModel], object]
) -> IntegerModel | None:
    """The smallest wanted model; the same ones are drawn whenever the seed is the same."""
    once = settings(max_examples=count, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    try:
        return find(drawn, lambda model: bool(wanted(model)), settings=once, random=random.Random(seed))
    except NoSuchExample:
        return None
