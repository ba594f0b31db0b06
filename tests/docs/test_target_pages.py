"""The pages on targets: every file they show is written, every command is run, and says what they show."""

from __future__ import annotations

import doctest
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "guides" / "targets"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="a source distribution has no manual")

BLOCK = re.compile(r"```(\S+)(?: \w+)?\n(?::caption: (\S+)\n\n)?(.*?)```", re.DOTALL)
NUMBER = re.compile(r"[\d,.]+(?= bytes| s\)| % right)|(?<=output \[)\d+")  # depends on the machine
NEEDS = {
    "index": ("cc",), "onnx": ("onnxruntime",), "c": ("cc",), "qonnx": ("qonnx",), "hls": ("hls4ml", "g++"),
    "verilog": ("da4ml", "iverilog"), "memory": ("iverilog",),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model of the first page, and a `probq` that is this one."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("targets")
    (folder / "bin").mkdir()
    for name, module in (("probq", "-m probq"), ("python", "")):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        program.chmod(0o755)
    (source,) = (text for _, name, text in BLOCK.findall((FOLDER / "index.md").read_text()) if name == "model.py")
    (folder / "model.py").write_text(source)
    called(folder, "python model.py")
    return folder


def called(folder: Path, command: str) -> str:
    """What a command says in the folder."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(FOLDER.parents[2])}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr[-2000:]}"
    return done.stdout


def examples(text: str) -> list[tuple[str, str]]:
    """Commands of a block, each with what it must say."""
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in re.split(r"(?:^|\n)\$ ", text)[1:]]


def alike(wanted: str, found: str) -> bool:
    """Whether outputs agree, apart from bytes and seconds."""
    plain = [NUMBER.sub("N", text).strip() for text in (wanted, found)]
    return doctest.OutputChecker().check_output(*plain, doctest.ELLIPSIS)


@pytest.mark.parametrize("page", NEEDS)
def test_commands_say_what_the_page_shows(place: Path, page: str) -> None:
    missing = [n for n in NEEDS[page] if importlib.util.find_spec(n) is None and shutil.which(n) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    for kind, name, text in BLOCK.findall((FOLDER / f"{page}.md").read_text(encoding="utf-8")):
        if name and name != "model.py":
            (place / name).write_text(text)
        for command, wanted in examples(text) if kind == "console" else ():
            if command != "python model.py":
                found = called(place, command)
                assert alike(wanted, found), f"{command} says\n{found}"


def test_every_page_is_run() -> None:
    assert sorted(NEEDS) == sorted(page.stem for page in FOLDER.glob("*.md"))
