"""One run of a network on an example shows its layers, their inputs, and what cannot be quantized."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from probq.network.explicit.modules import TURN, can_be_explicit, plain_calls, spell_out
from probq.network.normalisers.masks import holds_numbers
from probq.network.tracing.arguments import own_copy
from probq.network.tracing.call_finder import Found, find_calls
from probq.network.tracing.example_run import read_alike, run_example
from probq.network.tracing.layer import Layer
from probq.network.tracing.module_kinds import QUANTIZABLE, TABLES, TRANSPOSED, channel_axis_of
from probq.network.tracing.plain import plain_copy
from probq.network.tracing.product_calls import Product
from probq.network.tracing.recorder import LayerRecord, Recorder
from probq.network.tracing.routing import routed
from probq.network.tracing.stand_ins import is_stand_in, place_stand_ins
from probq.utils.errors import ProbqError
from probq.utils.structures.tensors import arguments, call, map_tensors, tensors_in


@dataclass
class Tracing:
    """A tracing is what one run of the network on the example showed.

    Attributes:
        layers: in the order in which the example reaches them.
        notes: sentences on what stays float.
        quiet: likewise, of what no integer model computes.
        explicit: names of the modules that are spelled out from here on.
        seconds: each product of two tensors as its second operand sees it, which is there what multiplies, by name.
        inputs: the inputs of each layer, by its name, and the operands of each product.
        activations: for each function that may become a table, the layer called before, and its input.
        uncounted: MACs of one example outside of all layers.
        calls: calls of functions that have a stand-in from here on, by its name.
    """

    layers: list[Layer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quiet: list[str] = field(default_factory=list)
    explicit: tuple[str, ...] = ()
    seconds: dict[str, Layer] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    activations: dict[str, tuple[str | None, Tensor]] = field(default_factory=dict)
    uncounted: int = 0
    calls: dict[str, Found] = field(default_factory=dict)


def layers(net: nn.Module, example: Any) -> tuple[Layer, ...]:
    """Return the layers of a network in the order in which the example reaches them.

    Args:
        net: the network; it is left untouched.
        example: a batch of inputs (batch axis first), a tuple of the network's arguments, or a dict of them by keyword.

    Raises:
        ProbqError: if the network has no quantizable layer, cannot run on the example, or has a layer that the
            example never reaches.
    """
    return tuple(trace_network(plain_copy(net)[0], example).layers)


def trace_network(net: nn.Module, example: Any) -> Tracing:
    """Run `net` (a copy that may be used freely) on the example and record its layers.

    Stand-ins are placed in it, and attention and recurrent modules are spelled out.
    """
    _check_names(net)
    _check_finite(net)
    args: tuple[Any, ...] = tuple(map_tensors(lambda a: a.detach().clone(), arguments(example)))
    if any(not a.isfinite().all() for a in tensors_in(args) if a.is_floating_point()):
        raise ProbqError("the example holds a value that is not finite; clean the data first")
    batch = _batch(args)
    explicit, turned = _spell_out(net, args, batch)
    calls, unread = find_calls(net, args)
    constant = read_alike(net, args, unread)
    place_stand_ins(net, {name: one.stand_in for name, one in calls.items()})
    modules = {n: m for n, m in net.named_modules() if isinstance(m, QUANTIZABLE)}
    once = _computed_once(modules, constant)
    modules = {name: module for name, module in modules.items() if name not in once}
    if not modules:
        raise ProbqError(
            "the network has no layer that probq can quantize (linear, convolution or embedding); "
            "give the module that holds such layers"
        )
    owners = _owners(net, modules)
    recorder = Recorder(net, modules, constant, {m.weight.untyped_storage().data_ptr(): n for n, m in modules.items()})
    run_example(net, own_copy(args), routed(net), recorder.hooked(), recorder)
    found = Tracing(
        notes=[*turned, *_notes(recorder, modules, owners)],
        quiet=[
            f"{name} reads no input of the network; it stays float, is computed once, and costs nothing"
            for name in once
        ],
        explicit=explicit,
        inputs={name: _joined(kept) for name, kept in recorder.samples.items()},
        activations={name: (layer, _joined(kept)) for name, (layer, kept) in recorder.activations.items()},
        calls=calls,
    )
    _add_layers(found, net, recorder, owners, batch)
    _check_reached(net, args, owners, found)
    return found


def _add_layers(found: Tracing, net: nn.Module, recorder: Recorder, owners: Mapping[str, str], batch: int) -> None:
    """Add the layers that the example reached, and what it computed outside of them."""
    seen: set[str] = set()
    for name, record in recorder.records.items():
        if isinstance(record.module, Product):
            left, right = (recorder.operands[f"{name}.{side}"] for side in record.module.sides)
            found.layers.append(_product(net, record, left, right, batch))
            found.seconds[name] = _product(net, record, right, left, batch)
            continue
        alone = list(owners.values()).count(owners[name]) == 1 and recorder.norms.get(record.norm or "") == 1
        reads = owners[record.reads] if record.reads else None
        found.layers.append(replace(_layer(record, owners[name], batch, seen, alone), reads=reads))
    found.layers.extend(_functional(recorder, owners, batch))
    found.uncounted = sum(macs for (_, _, module), macs in recorder.stray.items() if module is None) // batch
    if found.uncounted:
        found.notes.append(uncounted_note(found.layers, found.uncounted))


def uncounted_note(layers: Iterable[Layer], uncounted: int) -> str:
    """Return what to say beside a percentage of a network with products outside of its layers."""
    every = sum(layer.macs for layer in layers) + uncounted
    return (
        f"{uncounted:,} of {every:,} MACs ({100 * uncounted / every:.3g} %) are outside of all layers; what "
        "stays float there is in no cost and no percentage"
    )


def _check_names(net: nn.Module) -> None:
    """Raise at a layer or tabulated function with a slash in its name, which files of integers keep for tensors."""
    for name, module in net.named_modules():
        if "/" in name and isinstance(module, (*QUANTIZABLE, *TABLES)):
            raise ProbqError(f"the module {name!r} has a slash in its name; add it under a name without one")


def _check_finite(net: nn.Module) -> None:
    for name, tensor in net.state_dict().items():
        if not holds_numbers(tensor):
            raise ProbqError(f"{name} holds a value that is not finite; train or load the network again")


def _spell_out(net: nn.Module, args: tuple[Any, ...], batch: int) -> tuple[tuple[str, ...], list[str]]:
    """Spell out the modules that the example calls so that they can be; return their names, and notes on others.

    That which is the whole network stays: nothing is there to put another in.
    """
    names: set[str] = set()
    others: set[str] = set()
    if can_be_explicit(net):
        run_example(net, own_copy(args), plain_calls(net, batch, names, others))
        spell_out(net, names - {""})
    told = "takes the batch as its second axis, and is called with that of the network's input as its first"
    notes = [f"{name or 'the network'} {told}. {TURN}" for name in sorted(others)]
    return tuple(sorted(names - {""})), notes


def _owners(net: nn.Module, modules: Mapping[str, Any]) -> dict[str, str]:
    """Return the name of each module's weight tensor; tied modules share the first one's.

    That of a function's call is most often a parameter of another module, whose name it has.
    """
    called = {id(modules[name].weight) for name in modules if is_stand_in(name)}
    own = {id(p): n for n, p in net.named_parameters(remove_duplicate=False) if id(p) in called and not is_stand_in(n)}
    first: dict[int, str] = {}
    for name, module in modules.items():
        tensor = id(module.weight)
        first.setdefault(tensor, own.get(tensor, f"{name}.weight"))
    return {name: first[id(module.weight)] for name, module in modules.items()}


def _computed_once(modules: Mapping[str, Any], constant: Collection[str]) -> list[str]:
    """Return the layers that read constants alone, and whose weight no other layer has."""
    uses = Counter(id(module.weight) for module in modules.values())
    return [name for name, module in modules.items() if name in constant and uses[id(module.weight)] == 1]


def _joined(parts: list[Tensor]) -> Tensor:
    """Return what one call was given, or the numbers of all calls as one axis."""
    return parts[0] if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])


def _batch(args: tuple[Any, ...]) -> int:
    sizes = [a.shape[0] for a in tensors_in(args) if a.dim()]
    if not sizes or not sizes[0]:
        raise ProbqError("the example must hold at least one tensor with a batch axis of size 1 or more")
    return int(sizes[0])


def _layer(record: LayerRecord, weight: str, batch: int, seen: set[str], alone: bool) -> Layer:
    module = record.module
    owned = weight not in seen
    seen.add(weight)
    embedding = isinstance(module, nn.Embedding)
    return Layer(
        name=record.name,
        weight=weight,
        input=None if embedding else f"{record.name}.input",
        macs=record.macs // batch,
        weights=module.weight.numel() if owned else 0,
        inputs=record.inputs // batch,
        outputs=record.outputs // batch,
        shape=tuple(module.weight.shape),
        channel_axis=channel_axis_of(module),
        transposed=isinstance(module, TRANSPOSED),
        first=record.first and not embedding,
        smallest=0.0 if embedding else record.smallest,
        norm=record.norm if record.uses == 1 and alone and not embedding else None,
        plain=record.plain,
    )


def _product(net: nn.Module, record: LayerRecord, left: LayerRecord, right: LayerRecord, batch: int) -> Layer:
    """Return a product of two tensors as a layer, and note at an operand whether it is the network's own input."""
    left.module.first = left.first
    return Layer(
        name=record.name,
        weight=f"{right.name}.input",
        input=f"{left.name}.input",
        macs=record.macs // batch,
        weights=0,
        inputs=left.inputs // batch,
        outputs=record.outputs // batch,
        shape=right.shape,
        first=left.first,
        smallest=left.smallest,
        others=right.inputs // batch,
        memory=_is_memory(net, left.name),
    )


def _is_memory(net: nn.Module, operand: str) -> bool:
    """Return whether an operand of a product is the memory of a recurrent cell."""
    owner, product, side = operand.rsplit(".", 2) if operand.count(".") > 1 else ("", *operand.split("."))
    return getattr(net.get_submodule(owner), "memory", "") == f"{product}.{side}"


def _functional(recorder: Recorder, owners: Mapping[str, str], batch: int) -> Iterator[Layer]:
    """Yield layers for products that use a module's weight outside of the module, whose input is out of reach."""
    for (place, operation, module), macs in recorder.stray.items():
        if module is not None:
            shape = tuple(recorder.modules[module].weight.shape)
            name = f"{owners[module]} ({operation} in {place or 'the network'})"
            own = 0 if module in recorder.records else recorder.modules[module].weight.numel()
            yield Layer(name, owners[module], None, macs // batch, own, 0, 0, shape)


def _notes(recorder: Recorder, modules: Mapping[str, Any], owners: Mapping[str, str]) -> list[str]:
    notes = []
    for place, operation, module in recorder.stray:
        kind = type(recorder.net.get_submodule(place)).__name__
        where = f"{place} ({kind})" if place else "the network's own forward"
        if module is None and place in recorder.records:
            notes.append(
                f"{where} computes {operation} with something else than its own weight; that product stays float and "
                "is not counted in the cost"
            )
        elif module is None:
            notes.append(
                f"{where} computes {operation} outside of any layer that can be quantized; "
                "it stays float and is not counted in the cost"
            )
        else:
            notes.append(
                f"{where} uses {owners[module]} in {operation} without calling the module; "
                "the weight is quantized, but that operation's input stays float and counts as 32 bits"
            )
    return list(dict.fromkeys(notes))


def _check_reached(net: nn.Module, args: tuple[Any, ...], owners: Mapping[str, str], found: Tracing) -> None:
    """Note which layers only training reaches, and raise where nothing reaches one."""
    reached = {layer.name for layer in found.layers} | {layer.weight for layer in found.layers}
    missing = [name for name, weight in owners.items() if name not in reached and weight not in reached]
    in_training = _reached_in_training(net, args) if missing else set()
    for name in missing:
        if name not in in_training:
            raise ProbqError(f"the example never reaches layer {name}; give an example that does, or remove the layer")
        found.notes.append(f"{name} is reached in training alone; it stays float and is not counted in the cost")


def _reached_in_training(net: nn.Module, args: tuple[Any, ...]) -> set[str]:
    """Return the names of the modules that a run in training mode enters, even if it cannot go on to its end."""
    trial, reached = copy.deepcopy(net).train(), set()
    for name, module in trial.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: reached.add(name))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), contextlib.suppress(Exception):
        call(trial, args)
    return reached
