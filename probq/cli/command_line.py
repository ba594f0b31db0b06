"""The command `probq` runs a demonstration, looks into the files that probq writes, and exports to hardware."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from probq.cli import export as cli_export
from probq.cli import report as cli_report
from probq.cli.arguments import seed
from probq.integer import IntegerModel
from probq.integer.layer_table import LayerNumbers, layers_of, number
from probq.utils.errors import ProbqError, printable
from probq.utils.manifest import file_kind
from probq.utils.version import probq_version

FAILED, WRONG_USE = 1, 2
HEADINGS = ("layer", "op", "weight shape", "bits", "input bits", "accumulator bits", "MACs", "BOPs %")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; by default those of the process.

    Returns:
        0: done, and all that was promised holds; 1: it does not, or the user interrupted; 2: probq could not do what
        was asked, in one line on stderr.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except ProbqError as error:
        print(f"probq: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt:
        print("probq: interrupted", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # the reader of the pipe has gone, as `head` does; the flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="probq", description="How many bits does each tensor of a network need?")
    parser.add_argument("--version", action="version", version=f"probq {probq_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="train, decide, lower and check a small network on handwritten digits")
    demo.add_argument("--out", type=Path, default=Path("demo-output"), metavar="DIR", help="folder for the results")
    demo.add_argument(
        "--budget", type=float, default=0.5, metavar="PERCENT", help="BOPs in %% of 32 bits (default 0.5)"
    )
    demo.add_argument("--seed", type=seed, default=0, metavar="N", help="of data, training and fit (default 0)")
    demo.set_defaults(command=_demo)
    show = commands.add_parser("show", help="describe an integer model or a posterior")
    show.add_argument("file", type=Path, metavar="FILE", help="what model.save or q.save wrote")
    show.set_defaults(command=_show)
    cli_report.add_command(commands)
    cli_export.add_commands(commands)
    return parser


def _demo(options: argparse.Namespace) -> int:
    import matplotlib

    from probq.cli import demo

    matplotlib.use("Agg")
    return 0 if demo.run(options.out, options.budget, options.seed) else FAILED


def _show(options: argparse.Namespace) -> int:
    path: Path = options.file
    print(printable(posterior_text(path) if file_kind(path) == "probq.posterior" else integer_text(path)))
    return 0


def posterior_text(path: Path) -> str:
    """Return a readable summary of a posterior file, for which no network is needed.

    Raises:
        ProbqError: as `probq.load`.
    """
    from probq.evaluation.diagnostics.table import format_table, table
    from probq.network.quantized.file_format import read
    from probq.network.quantized.load import assemble

    manifest, tensors = read(path)
    frame = table(assemble(path, manifest, tensors))
    lines = [
        f"posterior of {len(manifest['layers'])} layers, {_size(path)}",
        f"versions:      {_versions(manifest['versions'])}",
        f"likelihood:    {manifest['likelihood']['kind']}, temperature {manifest['temperature']:g}",
        f"expected cost: {frame.attrs['expected cost percent']:.4g} % of 32 bits ({frame.attrs['cost']})",
    ]
    if frame.attrs["budget"] is not None:
        within = frame.attrs["P(cost<=limit)"]
        lines.append(f"budget:        {frame.attrs['budget']}, kept by a draw with probability {within:.4g}")
    return "\n".join([*lines, *(f"note: {note}" for note in manifest["notes"]), "", format_table(frame)])


def integer_text(path: Path) -> str:
    """Return a readable summary of the file of an integer model, a line for each layer.

    Raises:
        ProbqError: as `IntegerModel.load`.
    """
    model = IntegerModel.load(path)
    layers = layers_of(model)
    total = sum(layer.bops or 0 for layer in layers)
    rows = [_layer_texts(layer, total) for layer in layers]
    lines = [
        f"integer model of {len(model.nodes)} operations, {len(layers)} of them layers; {_size(path)}",
        f"versions: {_versions(model.metadata.get('versions'))}",
        f"weights and biases: {sum(node.bits for node in model.nodes):,} bits",
        *(f"{one.name}: integers of operation {one.node}, each worth {one.scale:g}" for one in model.outputs),
        _cost_text(model.metadata),
        "",
    ]
    return "\n".join([*lines, *_aligned([HEADINGS, *rows])])


def _layer_texts(layer: LayerNumbers, total: float) -> tuple[str, ...]:
    share = layer.bops
    numbers = (
        (layer.weight_bits, "{:.4g}"),
        (layer.input_bits, "{:.4g}"),
        (layer.accumulator_bits, "{}"),
        (layer.macs, "{:,}"),
        (100 * share / total if share is not None and total else share, "{:.1f}"),
    )
    shape = "x".join(map(str, layer.shape))
    return (layer.name, layer.op, shape, *("-" if value is None else form.format(value) for value, form in numbers))


def _cost_text(metadata: Mapping[str, Any]) -> str:
    bops, percent, limit = (number(metadata, name) for name in ("bops", "percent", "limit"))
    if bops is None or percent is None:
        return "BOPs: not recorded"
    under = "" if limit is None else f", limit {limit:,.0f}"
    return f"BOPs: {bops:,.0f}, {percent:.4g} % of 32-bit weights and inputs{under}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of columns, the first three to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [t.ljust(w) if k < 3 else t.rjust(w) for k, (t, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _size(path: Path) -> str:
    return f"{path.stat().st_size:,} bytes"


def _versions(versions: Any) -> str:
    known = versions.items() if isinstance(versions, dict) else ()
    return ", ".join(f"{name} {version}" for name, version in known) or "not recorded"
