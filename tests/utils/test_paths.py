"""Whatever path is given to what reads or writes a file, it works or is refused in a sentence, and nothing is left."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq import export, plot
from probq.cli.command_line import main
from probq.evaluation.reporting import certificates
from probq.export.verification import Report
from probq.integer import Node
from probq.utils.atomic_write import replace_atomically
from probq.utils.paths import checked_path, reason, target_path

NET = nn.Sequential(nn.Linear(2, 2)).eval()
X = torch.tensor([[0.3, 0.9], [-0.7, 0.2]])
MODEL = probq.IntegerModel([Node("x", "input", attributes={"shape": [2], "scale": 0.5, "lo": 0, "hi": 3})], "x", 0.5)
CODES = np.array([[0, 1], [2, 3]])


def posterior() -> Any:
    torch.manual_seed(0)
    return probq.quantize(NET, X)


def text(path: Any, error: OSError | None = None) -> None:
    with replace_atomically(path) as temporary:
        temporary.write_text("")
        if error is not None:
            raise error


WRITERS: dict[str, Callable[[Any], Any]] = {
    "text": text,
    "c": lambda path: export.c.write(MODEL, path, "m"),
    "c test": lambda path: export.c.write_test(MODEL, path, CODES, "m.h"),
    "memory": lambda path: export.memory.write(MODEL, path),
    "integer model": MODEL.save,
    "ensemble": lambda path: probq.Ensemble([MODEL]).save(path),
    "posterior": lambda path: posterior().save(path),
    "report": lambda path: probq.report(MODEL, path),
    "picture": lambda path: plot.save(plot.widths(MODEL), path),
}
READERS: dict[str, Callable[[Any], Any]] = {
    "c": lambda path: export.c.run(path, CODES),
    "memory": lambda path: export.memory.run(path, CODES),
    "hls": lambda path: export.hls.run(path, CODES),
    "verilog": lambda path: export.verilog.run(path, CODES),
    "verify": lambda path: export.verify(MODEL, path, CODES / 2),
    "certify": lambda path: export.certify(MODEL, path, Report("c", 1, 0, 1.0)),
    "certificate": certificates.read,
    "integer model": probq.IntegerModel.load,
    "ensemble": probq.Ensemble.load,
    "posterior": lambda path: probq.load(path, NET),
    "report": lambda path: probq.report(path, "page.html"),
    "cost": probq.cost.table,
}
# What no file can be, in a folder that holds a file and a folder with something in it.
PATHS: dict[str, Callable[[Path], Any]] = {
    "below a file": lambda here: here / "file" / "a.png",
    "far below a file": lambda here: here / "file" / "a" / "b.png",
    "in no folder": lambda here: here / "none" / "a.png",
    "a folder": lambda here: here / "folder.png",
    "too long": lambda here: here / f"{'a' * 300}.png",
    "empty": lambda here: "",
    "here": lambda here: ".",
    "root": lambda here: os.path.abspath(os.sep),
    "null": lambda here: f"{here}/a\0b.png",
    "half of a character": lambda here: f"{here}/a\ud800.png",
    "bytes": lambda here: os.fsencode(here / "a.png"),
    "number": lambda here: 3,
    "nothing": lambda here: None,
}
everywhere = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("file")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "more").write_text("more")
    return tmp_path


@everywhere
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_writers_refuse_in_a_sentence_and_leave_nothing(write: Any, path: Any, here: Path) -> None:
    with pytest.raises(probq.ProbqError) as refused:
        write(path(here))
    message = str(refused.value)
    assert ".probq-" not in message, "names a temporary file"
    assert "\n" not in message
    assert sorted(str(file.relative_to(here)) for file in here.rglob("*")) == ["file", "folder.png", "folder.png/more"]
    assert (here / "file").read_text() == "file"


@everywhere
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_readers_refuse_in_a_sentence(read: Any, path: Any, here: Path) -> None:
    if read is READERS["certify"] and path is PATHS["a folder"]:
        return  # artefacts are folders too, and their content is not asked
    with pytest.raises(probq.ProbqError):
        read(path(here))
    assert not (here / "page.html").exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EIO])
def test_what_the_system_says_while_writing_is_said(number: int, here: Path) -> None:
    with pytest.raises(probq.ProbqError, match=os.strerror(number)):
        text(here / "a", OSError(number, os.strerror(number)))
    assert not list(here.glob("*probq*"))


@pytest.mark.parametrize("check", [checked_path, target_path])
def test_a_folder_that_may_not_be_entered(check: Any, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, **_: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(probq.ProbqError, match=r"cannot be reached \(Permission denied\)"):
        check(here / "a")


def test_a_link_to_itself_can_be_replaced(here: Path) -> None:
    (here / "loop").symlink_to("loop")
    text(here / "loop")
    assert (here / "loop").read_text() == ""


def test_an_error_without_a_number_has_its_own_words() -> None:
    assert reason(OSError("no room")) == "no room"


def test_fits_ask_for_the_path_before_they_begin(here: Path) -> None:
    for path, part in ((3, "not int"), ("", "names no file"), ("a\0", "cannot be the name")):
        with pytest.raises(probq.ProbqError, match=part):
            probq.fit(posterior(), [(X, torch.tensor([0, 1]))], epochs=10**9, progress=False, checkpoint=path)


def test_pareto_asks_for_its_folder_before_it_begins(here: Path) -> None:
    for path, part in ((3, "not int"), ("file", "cannot make the folder"), ("a\0", "cannot be the name")):
        with pytest.raises(probq.ProbqError, match=part):
            probq.pareto(
                NET, X, [(X, torch.tensor([0, 1]))], [probq.Budget(percent=3.0)], epochs=10**9, folder=path,
                progress=False,
            )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "m", "--to", "c", "--out", "."),
        ("export", "m", "--to", "c", "--out", "file/out"),
        ("export", "m", "--to", "c", "--out", "out", "--name", "a" * 300),
        ("verify", "m", "a" * 300),
        ("verify", "m", "file/m.h"),
        ("report", "m", "--out", "file/page.html"),
        ("report", "m", "--out", f"{'a' * 300}.html"),
        ("report", "a" * 300, "--out", "page.html"),
        ("show", "a" * 300),
        ("show", "folder.png"),
        ("show", "file/m"),
    ],
)
def test_commands_refuse_in_one_line(arguments: Any, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MODEL.save(here / "m")
    if arguments[-1] == ".":
        (here / "m.h").mkdir()
    assert main(list(arguments)) == 2
    assert capsys.readouterr().err.count("\n") == 1
