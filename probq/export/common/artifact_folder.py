"""Artefacts that are a folder appear whole or not at all, and say in `probq.json` which target wrote them."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

from probq.utils.atomic_write import temporary_name
from probq.utils.errors import ProbqError
from probq.utils.paths import checked_path, reason, target_path

INDEX = "probq.json"
VERSION = 1
MOST_ELEMENTS = 2**28  # of a program's input or output
LARGEST: Mapping[str, int] = MappingProxyType({"low": 2**53, "high": 2**53, "exponent": 1000})


@contextmanager
def replace_folder(path: str | PathLike[str]) -> Iterator[Path]:
    """Give a new folder beside `path` within the context; what was written there is moved to `path` at the end.

    An artefact of an earlier time, or an empty folder, is replaced.

    Raises:
        ProbqError: `path` is a file or a folder of something else, or cannot be written.
    """
    path = target_path(path)
    if path.exists() and not (path / INDEX).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise ProbqError(f"{path} exists and is no artefact of probq; name another folder, or remove it first")
    new, old = temporary_name(path), temporary_name(path)
    try:
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    except OSError as error:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise ProbqError(f"cannot write {path}: {reason(error)}; name a folder inside one that exists") from error
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_index(folder: Path, target: str, content: dict[str, Any]) -> None:
    """Write the index of a folder: its target and whatever `run` needs to read the rest."""
    index = {"format": f"probq.{target}", "version": VERSION, **content}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def target_of(path: Path) -> str:
    """Return the target that wrote a folder: "memory", "verilog" or "hls".

    Raises:
        ProbqError: it is no artefact of probq.
    """
    return str(_read(path)["format"]).removeprefix("probq.")


def read_index(path: str | PathLike[str], target: str) -> dict[str, Any]:
    """Return the index of a folder that the target wrote.

    Raises:
        ProbqError: there is no such folder, or another target or a later version of probq wrote it.
    """
    index = _read(checked_path(path))
    if index["format"] != f"probq.{target}":
        raise ProbqError(f"{path} is not a folder that probq.export.{target}.write wrote")
    if index.get("version") != VERSION:
        raise ProbqError(f"{path} has version {index.get('version')!r:.20}, this probq reads {VERSION}; write it again")
    return index


def port(index: dict[str, Any], end: str, numbers: tuple[str, ...]) -> dict[str, Any]:
    """Return what an index says about the "input" or "output" of a program.

    Raises:
        ProbqError: its shape is none, or one of the named numbers is no integer.
    """
    spec = index.get(end)
    shape = spec.get("shape") if isinstance(spec, dict) else None
    sane = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not isinstance(spec, dict) or not sane or math.prod(max(1, size) for size in spec["shape"]) > MOST_ELEMENTS:
        raise ProbqError(f"the {INDEX} has no shape of the {end}, or is damaged; write the folder again")
    for name in numbers:
        if type(spec.get(name)) is not int or abs(spec[name]) > LARGEST[name]:
            raise ProbqError(f"{name} of the {end} is {spec.get(name)!r:.40} in the {INDEX}; write the folder again")
    return spec


def _read(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ProbqError(f"there is no folder {path}; give the path that write was given")
    try:
        index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ProbqError(f"{path} is no artefact of probq, or is damaged: {error}") from error
    if not isinstance(index, dict) or not isinstance(index.get("format"), str):
        raise ProbqError(f"{path} is no artefact of probq: its {INDEX} names no format")
    return index
