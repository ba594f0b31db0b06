"""C headers of two models in one program, in C and in C++."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from random_models import inputs, seeded

from probq.export import c
from probq.integer import IntegerModel, Node
from probq.utils.errors import ProbqError

COMPILERS = [
    pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name.split()[0]), reason="no compiler"))
    for name in ("gcc -std=c99 -Wall -Wextra -pedantic -Werror -xc", "g++ -std=c++11 -Wall -Wextra -Werror -xc++")
]


def sum_model(weight: int) -> IntegerModel:
    x = Node("x", "input", (), {"shape": [3], "scale": 1.0, "lo": 0, "hi": 15})
    tensors = {"weight": np.full((1, 3), weight), "bias": np.array([1])}
    return IntegerModel([x, Node("fc", "linear", ("x",), {}, tensors)], "fc", 1.0)


def compiled(compiler: str, source: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "main.c").write_text(source)
    command = [*compiler.split(), "main.c", "-o", "main"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def program(*calls: str, headers: tuple[str, ...] = ("x/model.h", "y/model.h")) -> str:
    lines = [f'#include "{header}"\n' for header in headers]
    body = "".join(f"{name}_run(in, &out); s = s * 1000 + out;\n" for name in calls)
    return (
        "".join(lines)
        + "int main(void) { uint8_t in[3] = {1, 2, 3}; int32_t out; long s = 0;\n"
        + (body + f"return s != {calls and 7025 if len(calls) > 1 else 7}; }}\n")
    )


@pytest.mark.parametrize("compiler", COMPILERS)
def test_two_models_in_one_program(compiler: str, tmp_path: Path) -> None:
    """`1 + 6 = 7` and `1 + 4 * 6 = 25`; under one name they do not compile, and it is said why."""
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    c.write(sum_model(1), tmp_path / "x" / "model.h")
    c.write(sum_model(4), tmp_path / "y" / "model.h")
    done = compiled(compiler, program("model"), tmp_path)
    assert done.returncode
    assert "two models are named model" in done.stderr
    c.write(sum_model(4), tmp_path / "y" / "model.h", name="other")
    done = compiled(compiler, program("model", "other"), tmp_path)
    assert not done.returncode, done.stderr
    assert subprocess.run([tmp_path / "main"], check=False).returncode == 0
    c.write(sum_model(1), tmp_path / "y" / "model.h")  # the same model twice is one
    assert not compiled(compiler, program("model"), tmp_path).returncode


@pytest.mark.parametrize("compiler", COMPILERS)
def test_models_of_every_operation(compiler: str, tmp_path: Path) -> None:
    for seed in range(6):
        model = seeded(seed)
        c.write(model, tmp_path / "m.h", name="net")
        x = inputs(model, 4)
        c.write_test(model, tmp_path / "m_test.c", x, name="net")
        done = compiled(compiler, (tmp_path / "m_test.c").read_text(), tmp_path)
        assert not done.returncode, done.stderr
        assert subprocess.run([tmp_path / "main"], check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["", "a b", "3d", "é", "a\n"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProbqError, match="no name in C"):
        c.write(sum_model(1), tmp_path / "m.h", name=name)
