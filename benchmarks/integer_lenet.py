"""LeNet-5 in integers of any widths, its weights random: for timing and for checks on other processors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probq.integer import IntegerModel, Node
from probq.integer.packing import Packing

LAYERS = (("conv1", (32, 1, 5, 5)), ("conv2", (64, 32, 5, 5)), ("fc1", (512, 1024)), ("fc2", (10, 512)))


def integer_lenet(weight_bits: Sequence[int], input_bits: Sequence[int], rng: np.random.Generator) -> IntegerModel:
    """LeNet-5 in integers; the shifts are chosen so that activations use their range."""
    top = [2**bits - 1 for bits in input_bits]
    x = rng.integers(0, top[0] + 1, (8, 1, 28, 28))
    nodes = [Node("input", "input", (), {"shape": [1, 28, 28], "scale": 2.0**-8, "lo": 0, "hi": top[0]})]
    conv = {"stride": [1, 1], "padding": [[0, 0]] * 2, "dilation": [1, 1], "groups": 1, "transposed": False}
    pool = {"kernel": [2, 2], "stride": [2, 2], "padding": [[0, 0]] * 2, "dilation": [1, 1], "ceil_mode": False}
    for k, (name, shape) in enumerate(LAYERS):
        if name == "fc1":
            nodes.append(Node("flat", "reshape", (nodes[-1].name,), {"shape": [shape[1]]}))
        largest = 2 ** (weight_bits[k] - 1) - 1
        book = range(-1, 2, 2) if weight_bits[k] == 1 else range(-largest, largest + 1)
        tensors = {"weight": rng.choice(np.array(book), shape), "bias": rng.integers(-50, 50, shape[0])}
        packing = {"weight": Packing((book,), np.array(0))}
        op, spec = ("conv", conv) if len(shape) == 4 else ("linear", {})
        nodes.append(Node(name, op, (nodes[-1].name,), spec, tensors, packing))
        if name == "fc2":
            break
        spread = float(IntegerModel(nodes, name, 1.0).run(x).std())
        shift = max(1, round(np.log2(2 * spread / (top[k + 1] + 0.5))))
        numbers = {"multiplier": np.array(1), "add": np.array(2 ** (shift - 1)), "shift": np.array(shift)}
        nodes.append(Node(f"{name}.q", "requantize", (name,), {"lo": 0, "hi": top[k + 1]}, numbers))
        if op == "conv":
            nodes.append(Node(f"{name}.pool", "max_pool", (nodes[-1].name,), pool))
    return IntegerModel(nodes, "fc2", 2.0**-10)
