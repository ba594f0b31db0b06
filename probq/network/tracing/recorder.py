"""A recorder watches one run of a network: the calls of its layers, and every matrix product outside of one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode

from probq.network.tracing.arguments import hook_input
from probq.network.tracing.channel_sources import channel_source
from probq.network.tracing.module_kinds import NORMS, TABLES, has_plain_forward
from probq.network.tracing.product_calls import ELEMENTWISE, Operand, Product
from probq.network.tracing.products import is_product, macs_of
from probq.network.tracing.stand_ins import StandIn


@dataclass
class LayerRecord:
    """A record of a layer, or of an operand of a product of two tensors, holds what all its calls showed together."""

    name: str
    module: Any
    macs: int = 0
    inputs: int = 0
    outputs: int = 0
    first: bool = True
    smallest: float = float("inf")
    norm: str | None = None
    uses: int = 0
    reads: str | None = None
    shape: tuple[int, ...] = ()

    @property
    def plain(self) -> bool:
        """Return whether a call computes what `torch.nn` says of its kind, and nothing else."""
        return isinstance(self.module, Product) or has_plain_forward(self.module)


class Recorder(TorchDispatchMode):
    """A recorder notes the calls of layers, and every matrix product that happens outside of one."""

    def __init__(
        self, net: nn.Module, modules: Mapping[str, Any], constant: Collection[str], storages: Mapping[int, str]
    ) -> None:
        super().__init__()
        self.net, self.modules, self.constant, self.storages = net, modules, constant, storages
        self.records: dict[str, LayerRecord] = {}
        self.operands: dict[str, LayerRecord] = {}
        self.samples: dict[str, list[Tensor]] = {}  # of all calls
        self.stray: dict[tuple[str, str, str | None], int] = {}
        self.norms: dict[str, int] = {}  # calls of each normalisation
        self.activations: dict[str, tuple[str | None, list[Tensor]]] = {}  # the layer called before, and the inputs
        self._last: str | None = None
        self._names = {id(m): n for n, m in modules.items()}
        self._stack: list[str] = []
        self._made: dict[int, tuple[Tensor, str]] = {}
        self._nodes: dict[Any, tuple[str, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if is_product(func):
            macs = macs_of(func, args, kwargs or {}, out)
            self._product(func.overloadpacket.__name__, macs, [a for a in args if isinstance(a, Tensor)])
        return out

    def _product(self, operation: str, macs: int, operands: list[Tensor]) -> None:
        """Count a product for the layer within whose call it happens, or as a stray one."""
        place = self._stack[-1] if self._stack else ""
        weight = next((w for w in map(self._weight, operands) if w), None)
        record = self.records.get(place)
        if record is not None and (record.plain or (weight and self.modules[weight].weight is record.module.weight)):
            record.macs += macs
        elif weight is not None or place not in self.constant:  # what reads no input is computed once
            self.stray[place, operation, weight] = self.stray.get((place, operation, weight), 0) + macs

    def _weight(self, tensor: Tensor) -> str | None:
        return self.storages.get(tensor.untyped_storage().data_ptr())

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Let every module of the network announce when it is entered and left, within the context."""
        handles = []
        for name, module in self.net.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave(name), with_kwargs=True, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._stack.append(name)
            if id(module) in self._names:
                self._record(self.records, name, module, hook_input(args, kwargs))
            elif isinstance(module, Product):
                self.records.setdefault(name, LayerRecord(name, module))
            elif isinstance(module, Operand):
                self._record(self.operands, name, module, hook_input(args, kwargs))
            elif type(module) in TABLES or (isinstance(module, StandIn) and module.planned):
                _, kept = self.activations.setdefault(name, (self._last, []))
                kept.append(hook_input(args, kwargs).detach().clone())

        return hook

    def _record(self, records: dict[str, LayerRecord], name: str, module: nn.Module, x: Tensor) -> None:
        record = records.setdefault(name, LayerRecord(name, module))
        record.inputs += x.numel()
        record.shape = tuple(x.shape[1:])
        self._last = name if records is self.records else self._last
        record.first &= not x.requires_grad
        if x.is_floating_point():
            record.smallest = min(record.smallest, float(x.detach().min()))
            self.samples.setdefault(name, []).append(x.detach().clone())

    def _multiplied(self, record: LayerRecord, out: Tensor) -> None:
        """Note what a product gives; those of matrices are counted where torch computes them."""
        record.outputs += out.numel()
        record.macs += out.numel() if record.module.kind in ELEMENTWISE else 0

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            self._stack.pop()
            if isinstance(module, Product):
                self._multiplied(self.records[name], out)
            elif name in self.records and isinstance(out, Tensor):
                x = hook_input(args, kwargs)
                record = self.records[name]
                record.outputs += out.numel()
                reads = channel_source(module, x, self._nodes) if record.plain else None
                record.reads = reads if not record.uses or reads == record.reads else None
                record.uses += 1
                if isinstance(out.grad_fn, Node):
                    self._nodes[out.grad_fn] = (name, module)
                self._made[id(out)] = (out, name)
            elif isinstance(module, NORMS) and module.track_running_stats:
                self.norms[name] = self.norms.get(name, 0) + 1
                _, layer = self._made.get(id(hook_input(args, kwargs)), (None, None))
                if layer is not None:
                    self.records[layer].norm = name

        return hook
