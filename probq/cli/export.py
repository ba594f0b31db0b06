"""The commands `probq export` and `probq verify` write a model for a target, and prove that integers are the same."""

from __future__ import annotations

import argparse
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from probq.cli.arguments import count, seed
from probq.export.targets import TARGETS
from probq.export.verification import Report, verify_parts
from probq.integer import IntegerModel, Node
from probq.integer.ports.inputs import argument_of, put_together_call
from probq.utils.errors import ProbqError, printable
from probq.utils.paths import checked_path

INPUTS = 500
STEP = 64  # inputs compared between two looks at the progress bar
VECTORS, VECTOR_ELEMENTS = 16, 2**16  # in a C test program at most
PATIENCE = 1.0  # seconds before a progress bar appears


def add_commands(commands: Any) -> None:
    """Add `export` and `verify` to the subcommands of a parser."""
    known = [target.name for target in TARGETS]
    export = commands.add_parser(
        "export",
        help="write an integer model for a target, and verify it",
        description="Write an integer model for a target. Nothing half-written is left behind.",
        epilog="targets:\n" + "\n".join(f"  {target.name:12}{target.text}" for target in TARGETS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("file", type=Path, metavar="FILE", help="what model.save wrote")
    export.add_argument("--to", required=True, choices=known, metavar="TARGET", help=", ".join(known))
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the artefact")
    export.add_argument(
        "--verify",
        action="store_true",
        help="run the artefact, compare every integer, and write a certificate beside it; exit status 1 if any differs",
    )
    export.add_argument("--packed", action="store_true", help="onnx: store parameters at their own width")
    text = "of the artefact instead of the model's file name; in C, Verilog and HLS also of what it defines"
    export.add_argument("--name", metavar="NAME", help=text)
    _add_numbers(export)
    export.set_defaults(command=_export)
    check = commands.add_parser(
        "verify",
        help="run an exported artefact and compare it with its integer model",
        description="Run an artefact and count the inputs for which any integer differs; exit status 1 if any does.",
    )
    check.add_argument("model", type=Path, metavar="MODEL", help="what model.save wrote")
    check.add_argument("artefact", type=Path, metavar="ARTEFACT", help="what export wrote")
    _add_numbers(check)
    check.set_defaults(command=_verify)


def _add_numbers(parser: argparse.ArgumentParser) -> None:
    text = f"inputs to compare: the lowest, the highest, and random ones (default {INPUTS})"
    parser.add_argument("--inputs", type=count, default=INPUTS, metavar="N", help=text)
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the random inputs (default 0)")


def _export(options: argparse.Namespace) -> int:
    from probq.export.certificate import certify

    target = next(target for target in TARGETS if target.name == options.to)
    model = IntegerModel.load(options.file)
    path = target.path(Path(_stem(options)), options.out, options.packed)
    _make(options.out)
    if checked_path(path).exists() and path.samefile(options.file):
        raise ProbqError(f"{path} is the model itself; name another folder with --out")
    with _progress("export", None):
        written = target.write(model, path, options.packed, options.name)
    path.with_name(path.name + ".json").unlink(missing_ok=True)  # it was of what is no longer there
    print(printable(f"{path}: {size(path):,} bytes" if written is None else str(written)))
    if target.name == "c":
        print(_write_test(model, path, options.seed))
    if not options.verify:
        return 0
    report = compared(model, path, options.inputs, options.seed)
    print(report)
    print(f"certificate: {certify(model, path, report)}")
    return 0 if report else 1


def _stem(options: argparse.Namespace) -> str:
    """Return the artefact's name without its ending."""
    name = options.name
    if name is not None and (not name.strip(".") or Path(name).name != name):
        raise ProbqError(f"{name!r:.80} is no name of a file; --name takes one without folders")
    return str(options.file.name if name is None else f"{name}{options.file.suffix or '.safetensors'}")


def _verify(options: argparse.Namespace) -> int:
    report = compared(IntegerModel.load(options.model), options.artefact, options.inputs, options.seed)
    print(report)
    return 0 if report else 1


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProbqError(f"cannot make the folder {folder}: {error}; name another with --out") from error


def _write_test(model: IntegerModel, header: Path, number: int) -> str:
    """Write the test program of a C header; return a line about it."""
    from probq.export import c

    elements = sum(math.prod(node.attributes["shape"]) for node in model.inputs)
    vectors = min(VECTORS, max(2, VECTOR_ELEMENTS // max(1, elements)))
    (x,) = inputs(model, vectors, number, vectors)
    path = header.with_name(f"{header.stem}_test.c")
    c.write_test(model, path, model.quantize_input(x), header.name)
    return f"{path}: {vectors} test vectors"


def size(path: Path) -> int:
    """Return the number of bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def inputs(model: IntegerModel, number: int, seed: int, step: int) -> Iterator[Any]:
    """Yield what the model is called with, real inputs (or indices), in parts `[step, ...]`.

    They are the lowest, the highest, then uniform ones over the input's levels.

    They are exact multiples of the input's scale, so that every integer that may enter the model is as likely. Where
    several input nodes read one argument, it is the first one's.
    """
    generator = np.random.default_rng(seed)
    readers = {argument_of(node): node for node in reversed(model.inputs)}
    for start in range(0, number, step):
        count = min(step, number - start)
        drawn = {name: _drawn(node, count, start == 0, generator) for name, node in sorted(readers.items())}
        yield put_together_call(model.arguments, drawn, model.axes)


def _drawn(node: Node, count: int, ends: bool, generator: np.random.Generator) -> np.ndarray:
    """Return inputs of one node; with its ends first."""
    spec = node.attributes
    index = spec.get("index")
    low, high = (0, spec["count"] - 1) if index else (spec["lo"], spec["hi"])
    codes = generator.integers(low, high, (count, *spec["shape"]), endpoint=True)
    if ends:
        codes[0] = low
        codes[1:2] = high
    return codes if index else np.asarray((spec.get("start", 0) + spec.get("step", 1) * codes) * spec["scale"])


def compared(model: IntegerModel, path: Path, number: int, seed: int) -> Report:
    """Return what `verify` finds on random inputs, with a progress bar on stderr when it takes long.

    Args:
        model: the integer model.
        path: the path of the artefact.
        number: inputs to compare.
        seed: the seed of the inputs.

    Raises:
        ProbqError: as `verify`.
    """
    with _progress("verify", number) as bar:
        return verify_parts(model, path, inputs(model, number, seed, STEP), bar.update)


@contextmanager
def _progress(what: str, number: int | None) -> Iterator[Any]:
    """Show a bar that appears after a while, moves while a compiler keeps us waiting, and goes when all is done."""
    from tqdm import tqdm

    form = "{desc}: {elapsed}" if number is None else None
    bar = tqdm(total=number, desc=what, unit="input", delay=PATIENCE, miniters=0, leave=False, bar_format=form)
    done = threading.Event()

    def tick() -> None:
        while not done.wait(PATIENCE / 2):
            bar.update(0)

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    try:
        yield bar
    finally:
        done.set()
        ticking.join()
        bar.close()
