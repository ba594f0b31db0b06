"""Lowering makes of a decided network an integer model that computes exactly the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from probq import cost as costs
from probq.decisions.assignment import Assignment
from probq.integer import IntegerModel
from probq.integer.lengths.free_length import free_length
from probq.integer.lowering.check_inputs import check_inputs, inputs_of_length, lengths_tried
from probq.integer.lowering.emit import emit_nodes
from probq.integer.lowering.exported import named_arguments, operation, unclear, where_of
from probq.integer.lowering.graph import Walk
from probq.integer.lowering.operations.values import Value, reduced
from probq.integer.lowering.ports import scales_like
from probq.integer.ports.outputs import by_name
from probq.network.program.decided_codes import decided_codes, rung_onehots
from probq.network.program.program import check_posterior
from probq.network.program.substitution import running
from probq.network.quantized.quantized import Quantized
from probq.network.tracing.arguments import first_rows, form_of, signature
from probq.network.tracing.plain import in_single_precision
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import map_tensors, tensors_in
from probq.utils.structures.walk import Structure, map_leaves, named_leaves
from probq.utils.version import probq_version

ROUNDING = 2.0**-10  # of a unit of the output: what float64 leaves of an average, and far less than a wrong integer

FLOAT = 1e-5  # what a softmax in float errs by
Result = TypeVar("Result")
ROUNDED = 0.1  # share of outputs that may differ where the network computes in float32


def lower(
    q: Quantized, assignment: Assignment | None = None, *, example: Any = None, free_axis: int | None = None
) -> IntegerModel:
    """Return the integer model of a decided network.

    For every input, its integers times `output_scale` are exactly what `q.at(assignment)` computes. Where the network
    returns several tensors, so does the model, built alike, each in units of its own scale. Where the output is
    an average of `k` numbers, and `k` no power of two, that holds to the last bits of float64, which has no `1 / k`.
    A softmax or log-softmax at the end that the plan leaves in float (`activation=None`) is left out: the integers are
    those that enter it, which are largest for the same class, and `metadata["ends_before"]` names it.
    Before it returns, that is checked on rows of the example that the network was quantized with and on random inputs.

    Args:
        q: a quantized network.
        assignment: widths and codes, by default the mode.
        example: a batch of inputs of another size, such as longer sequences or larger images, where the integer model
            is to take these; by default those that the network was quantized with, whose costs `metadata` tells in
            either case.
        free_axis: the axis, 1 or more, on which inputs may have any length from then on, such as that of time steps:
            of all inputs that are there as long as the first one. The network is lowered at three lengths, whose
            models may differ in shapes alone that grow evenly, and compared at a fourth; an average over the length
            differs in its numbers, and so do places that are learned. `model.at_length(n)` is the model of one.

    Raises:
        ProbqError: naming operation and module, if something in the network has no exact integer form, or integers
            could leave 31 bits, sums that are rounded next 40; or if the integers differ from the network's outputs.
    """
    check_posterior(q, "lower")
    assignment = q.mode() if assignment is None else assignment
    if not isinstance(assignment, Assignment):
        raise ProbqError(f"lower takes an assignment, such as q.mode(budget), not {type(assignment).__name__}")
    fixed = q.at(assignment).cpu().eval()
    if example is not None:
        _take_example(fixed, map_tensors(in_single_precision, example))
    own = decided_codes(fixed, assignment.widths)
    for name in fixed.weight_names:
        if not np.array_equal(own[name], assignment.codes[name]):
            raise ProbqError(f"the codes of {name} do not fit the network; decide again after training")
    model, walk = _lowered(fixed, assignment, _metadata(q, assignment))
    if free_axis is None:
        return model
    examples = {n: inputs_of_length(fixed, free_axis, n) for n in lengths_tried(fixed, free_axis)}
    models = [model]
    *more, far = list(examples)
    for length in more[1:]:
        models.append(_at_example(fixed, examples[length], length, lambda: _lowered(fixed, assignment, {})[0]))
    lengths = free_length(more, [one.nodes for one in models])
    found = IntegerModel(
        model.nodes, model.output, model.output_scale, model.metadata, model.arguments, model.axes, lengths
    )
    _at_example(fixed, examples[far], far, lambda: _check_integers(fixed, assignment, found.at_length(far), walk))
    return found


def _at_example(q: Quantized, example: Any, length: int, function: Callable[[], Result]) -> Result:
    """Return what a function gives once the network is to take an example of another length.

    Raises:
        ProbqError: as the function, saying the length.
    """
    try:
        _take_example(q, example)
        return function()
    except ProbqError as error:
        raise ProbqError(f"the length is not free: at {length}, {error}") from error


def _lowered(fixed: Quantized, assignment: Assignment, metadata: Mapping[str, Any]) -> tuple[IntegerModel, Walk]:
    """Return the integer model of a network at its example's size, checked against it, and how it was made."""
    walk = Walk(fixed, rung_onehots(fixed, assignment.widths), assignment.codes)
    outputs = _outputs(walk)
    integers = {id(output): reduced(output) for output in outputs}
    nodes, names = emit_nodes([integers[id(output)][0] for output in outputs], walk.ports.origins)
    scales = [integers[id(output)][1] * 2.0 ** int(output.exponent) / output.divisor for output in outputs]
    inputs = [node for node in nodes if node.op == "input"]
    output, arguments = walk.ports.structures(inputs, names)
    axes = walk.ports.axes(inputs, output)
    said = dict(metadata) | _endings(walk, output)
    model = IntegerModel(nodes, output, scales_like(output, scales), said, arguments, axes)
    _check_integers(fixed, assignment, model, walk)
    return model, walk


def _outputs(walk: Walk) -> list[Value]:
    """Return the symbolic integers that a network returns.

    Raises:
        ProbqError: as `Walk.outputs`, with a sentence more where the batch may be another axis than was taken.
    """
    try:
        return walk.outputs()
    except ProbqError as error:
        raise ProbqError(f"{error}{unclear(walk.q)}") from error


def _take_example(q: Quantized, example: Any) -> None:
    """Let a network be lowered for inputs of another size.

    Raises:
        ProbqError: if they are built otherwise, or of other types.
    """
    built, before = (
        [
            (name, (leaf.dtype, leaf.dim()) if isinstance(leaf, Tensor) else leaf)
            for name, leaf in named_leaves(form, "")
        ]
        for form in (form_of(example), q.form)
    )
    if built != before:
        raise ProbqError(
            "the example is built otherwise than the one that the network was quantized with; build it alike"
        )
    q.form, q.signature, q.example = form_of(example), signature(example), first_rows(example)


def _check_integers(q: Quantized, assignment: Assignment, model: IntegerModel, walk: Walk) -> None:
    """Raise unless the integers are what the decided network computes, on its example and on random inputs."""
    for args in check_inputs(q, walk.ports.sources(model.inputs), _rows_looked_up(model)):
        try:
            expected, exact = _expected(q, assignment, args)
        except IndexError:  # what is added to indices takes them beyond an embedding's rows
            args = tuple(map_leaves(_without_indices, args))
            expected, exact = _expected(q, assignment, args)
        found = by_name(model.output, model(walk.ports.given(args)))
        for output, name, own in zip(model.outputs, walk.graph.outputs, expected, strict=True):
            integers = found[output.name]
            if name in walk.endings:
                _check_ending(walk.endings[name], torch.from_numpy(integers * output.scale), own.double())
                continue
            units = own.double().numpy() / output.scale
            rounding = ROUNDING + (torch.finfo(own.dtype).eps * np.abs(units) if own.is_floating_point() else 0)
            if integers.shape != units.shape or (np.abs(integers - units) > rounding).mean() > (
                0 if exact else ROUNDED
            ):
                raise _differing()


def _rows_looked_up(model: IntegerModel) -> int | None:
    """Return the rows of the smallest embedding whose indices are computed, None where there is none."""
    given = {node.name for node in model.inputs}
    computed = [node for node in model.nodes if node.op == "embedding" and node.inputs[0] not in given]
    return min((len(node.tensors["weight"]) for node in computed), default=None)


def _without_indices(given: Any) -> Any:
    is_index = isinstance(given, Tensor) and given.dtype in (torch.int32, torch.int64)
    return torch.zeros_like(given) if is_index else given


def _check_ending(ending: Any, before: Tensor, expected: Tensor) -> None:
    """Raise unless the softmax that was left in float gives of the integers before it what the network gives."""
    given = named_arguments(ending)
    function = torch.log_softmax if "log" in operation(ending) else torch.softmax
    if not torch.allclose(function(before, given["dim"]), expected, rtol=FLOAT, atol=FLOAT):
        raise _differing()


def _differing() -> ProbqError:
    return ProbqError(
        "the integers differ from what the network computes, so nothing is lowered: its forward does "
        "something that its exported graph does not show, such as a choice that depends on the batch; "
        "please report it together with the network"
    )


def _endings(walk: Walk, output: Structure) -> dict[str, Any]:
    """Return what to tell of each softmax that is left out, by the names of the outputs where there are several."""
    names = [name for name, node in named_leaves(output, "output") if isinstance(node, str)]
    pairs = zip(names, walk.graph.outputs, strict=True)
    found = {own: where_of(walk.endings[name]) for own, name in pairs if name in walk.endings}
    return {"ends_before": found if len(names) > 1 else found["output"]} if found else {}


def _expected(q: Quantized, assignment: Assignment, args: tuple[Any, ...]) -> tuple[list[Tensor], bool]:
    """Return the network's outputs, and whether they are exact.

    A network with float32 constants of its own cannot be.
    """
    doubles = map_leaves(lambda a: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a, args)
    try:
        return list(tensors_in(q.outputs([assignment], doubles)[0])), True
    except RuntimeError:
        with running(args):
            return list(tensors_in(q.outputs([assignment], args)[0])), False


def _metadata(q: Quantized, assignment: Assignment) -> dict[str, Any]:
    widths = {
        name: bits if isinstance(bits, int | float) else _listed(bits) for name, bits in assignment.widths.items()
    }
    layers = []
    for layer in q.layers:
        own = {n: assignment.widths[n] for n in (layer.weight, layer.input or "") if n in assignment.widths}
        weight, x = (float(np.mean(own.get(n or "", costs.FLOAT_BITS))) for n in (layer.weight, layer.input))
        bops = costs.total([layer], own)
        layers.append({"name": layer.name, "macs": layer.macs, "weight_bits": weight, "input_bits": x, "bops": bops})
    return {
        "widths": widths,
        "layers": layers,
        "bops": assignment.cost(),
        "percent": assignment.percent(),
        "limit": assignment.limit,
        "convention": "BOP = MACs * weight bits * input bits, of MACs * 32 * 32; biases and pooling not counted",
        "versions": {"probq": probq_version()} | {name: version(name) for name in ("torch", "numpy")},
    }


def _listed(bits: np.ndarray) -> Any:
    return bits.tolist() if bits.size <= 4096 else {"mean": float(bits.mean()), "shape": list(bits.shape)}
