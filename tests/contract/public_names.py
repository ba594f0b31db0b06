"""Lists the public names of probq, their signatures and the options of its command line: a line for each.

`python tests/contract/public_names.py` writes them to `names.txt`, after a change that adds to them.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import re
import runpy
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any
from unittest import mock

FILE = Path(__file__).with_name("names.txt")
MODULES = (
    "probq", "probq.calibration", "probq.codebooks", "probq.communication", "probq.cost", "probq.criteria",
    "probq.distillation", "probq.estimators", "probq.export", "probq.export.c", "probq.export.hls",
    "probq.export.memory", "probq.export.onnx", "probq.export.qonnx",
    "probq.export.verilog", "probq.integer", "probq.lightning", "probq.likelihoods",
    "probq.plot", "probq.priors", "probq.ptq",
    "probq.regression", "probq.rules", "probq.testing", "probq.uncertainty",
)  # fmt: skip
# what a class says of itself by these is typed by its users too
SPECIAL = ("__call__", "__contains__", "__getitem__", "__iter__", "__len__")


def lines(recorded: Iterable[str] = ()) -> list[str]:
    """Every public name, sorted; also those recorded that their modules no longer list but still give."""
    found = {line for module in MODULES for line in _of_module(module, recorded)}
    return sorted(found | set(command_line()))


def name_of(line: str) -> str:
    """The part of a line before signature or kind."""
    return line if line.startswith("$") else re.split(r"[(:]", line)[0]


def resolve(path: str) -> Any:
    """A public name as a user reaches it: `probq.cost.bops` by attributes of probq, whatever module it lies in."""
    start, *rest = path.split(".")
    found = importlib.import_module(start)
    for part in rest:
        if isinstance(found, ModuleType) and not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


def _of_module(path: str, recorded: Iterable[str]) -> Iterator[str]:
    module = resolve(path)
    before = {name_of(line).removeprefix(f"{path}.") for line in recorded if line.startswith(f"{path}.")}
    for name in sorted({*public(module), *(name for name in before if "." not in name and hasattr(module, name))}):
        thing = getattr(module, name)
        yield from [f"{path}.{name}: module"] if isinstance(thing, ModuleType) else _of_object(f"{path}.{name}", thing)


def public(module: ModuleType) -> list[str]:
    """`__all__`; without one the functions and classes that the module, or one inside it, defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    home = module.__name__
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and f"{getattr(thing, '__module__', '')}.".startswith(f"{home}.")
    ]


def _of_object(path: str, thing: Any) -> Iterator[str]:
    if inspect.isclass(thing):
        yield f"{path}: class"
        yield from _of_class(path, thing)
    elif isinstance(thing, FunctionType) or (callable(thing) and type(thing).__module__.startswith("probq.")):
        yield path + signature(thing)
    else:
        yield f"{path}: type"


def _of_class(path: str, kind: type) -> Iterator[str]:
    """Constructor, methods and documented attributes, also those of bases that are probq's own."""
    own = [base for base in kind.__mro__ if base.__module__.split(".")[0] == "probq"]
    if any("__init__" in vars(base) or "__new__" in vars(base) for base in own):
        yield path + signature(kind)
    attributes = {name for base in own for name in documented(base)}
    fields = getattr(kind, "__dataclass_fields__", {})
    for name in {name for base in own for name in vars(base)} - set(fields):
        member = inspect.getattr_static(kind, name)
        if name.startswith("_") and name not in SPECIAL:
            continue
        if isinstance(member, FunctionType | classmethod | staticmethod):
            yield f"{path}.{name}{signature(getattr(kind, name))}"
        elif isinstance(member, property | functools.cached_property):
            attributes.add(name)
    yield from (f"{path}.{name}: attribute" for name in attributes)


def documented(kind: type) -> Iterator[str]:
    """Names under "Attributes:" of a class's docstring."""
    section = re.search(r"^Attributes:\n((?:[ ]{4}.*\n?|\n)*)", inspect.getdoc(kind) or "", re.MULTILINE)
    for names in re.findall(r"^ {4}(\w+(?:, \w+)*):", section.group(1) if section else "", re.MULTILINE):
        yield from names.split(", ")


def signature(function: Any) -> str:
    """Names, kinds and defaults of the parameters, without annotations."""
    parameters = [
        p.replace(annotation=p.empty, default=p.default if p.default is p.empty else _Shown(p.default))
        for p in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(parameters))


class _Shown:
    """A default value whose text names no module and no address."""

    def __init__(self, value: Any) -> None:
        named = callable(value) and hasattr(value, "__name__")
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", repr(value))
        self.text = value.__name__ if named else re.sub(r" at 0x\w+", "", text)

    def __repr__(self) -> str:
        return self.text


def command_line() -> Iterator[str]:
    """Commands, arguments and options of `python -m probq`."""
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", _hand_over),
        mock.patch.object(sys, "argv", ["probq"]),
    ):
        try:
            runpy.run_module("probq", run_name="__main__")
        except _Parser as found:
            yield from _of_parser(found.parser, "probq")


class _Parser(Exception):
    """The command line's parser, caught before it parses anything."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def _hand_over(parser: argparse.ArgumentParser, *_: Any) -> None:
    raise _Parser(parser)


def _of_parser(parser: argparse.ArgumentParser, command: str) -> Iterator[str]:
    yield f"$ {command}"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from _of_parser(below, f"{command} {name}")
        elif not isinstance(action, argparse._HelpAction):
            yield f"$ {command} {_of_action(action)}"


def _of_action(action: argparse.Action) -> str:
    shown = [", ".join(action.option_strings) or action.dest]
    if action.nargs != 0:
        shown.append(str(action.metavar or action.dest.upper()))
    shown += [f"nargs={action.nargs}"] if action.nargs not in (0, None) else []
    shown += [f"choices={','.join(map(str, action.choices))}"] if action.choices else []
    shown += ["required"] if action.required else []
    return " ".join(shown) + (f" (default {action.default})" if action.default is not None else "")


if __name__ == "__main__":
    FILE.write_text("\n".join(lines()) + "\n", encoding="utf-8")
