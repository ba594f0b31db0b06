"""The page says this about an integer model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probq import plot
from probq.evaluation.reporting.page import Cell, Content, Table, figure, table
from probq.evaluation.reporting.page import number as cell
from probq.integer import IntegerModel
from probq.integer.layer_table import LayerNumbers, layers_of, number

UNKNOWN = "The file records no cost, so it is unknown whether a budget is kept."
FOREIGN = "The file records limits of other costs than BOPs; the posterior's own report says whether they are kept."


def content(model: IntegerModel, title: str) -> Content:
    """Return the summary, budget, facts, layers and a picture of an integer model."""
    layers, metadata = layers_of(model), model.metadata
    bits = sum(node.bits for node in model.nodes)
    bops, percent = number(metadata, "bops"), number(metadata, "percent")
    cost = "" if percent is None else f", at {percent:.4g} % of the bit operations of the 32-bit network"
    text = (
        f"An integer model of {len(layers)} layer{'s'[: len(layers) != 1]}: its parameters take {bits:,} bits "
        f"({bits / 8192:,.4g} KiB){cost}."
    )
    facts = [
        ("Bit operations", "not recorded" if bops is None else f"{bops:,.0f} BOPs for one example"),
        ("Parameters", f"{bits:,} bits"),
        ("Widest accumulator", _widest(layers)),
        *(
            (one.name.capitalize(), f"integers of operation {one.node}, each worth {one.scale:g}")
            for one in model.outputs
        ),
        ("Versions", _versions(metadata)),
        ("SHA-256 of the model", model.sha256()),
    ]
    figures = [figure(plot.integers(model), "Bits of weights, inputs and accumulators, by layer.")] if layers else []
    return Content(title, text, _verdict(metadata), facts, [_table(layers)], figures)


def _verdict(metadata: Mapping[str, Any]) -> tuple[str, str]:
    bops, limit = number(metadata, "bops"), number(metadata, "limit")
    if bops is None:
        return "open", UNKNOWN
    if limit is None:
        return "open", FOREIGN if metadata.get("limit") else "No budget was recorded."
    if bops > limit:  # a decision keeps its limit, so this is one of another unit, or the file was changed
        return "open", FOREIGN
    return "kept", f"Budget kept: {bops:,.0f} of at most {limit:,.0f} BOPs."


def _widest(layers: list[LayerNumbers]) -> str:
    known = [layer for layer in layers if layer.accumulator_bits is not None]
    if not known:
        return "not recorded"
    widest = max(known, key=lambda layer: layer.accumulator_bits or 0)
    return f"{widest.accumulator_bits} bits, in {widest.name}"


def _versions(metadata: Mapping[str, Any]) -> str:
    found = metadata.get("versions")
    return ", ".join(f"{k} {v}" for k, v in found.items()) if isinstance(found, dict) and found else "not recorded"


def _table(layers: list[LayerNumbers]) -> Table:
    total = sum(layer.bops or 0 for layer in layers)
    rows = [
        [
            Cell(layer.name),
            Cell(layer.op),
            Cell("×".join(map(str, layer.shape))),
            cell(layer.weight_bits),
            cell(layer.input_bits),
            cell(layer.accumulator_bits),
            cell(layer.macs, ","),
            cell(layer.bops, ",.0f"),
            cell(100 * layer.bops / total if total and layer.bops is not None else None, ".1f"),
        ]
        for layer in layers
    ]
    headings = ("Layer", "Kind", "Weight shape", "Weight bits", "Input bits", "Accumulator bits", "MACs", "BOPs")
    caption = "Layers in the order of the model; accumulator bits hold every sum that can occur."
    return table(caption, (*headings, "Share of BOPs in %"), rows, texts=3)
