"""Inputs and outputs of a model stand in its manifest: a name and a number where there is one output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probq.utils.structure_entries import from_entry, to_entry
from probq.utils.structures.walk import Structure

OPTIONAL = frozenset({"arguments", "axes", "lengths"})  # of the manifest


def ports_to_entry(
    output: Structure, scales: Structure, arguments: Structure, axes: Mapping[str, int]
) -> dict[str, Any]:
    """Return the manifest's part."""
    entry = {"output": to_entry(output), "output_scale": to_entry(scales)} | ({"axes": dict(axes)} if axes else {})
    return entry if arguments is None else entry | {"arguments": to_entry(arguments)}


def ports_from_entry(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return `output`, `output_scale`, `arguments` and `axes` of a manifest.

    Raises:
        ProbqError: one of them is no structure, or has other leaves.
    """
    return {
        "output": from_entry(manifest["output"], _is_name),
        "output_scale": from_entry(manifest["output_scale"], _is_scale),
        "arguments": from_entry(manifest.get("arguments"), _is_name),
        "axes": manifest.get("axes"),
    }


def _is_name(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, str | bool | int | float)


def _is_scale(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, float)
