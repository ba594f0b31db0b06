"""What files claim is shown without obeying it, and what killed writers left is removed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from probq.cli.command_line import main
from probq.export import c
from probq.export.common.artifact_folder import replace_folder
from probq.integer import IntegerModel, Node
from probq.integer.ensemble import Ensemble
from probq.integer.layer_table import layers_of
from probq.utils.atomic_write import replace_atomically, temporary_name
from probq.utils.errors import ProbqError, printable

EVIL = "fc\x1b[2J\x07\u202e"


def model(name: str = "fc", bound: int = 0) -> IntegerModel:
    x = Node("x", "input", (), {"shape": [2], "scale": 1.0, "lo": 0, "hi": 15})
    tensors = {"weight": np.array([[3, -5]]), "bias": np.array([1])}
    metadata = {"versions": {EVIL: EVIL}}
    return IntegerModel([x, Node(name, "linear", ("x",), {}, tensors, bound=bound)], name, 1.0, metadata)


def test_terminals_obey_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.safetensors"
    model(EVIL).save(path)
    commands = [["show", str(path)], ["export", str(path), "--to", "c", "--out", str(tmp_path)]]
    commands += [["verify", str(path), str(tmp_path / f"{EVIL}.h")]]
    for command in commands:
        main(command)
        written = "".join(capsys.readouterr())
        assert all(letter.isprintable() or letter == "\n" for letter in written)
    with pytest.raises(ProbqError) as caught:
        IntegerModel([*model(EVIL).nodes, model(EVIL).nodes[1]], "x", 1.0)
    assert printable(EVIL) in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert printable("größe µ\n") == "größe µ\n"


@pytest.mark.parametrize("claimed", [1, 2**40])
def test_a_claimed_bound_is_proven_again(claimed: int, tmp_path: Path) -> None:
    """`1 + 3 * 15 = 46` and `1 - 5 * 15 = -74`: seven bits and a sign."""
    model(bound=claimed).save(tmp_path / "m")
    loaded = IntegerModel.load(tmp_path / "m")
    assert (loaded.ranges["fc"].low, loaded.ranges["fc"].high) == (-74, 46)
    assert layers_of(loaded)[0].accumulator_bits == 8


def _folder(path: Path) -> None:
    with replace_folder(path) as folder:
        (folder / "probq.json").write_text("{}")


def _file(path: Path) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text("1")


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "file": ("with replace_atomically(path) as new: new.write_text('half'); os._exit(9)", _file),
    "folder": ("with replace_folder(path) as new: (new / 'half').write_text(''); os._exit(9)", _folder),
    "model": (
        "with replace_atomically(path) as new: new.write_text('half'); os._exit(9)",
        lambda path: model().save(path),
    ),
    "header": (
        "with replace_atomically(path) as new: new.write_text('half'); os._exit(9)",
        lambda path: c.write(model(), path),
    ),
    "ensemble": ("temporary_name(path).mkdir(); os._exit(9)", lambda path: Ensemble([model()]).save(path)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_killed_writer_left_is_removed_by_the_next(kind: str, tmp_path: Path) -> None:
    killed, write = WRITERS[kind]
    head = "import os, sys; from pathlib import Path; "
    head += "from probq.utils.atomic_write import replace_atomically, temporary_name; "
    head += "from probq.export.common.artifact_folder import replace_folder; path = Path(sys.argv[1])\n"
    path, other = tmp_path / "a.h", tmp_path / "b.h"
    for target in (path, other):
        assert subprocess.run([sys.executable, "-c", head + killed, str(target)], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 2
    mine = temporary_name(path)  # of a process that runs
    mine.write_text("")
    write(path)
    assert mine.exists()
    assert sorted(file.name.rpartition(".b")[2] for file in tmp_path.iterdir() if file != mine) == [".h", "a.h"]
    mine.unlink()
    write(other)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h", "b.h"]
