"""Layers whose inputs are bytes are computed in blocks, or channel by channel, in whatever instructions there are."""

import re
from pathlib import Path

import numpy as np
import pytest
from c_programs import differing
from random_models import inputs

from probq import IntegerModel
from probq.export.c import writer as c
from probq.integer import Node
from probq.integer.packing import Packing, bits_of

CPU = Path("/proc/cpuinfo")
HAS_AVX2 = CPU.exists() and "avx2" in CPU.read_text()
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover")
FLAGS = pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("-O0", "-fsanitize=address", *UNDEFINED), id="-O0 sanitized"),
        pytest.param(("-O3", "-march=native"), id="native"),
        pytest.param(("-O2", "-mavx2"), id="AVX2", marks=pytest.mark.skipif(not HAS_AVX2, reason="no AVX2 here")),
        pytest.param(("-O1", "-U__SSE2__", *UNDEFINED), id="no vectors"),
    ],
)
BOOKS = (range(-1, 2, 2), range(-1, 2), range(-3, 5), range(-8, 8), (-16, -4, -1, 0, 1, 4, 16), range(-16, 15),
         range(-64, 0, 2), range(-64, 64), range(-128, 128))  # fmt: skip
SIGNED, UNSIGNED = {"lo": -128, "hi": 127}, {"lo": 0, "hi": 255}


def model(book, limits, shape, kernel=None, outputs=16, rounded=True, **spec) -> IntegerModel:
    """An input and a convolution, or a linear layer, of random weights; by default its sums become bytes."""
    rng, groups = np.random.default_rng(len(book) + outputs), spec.get("groups", 1)
    shape_of = (outputs, shape[-1]) if kernel is None else (outputs, shape[0] // groups, *kernel)
    tensors = {"weight": rng.choice(np.array(book), shape_of), "bias": rng.integers(-999, 999, outputs)}
    plain = {"stride": [1, 1], "padding": [[0, 0]] * 2, "dilation": [1, 1], "groups": 1, "transposed": False}
    packing, op = {"weight": Packing((book,), np.array(0))}, "linear" if kernel is None else "conv"
    numbers = {"multiplier": np.array(3), "add": np.array(17), "shift": np.array(9)}
    nodes = [
        Node("x", "input", attributes={"shape": list(shape), "scale": 1.0, **limits}),
        Node("y", op, ("x",), plain | spec if kernel else {}, tensors, packing),
        Node("q", "requantize", ("y",), {"lo": -99, "hi": 120}, numbers),
    ]
    return IntegerModel(nodes[: 2 + rounded], nodes[1 + rounded].name, 1.0)


def in_blocks() -> dict[str, IntegerModel]:
    """Every width on an image that is read as it lies, and the rest of the layer's forms at one width each."""
    found = {}
    for k, book in enumerate(BOOKS):
        limits = (SIGNED, UNSIGNED)[k % 2]
        found[f"width{k}"] = model(book, limits, (8, 6, 5), (3, 3), rounded=k % 3 > 0, padding=[[1, 1]] * 2)
    byte, nibble = BOOKS[-1], BOOKS[3]
    for k, limits in enumerate((SIGNED, UNSIGNED)):
        found |= {
            f"copied{k}": model(byte, limits, (3, 9, 7), (3, 3), 32, padding=[[1, 0], [2, 1]]),
            f"copiednarrow{k}": model(nibble, limits, (1, 9, 7), (3, 5), 35, stride=[2, 1]),
            f"spread{k}": model(nibble, limits, (4, 9, 11), (3, 2), 12, dilation=[2, 3], stride=[1, 2]),
            f"point{k}": model(byte, limits, (20, 5, 3), (1, 1), 48),
            f"strided{k}": model(byte, limits, (20, 5, 3), (1, 1), 16, stride=[2, 2]),
            f"rows{k}": model(byte, limits, (7, 30), None, 11),
            f"tiles{k}": model(nibble, limits, (30, 50, 50), (1, 1), 16),
        }
    return found


@FLAGS
def test_no_output_of_a_block_differs(flags, tmp_path):
    models = {name: (each, inputs(each, 5)) for name, each in in_blocks().items()}
    for name, (each, _) in models.items():
        assert c.header(each, name).count(", blocks */") == 1, name
    assert not any(differing(models, tmp_path, (*flags, "-Werror")).values())


@FLAGS
def test_no_output_of_single_channels_differs(flags, tmp_path):
    """Channels in eights and a rest, windows of odd and even size."""
    models = {}
    for k, (channels, kernel) in enumerate([(8, (3, 3)), (19, (2, 1)), (5, (3, 2)), (24, (1, 1))]):
        for limits in (SIGNED, UNSIGNED):
            spec = {"groups": channels, "padding": [[1, 0]] * 2, "stride": [1, 2]}
            each = model(BOOKS[-1 - k], limits, (channels, 7, 6), kernel, channels, **spec)
            models[f"m{len(models)}"] = (each, inputs(each, 5))
            assert c.header(each, "m").count(", depthwise */") == 1
    assert not any(differing(models, tmp_path, (*flags, "-Werror")).values())


@pytest.mark.parametrize("book", BOOKS[:-1])
def test_weights_in_blocks_take_their_own_width(book):
    """Whole blocks of outputs and of neighbours need no more bits than the codes."""
    text = c.header(model(book, UNSIGNED, (8, 6, 5), (3, 3)), "m")
    beside = 4 * (16 + 18) + (len(book) if isinstance(book, tuple) else 0)  # biases, places in the image, levels
    assert int(re.search(r"(\d+) bytes of constants", text)[1]) == 16 * 72 * bits_of(book) // 8 + beside


def test_few_channels_of_few_bits_are_no_bit_planes():
    bits = {"lo": 0, "hi": 3}
    assert ", blocks" in c.header(model(BOOKS[0], bits, (16, 6, 5), (3, 3)), "m")
    assert "bit planes" in c.header(model(BOOKS[0], bits, (32, 6, 5), (3, 3)), "m")


def test_layers_that_blocks_do_not_suit_take_none():
    byte = BOOKS[-1]
    others = {
        "few outputs": model(byte, UNSIGNED, (8, 6, 5), (3, 3), 3),
        "one window": model(byte, UNSIGNED, (40,), None, 16),
        "wide inputs": model(byte, {"lo": 0, "hi": 256}, (8, 6, 5), (3, 3)),
        "wide weights": model(range(-128, 129), UNSIGNED, (8, 6, 5), (3, 3)),
        "groups": model(byte, UNSIGNED, (8, 6, 5), (3, 3), groups=2),
    }
    for name, each in others.items():
        assert ", blocks" not in c.header(each, "m"), name
