"""Small integer models drawn by hypothesis, with extreme weights and inputs."""

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from probq import IntegerModel
from probq.integer import Node
from probq.integer.packing import Packing
from probq.utils.errors import ProbqError

OUT_OF_REACH = 2**31


def limits(bits, signed):
    """Lowest and highest integer of a width."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


@st.composite
def tensors(draw, shape, widest=8, extreme=None):
    """Weights of a drawn width: random ones, or all at an end of their range."""
    lo, hi = limits(draw(st.integers(1, widest)), draw(st.booleans()))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = extreme or draw(st.sampled_from(["random", "lowest", "highest", "ends"]))
    if kind == "random":
        return rng.integers(lo, hi + 1, shape)
    ends = {"lowest": [lo], "highest": [hi], "ends": [lo, hi]}[kind]
    return rng.choice(ends, shape)


@st.composite
def convolutions(draw, name, source, channels, sizes, widest=8):
    """A convolution, transposed or not, on `[channels, *sizes]`."""
    spatial, groups = len(sizes), draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
    each = lambda lo, hi: draw(st.lists(st.integers(lo, hi), min_size=spatial, max_size=spatial))  # noqa: E731
    transposed = draw(st.integers(0, 3)) == 0
    outputs = groups * draw(st.integers(1, 2))
    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    padding = [[low, high] for low, high in zip(each(0, 2), each(0, 2), strict=True)]
    shape = (channels, outputs // groups, *kernel) if transposed else (outputs, channels // groups, *kernel)
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    attributes["transposed"] = transposed
    if transposed:
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in stride]
    weight = draw(tensors(shape, widest))
    bias = draw(st.sampled_from([0, 1, 1000])) * draw(tensors((outputs,)))
    return Node(name, "conv", (source,), attributes, {"weight": weight, "bias": bias})


@st.composite
def requantizations(draw, name, source, channels, rank, linear=False, only_shifts=False, widest=8):
    """A requantization, its numbers per channel or one for all."""
    shape = (channels,) if linear else (channels, *[1] * (rank - 1))
    shape = draw(st.sampled_from([(), shape]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shift = rng.integers(0, draw(st.sampled_from([1, 8, 16])), shape)
    multiplier = np.left_shift(1, rng.integers(0, 3, shape))
    if not only_shifts and draw(st.booleans()):
        multiplier = rng.integers(0, 300, shape)
    half = np.left_shift(1, np.maximum(shift, 1) - 1) * (shift > 0)
    add = half if draw(st.booleans()) else rng.integers(-5000, 5000, shape) * multiplier
    if draw(st.integers(0, 4)) == 0:
        attributes = {"lo": 0, "hi": 1, "start": -1, "step": 2}
        add = add if not only_shifts else half * 2
    else:
        lo, hi = limits(draw(st.integers(1, widest)), draw(st.booleans()))
        attributes = {"lo": min(max(lo, draw(st.integers(-300, 0))), hi), "hi": hi}
    values = {"multiplier": multiplier, "add": add, "shift": shift}
    return Node(name, "requantize", (source,), attributes, {k: np.asarray(v, np.int64) for k, v in values.items()})


@st.composite
def models(draw, widest=8, only_shifts=False, limit=OUT_OF_REACH, moves=False):
    """A convolution, a requantization, sometimes pooling and a second round, and a linear layer.

    Args:
        draw: of hypothesis.
        widest: bits of weights and activations at most.
        only_shifts: whether multipliers are powers of two.
        limit: beyond which no integer of the model may reach.
        moves: whether tables, repetitions, paddings and slices may follow a requantization.
    """
    spatial = draw(st.integers(1, 2))
    channels, sizes = draw(st.integers(1, 4)), draw(st.lists(st.integers(1, 6), min_size=spatial, max_size=spatial))
    lo, hi = limits(draw(st.integers(1, widest)), draw(st.booleans()))
    nodes = [Node("x", "input", attributes={"shape": [channels, *sizes], "scale": 0.5, "lo": lo, "hi": hi})]
    for k in range(draw(st.integers(1, 2))):
        conv = draw(convolutions(f"conv{k}", nodes[-1].name, channels, sizes, widest))
        nodes.append(conv)
        channels = len(conv.tensors["bias"])
        nodes.append(draw(requantizations(f"q{k}", conv.name, channels, spatial + 1, False, only_shifts, widest)))
        sizes = shape_of(nodes)[1:]
        for j in range(draw(st.integers(0, 2)) * moves):
            nodes.append(draw(moved(f"move{k}{j}", nodes)))
            sizes = shape_of(nodes)[1:]
        if draw(st.booleans()):
            nodes.append(draw(pools(f"pool{k}", nodes[-1].name, spatial)))
            sizes = shape_of(nodes)[1:]
    nodes.append(
        Node(
            "flat",
            "reshape",
            ("x",) if len(nodes) == 1 else (nodes[-1].name,),
            {"shape": [channels * int(np.prod(sizes))]},
        )
    )
    weight = draw(tensors((3, channels * int(np.prod(sizes))), widest))
    nodes.append(Node("fc", "linear", ("flat",), tensors={"weight": weight, "bias": draw(tensors((3,)))}))
    if draw(st.booleans()):
        nodes.append(draw(requantizations("q", "fc", 3, 1, True, only_shifts, widest)))
        weight = draw(tensors((2, 3), widest))
        nodes.append(Node("out", "linear", ("q",), tensors={"weight": weight, "bias": draw(tensors((2,)))}))
    model = IntegerModel([packed(draw, node) for node in nodes], nodes[-1].name, 0.25)
    assume(max(r.bound for r in model.ranges.values()) < limit)
    return model


@st.composite
def moved(draw, name, nodes):
    """A table over whatever the last node may give, or its values repeated, padded with zeros or cut."""
    source, op = nodes[-1].name, draw(st.sampled_from(["table", "table", "repeat", "pad", "slice"]))
    found = IntegerModel(nodes, source, 1.0).ranges[source]
    spatial = len(found.shape) - 1
    if op == "table":
        first = found.low - draw(st.integers(0, 2))
        table = draw(tensors((found.high - first + draw(st.integers(1, 3)),)))
        return Node(name, op, (source,), {"first": first}, {"table": table})
    if op == "repeat":
        factors = draw(st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial))
        return Node(name, op, (source,), {"factors": factors})
    if op == "pad":
        pairs = draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=2), min_size=spatial, max_size=spatial))
        return Node(name, op, (source,), {"padding": pairs})
    start = draw(st.integers(0, found.shape[-1] - 1))
    stop = draw(st.integers(start + 1, found.shape[-1]))
    return Node(name, op, (source,), {"axis": -1, "start": start, "stop": stop, "step": draw(st.integers(1, 2))})


@st.composite
def pools(draw, name, source, spatial):
    """A maximum or a sum over windows."""
    each = lambda lo, hi: draw(st.lists(st.integers(lo, hi), min_size=spatial, max_size=spatial))  # noqa: E731
    kernel, stride, op = each(1, 3), each(1, 3), draw(st.sampled_from(["max_pool", "sum_pool"]))
    padding = [[draw(st.integers(0, k // 2)), draw(st.integers(0, k // 2))] for k in kernel]
    attributes = {"kernel": kernel, "stride": stride, "padding": padding}
    if op == "max_pool":
        attributes |= {"dilation": each(1, 2), "ceil_mode": draw(st.booleans())}
    return Node(name, op, (source,), attributes)


def shape_of(nodes):
    """Shape of the last node's output without the batch; a model that does not fit together is drawn again."""
    try:
        return IntegerModel(nodes, nodes[-1].name, 1.0).ranges[nodes[-1].name].shape
    except ProbqError:
        assume(False)
        raise


def packed(draw, node):
    """Sometimes with the weight stored on two codebooks, chosen per output channel."""
    weight = node.tensors.get("weight")
    if weight is None or not draw(st.booleans()):
        return node
    levels = range(int(weight.min()), int(weight.max()) + 1)
    books = (levels, tuple(sorted({int(w) for w in weight.reshape(-1)})))
    rung = np.arange(len(weight)).reshape(-1, *[1] * (weight.ndim - 1)) % 2
    return Node(node.name, node.op, node.inputs, node.attributes, node.tensors, {"weight": Packing(books, rung)})


def inputs(model, count=8, seed=0):
    """Integers for a model: its lowest, its highest, and random ones."""
    spec, rng = model.input.attributes, np.random.default_rng(seed)
    shape = tuple(spec["shape"])
    rows = [np.full(shape, spec["lo"]), np.full(shape, spec["hi"]), rng.choice([spec["lo"], spec["hi"]], shape)]
    return np.stack([*rows, *rng.integers(spec["lo"], spec["hi"] + 1, (count, *shape))])


def one_layer(weight, bias, shift, hi, bits=8, lo=0, multiplier=1):
    """A linear layer, a requantization by a shift, and a layer that passes its codes on."""
    weight = np.asarray(weight)
    nodes = [Node("x", "input", attributes={"shape": [weight.shape[1]], "scale": 1.0, "lo": 0, "hi": 2**bits - 1})]
    nodes.append(Node("fc", "linear", ("x",), tensors={"weight": weight, "bias": np.asarray(bias)}))
    half = np.left_shift(1, shift - 1) if shift else 0
    numbers = {"multiplier": np.array(multiplier), "add": np.array(half), "shift": np.array(shift)}
    nodes.append(Node("q", "requantize", ("fc",), {"lo": lo, "hi": hi}, numbers))
    eye = {"weight": np.eye(len(weight), dtype=int), "bias": np.zeros(len(weight), int)}
    return IntegerModel([*nodes, Node("out", "linear", ("q",), tensors=eye)], "out", 1.0)
