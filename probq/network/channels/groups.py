"""Channels that several modules share are found by following autograd's graph of one run backwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scipy.cluster.hierarchy import DisjointSet
from torch import Tensor, nn

from probq.network.tracing.channel_sources import (
    ELEMENTWISE,
    FLATTENS,
    NORM_NODES,
    fits,
    flattens,
    kind_of,
    pools,
)
from probq.network.tracing.example_run import run_example
from probq.network.tracing.module_kinds import NORMS, QUANTIZABLE
from probq.utils.structures.tensors import arguments, tensors_in

JOINING = frozenset(["Add", "Sub", "Mul"])  # of two tensors, channel by channel
OUTPUT = "they are outputs of the network"
UNREAD = "no layer is known to read them; a forward without gradients, or `detach`, hides who does"


@dataclass(frozen=True)
class ChannelGroup:
    """A channel group is one axis of channels that layers make, normalisations scale and other layers read.

    Attributes:
        count: number of channels.
        makers: layers whose output channels these are; depthwise convolutions are among them.
        norms: batch normalisations that scale them.
        readers: layers that sum over them.
        fixed: why their number cannot change; empty where it can.
    """

    count: int
    makers: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    fixed: str = ""


def channel_groups(net: nn.Module, example: Any) -> dict[str, ChannelGroup]:
    """Return the channel group of each layer's outputs, by the name of the layer, for layers that one run reaches.

    Element-wise functions, pooling, batch normalisation, flattening of images, sums and products of equally many
    channels and depthwise convolutions leave channels where they are. What anything else reads cannot change, as little
    as the network's outputs. What one layer reads in several calls has the same channels, and so has what one
    normalisation scales, and what layers of one weight make or read.

    Args:
        net: the network, left as it is.
        example: a batch of inputs as in `quantize`.

    Raises:
        ProbqError: if the network cannot run on the example.
    """
    walk = _Walk({name: module for name, module in net.named_modules() if isinstance(module, (*QUANTIZABLE, *NORMS))})
    handles = [module.register_forward_hook(walk.hook_of(name)) for name, module in walk.modules.items()]
    handles.append(net.register_forward_hook(lambda module, args, out: walk.ends(out)))
    try:
        run_example(net, arguments(example))
    finally:
        for handle in handles:
            handle.remove()
    return walk.groups()


def is_depthwise(module: Any) -> bool:
    """Return whether a convolution has a kernel of its own for each channel and as many outputs."""
    groups = getattr(module, "groups", 1)
    return groups > 1 and groups == module.in_channels == module.out_channels


def channels_of(module: Any) -> int:
    """Return the number of channels that a layer makes."""
    names = ("out_channels", "out_features", "embedding_dim")
    return int(next(getattr(module, name) for name in names if hasattr(module, name)))


class _Sources(NamedTuple):
    """Sources are the layers whose channels a tensor has.

    Attributes:
        makers: their names.
        flattened, pooled: whether it is so on the way.
        fixed: why the channels cannot change; empty where they can.
    """

    makers: list[str]
    flattened: bool
    pooled: bool
    fixed: str


@dataclass
class _Walk:
    """A walk holds what one run has told so far.

    Attributes:
        modules: layers and batch normalisations, by name.
        made: name of the layer or normalisation, by the graph node of its output; the node is kept alive.
        joined: names of layers that make the same channels.
        norms, readers: of each layer's channels.
        fixed: why a layer's channels cannot change.
        met: a layer whose channels each reader or normalisation has met, by the first layer of the same weight.
        bare: readers of what comes from no layer, likewise.
    """

    modules: Mapping[str, nn.Module]
    made: dict[Any, str] = field(default_factory=dict)
    joined: DisjointSet = field(default_factory=DisjointSet)
    norms: dict[str, set[str]] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    fixed: dict[str, str] = field(default_factory=dict)
    met: dict[str, str] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)

    def hook_of(self, name: str) -> Any:
        """Return a hook that follows what a module reads and remembers what it makes."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and not isinstance(module, NORMS):
                self._read(name, module, args[0])
            if isinstance(output, Tensor) and output.grad_fn is not None:
                self.made[output.grad_fn] = name
            if isinstance(module, QUANTIZABLE):
                self.joined.add(name)

        return hook

    def ends(self, output: Any) -> None:
        """Note that the network's outputs cannot change."""
        for tensor in tensors_in(output):
            for source in self._sources(tensor).makers:
                self.fixed.setdefault(source, OUTPUT)

    def _read(self, name: str, module: Any, x: Tensor) -> None:
        self.joined.add(name)
        sources, flattened, pooled, why = self._sources(x)
        if isinstance(module, nn.Embedding):
            why = why or "an embedding takes them as indices"
        if getattr(module, "groups", 1) > 1 and not is_depthwise(module):
            why = why or f"{name} reads them in groups"
            self.fixed.setdefault(name, "it is a grouped convolution")
        for source in sources:
            if not why and not is_depthwise(module) and not fits(module, self.modules[source], x, flattened, pooled):
                why = f"{name} does not read them one by one"
        self._note(sources, why)
        for source in sources:
            if is_depthwise(module):
                self.joined.merge(source, name)
            else:
                self.readers.setdefault(source, set()).add(name)
                self._meets(self._first(name), source)
        if not sources:
            self.bare.add(self._first(name))
        if is_depthwise(module) and not sources:
            self.fixed.setdefault(name, "its input's channels come from no layer")

    def _sources(self, x: Tensor) -> _Sources:
        """Return the layers whose channels a tensor has, and what became of them on the way."""
        found, norms, why, flattened, pooled = list[str](), set[str](), "", False, False
        nodes, seen = [x.grad_fn], set[Any]()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            name = self.made.get(node, "")
            if name and isinstance(self.modules[name], QUANTIZABLE):
                found.append(name)
                continue
            kind = kind_of(node)
            before = [parent for parent, _ in node.next_functions]
            if kind in NORM_NODES and name:
                norms.add(name)
                before = before[:1]
            elif kind.endswith("AccumulateGrad"):
                why = why or "a parameter of its own meets them"
            elif kind in FLATTENS and flattens(node, x):
                flattened = True
            elif pools(node):
                pooled = True
            elif kind not in ELEMENTWISE | JOINING:
                why = why or f"{kind.lower()} reads them"
            nodes += before
        if len({channels_of(self.modules[source]) for source in found}) > 1:
            why = why or "a sum or product spreads one channel over several"
        self._note(found, why)
        for source in found:
            self.joined.merge(found[0], source)
            self.norms.setdefault(source, set()).update(norms)
            for norm in norms:
                self._meets(norm, source)
        return _Sources(found, flattened, pooled, why)

    def _note(self, sources: Iterable[str], why: str) -> None:
        for source in sources if why else ():
            self.fixed.setdefault(source, why)

    def _meets(self, name: str, source: str) -> None:
        """Let all layers whose channels one reader or normalisation meets share them."""
        self.joined.merge(self.met.setdefault(name, source), source)

    def _first(self, name: str) -> str:
        """Return the first layer that has the weight of this one."""
        weight = getattr(self.modules[name], "weight", None)
        return next(other for other, module in self.modules.items() if getattr(module, "weight", None) is weight)

    def groups(self) -> dict[str, ChannelGroup]:
        """Return what was found."""
        found = {}
        for name in [name for name in self.joined if self._first(name) in self.joined]:
            self.joined.merge(self._first(name), name)
        for name in self.bare & set(self.met):
            self._note([self.met[name]], f"{name} also reads what comes from no layer")
        for makers in self.joined.subsets():
            ordered = [name for name in self.modules if name in makers]
            norms, readers = (
                tuple(n for n in self.modules if any(n in of.get(maker, ()) for maker in ordered))
                for of in (self.norms, self.readers)
            )
            why = next((self.fixed[maker] for maker in ordered if maker in self.fixed), "" if readers else UNREAD)
            group = ChannelGroup(channels_of(self.modules[ordered[0]]), tuple(ordered), norms, readers, why)
            found.update(dict.fromkeys(ordered, group))
        return {name: found[name] for name in self.modules if name in found}
