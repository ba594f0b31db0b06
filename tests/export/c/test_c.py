"""The C header computes the model's integers: without optimization under sanitizers, and with all of it."""

import re
import subprocess

import numpy as np
import pytest
from c_programs import differing, smallest_differing
from hypothesis import given, settings
from hypothesis import strategies as st
from model_features import EVERYTHING, features
from networks import NETWORKS, PLANS, lowered
from random_models import inputs, seeded

from probq import IntegerModel, ProbqError
from probq.export.c import compiler
from probq.export.c import writer as c
from probq.export.c.code.text import identifier
from probq.export.c.code.values import MOST, ranges
from probq.export.c.compiler import build, execute
from probq.integer import Node
from probq.integer.interpreter import OPERATIONS
from probq.integer.packing import Packing

SANITIZED = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover", "-Werror")
FASTEST = ("-O3", "-march=native", "-Werror")
USUAL = ("-O2", "-Werror")
FLAGS = pytest.mark.parametrize("flags", [SANITIZED, FASTEST, USUAL], ids=["-O0 sanitized", "native", "-O2"])


@pytest.mark.filterwarnings("ignore:.*has negative values")
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_no_output_differs(network, tmp_path):
    models = {}
    for number, plan in enumerate(PLANS.values()):
        (model,), x = lowered(network, plan)
        models[f"m{number}"] = (model, model.quantize_input(x))
    assert not any(differing(models, tmp_path, SANITIZED, USUAL).values())
    some = {name: models[name] for name in list(models)[::4]}
    assert not any(differing(some, tmp_path, FASTEST).values())


def test_random_models(tmp_path):
    wrong = smallest_differing(range(16), tmp_path, SANITIZED, USUAL, FASTEST)
    assert wrong is None, wrong.nodes


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_values_stay_within_their_ranges(seed):
    model = seeded(seed)
    found, values = ranges(model), model.values(inputs(model, 12))
    for name, value in values.items():
        assert (value >= found[name].low).all()
        assert (value <= found[name].high).all()
        assert not ((value - found[name].low.min()) % found[name].step).any()


def test_random_models_hold_everything():
    """Every operation but switches, whose branches have random models of their own, and every width, stride, padding,
    grouping, sign and kind of multiplier.
    """
    found = set().union(*(features(seeded(seed)) for seed in range(400)))
    assert found >= EVERYTHING | {f"op {op}" for op in OPERATIONS if op != "switch"}


def test_a_model_that_differs_is_shrunk_to_its_cause(tmp_path, monkeypatch):
    """A writer that forgets the greatest integer of every clip: an input and a clip are left."""
    write = c.write

    def forgetful(model, path):
        nodes = [
            Node(node.name, "clip", node.inputs, {**node.attributes, "hi": None}) if node.op == "clip" else node
            for node in model.nodes
        ]
        write(IntegerModel(nodes, model.output, model.output_scale), path)

    monkeypatch.setattr(c, "write", forgetful)
    kinds = {seed: [node.op for node in seeded(seed).nodes] for seed in range(300)}
    seeds = [seed for seed, ops in kinds.items() if "clip" in ops and "loop" not in ops]  # whose states are clipped
    wrong = smallest_differing(seeds, tmp_path, ("-O0",))
    assert [node.op for node in wrong.nodes] == ["input", "clip"]
    assert wrong.nodes[1].attributes["hi"] is not None


def chain(*nodes: Node, shape=(4,), lo=0, hi=255, scale=1.0, **attributes) -> IntegerModel:
    spec = {"shape": list(shape), "scale": scale, "lo": lo, "hi": hi, **attributes}
    return IntegerModel([Node("x", "input", attributes=spec), *nodes], nodes[-1].name, 0.125)


def linear(weight, bias=None, packing=None, source="x", name="fc") -> Node:
    weight = np.asarray(weight)
    bias = np.zeros(len(weight), int) if bias is None else np.asarray(bias)
    return Node(name, "linear", (source,), {}, {"weight": weight, "bias": bias}, packing or {})


def shifted(source, bits, hi, name="q", lo=0, **levels) -> Node:
    numbers = {"multiplier": np.array(1), "add": np.array(2**bits // 2), "shift": np.array(bits)}
    return Node(name, "requantize", (source,), {"lo": lo, "hi": hi, **levels}, numbers)


@FLAGS
def test_integers_up_to_31_bits(flags, tmp_path):
    """The largest sums there may be, of either sign, and 64-bit products in the requantization."""
    model = chain(linear([[2**23, 2**23 - 1]] * 2, [127 - 2**23 + 2**23, -127]), shape=(2,), lo=-128, hi=128)
    assert ranges(model)["fc"].most == 128 * (2**24 - 1) + 127 == MOST
    wide = Node(
        "q", "requantize", ("fc",), {"lo": -(2**15), "hi": 2**15 - 1},
        {"multiplier": np.array([2**30, -(2**30)]), "add": np.array([2**61 - 1, 5]), "shift": np.array([45, 44])},
    )  # fmt: skip
    x = np.array([[128, 128], [-128, -128], [128, -128], [3, -7]])
    models = {"a": (model, x), "b": (chain(*model.nodes[1:], wide, shape=(2,), lo=-128, hi=128), x)}
    assert differing(models, tmp_path, flags) == {"a": 0, "b": 0}


def test_integers_beyond_31_bits_are_refused_with_node_bound_and_limit(tmp_path):
    model = chain(linear([[2**23, 2**23 - 1]], [128]), shape=(2,), lo=-128, hi=128)
    with pytest.raises(ProbqError, match=r"node fc \(linear\) .*2,147,483,648, the limit is 2,147,483,647 \(31 bits\)"):
        c.write(model, tmp_path / "m.h")
    assert list(tmp_path.iterdir()) == []


@FLAGS
def test_sums_of_bytes_that_gcc_12_compiled_wrongly(flags, tmp_path):
    total = Node("sum", "sum", ("x",), {"axes": [0], "keepdims": False})
    times = Node("times", "multiply", ("sum",), tensors={"multiplier": np.array([7, 3])})
    pool = Node("pool", "sum_pool", ("x",), {"kernel": [1], "stride": [1], "padding": [[0, 0]]})
    small, x = {"shape": (4, 2), "lo": -8, "hi": 7}, np.arange(-8, 8).reshape(2, 4, 2)
    models = {"a": (chain(total, times, **small), x), "b": (chain(pool, **small), x)}
    assert differing(models, tmp_path, flags) == {"a": 0, "b": 0}


LEVELS = {"1 bit": (0, 1), "2 bits": (0, 3), "signed": (-2, 1), "binary": (-1, 1), "ternary": (-1, 1)}


@FLAGS
def test_bit_planes(flags, tmp_path):
    """Pairs of levels of at most two bits, padded or not, in numbers of channels and outputs that leave rests."""
    rng, models = np.random.default_rng(0), {}
    for k, (x_levels, (lo, hi)) in enumerate(LEVELS.items()):
        for w_levels, (low, high) in LEVELS.items():
            if (k + list(LEVELS).index(w_levels)) % 2:
                continue
            step = 1 + (w_levels == "binary")
            book, (channels, outputs, pad) = range(low, high + 1, step), [(64, 41, 0), (40, 35, 1), (24, 7, 0)][k % 3]
            shape = (outputs, channels, 3, 2)
            weight = rng.choice(np.array(book), shape)
            spec = {"stride": [1, 2], "padding": [[pad, 0], [0, pad]], "dilation": [1 + k % 2, 1]}
            conv = Node(
                "conv", "conv", ("x",), {**spec, "groups": 1, "transposed": False},
                {"weight": weight, "bias": rng.integers(-9, 9, outputs)}, {"weight": Packing((book,), np.array(0))},
            )  # fmt: skip
            binary = {"start": -1, "step": 2} if x_levels == "binary" else {}
            limits = {"lo": 0, "hi": 1} | binary if binary else {"lo": lo, "hi": hi}
            model = chain(
                conv, shifted("conv", 3, limits["hi"], lo=limits["lo"], **binary), shape=(channels, 6, 5), **limits
            )
            size = int(np.prod(model.run(inputs(model, 2)).shape[1:]))
            flat = Node("flat", "reshape", ("q",), {"shape": [size]})
            rows = rng.choice(np.array(book), (37, size))
            fc = linear(rows, rng.integers(-9, 9, 37), {"weight": Packing((book,), np.array(0))}, "flat")
            name = f"m{len(models)}"
            models[name] = (IntegerModel([*model.nodes, flat, fc], "fc", 1.0), inputs(model, 6))
            assert c.header(models[name][0], name).count("bit planes */") == 2, (x_levels, w_levels)
    assert not any(differing(models, tmp_path, flags).values())


def convolution(x_channels, outputs, kernel, low, high, **spec) -> Node:
    rng = np.random.default_rng(0)
    attributes = {
        "stride": [1, 1],
        "padding": [[0, 0]] * 2,
        "dilation": [1, 1],
        "groups": 1,
        "transposed": False,
    } | spec
    shape = (outputs, x_channels // attributes["groups"], *kernel)
    tensors = {"weight": rng.integers(low, high + 1, shape), "bias": rng.integers(-99, 99, outputs)}
    return Node("conv", "conv", ("x",), attributes, tensors)


@FLAGS
def test_long_windows(flags, tmp_path):
    """Windows of hundreds of elements in parts and with rests, positions in several tiles, bytes of either sign."""
    models = {}
    for k, (lo, hi) in enumerate([(0, 255), (-128, 127), (0, 2047)]):
        span = {"lo": lo, "hi": hi}
        rows = np.random.default_rng(k).integers(-128, 128, (9, 203))
        layers = {
            "row": (linear(rows), (203,)),
            "rows": (linear(rows), (7, 203)),
            "tiles": (convolution(16, 5, (3, 3), -128, 127), (16, 34, 30)),
            "padded": (convolution(20, 3, (3, 5), -8, 7, padding=[[1, 1], [2, 0]]), (20, 6, 7)),
            "groups": (convolution(128, 4, (2, 1), -3, 3, groups=2, stride=[1, 2]), (128, 4, 5)),
            "1x1": (convolution(70, 3, (1, 1), -128, 127), (70, 40, 40)),
        }
        for name, (node, shape) in layers.items():
            model = chain(node, shape=shape, **span)
            models[f"{name.replace('1x1', 'point')}{k}"] = (model, inputs(model, 4))
    assert not any(differing(models, tmp_path, flags).values())


def test_wide_layers_take_no_bit_planes():
    weight = np.arange(128).reshape(1, 128) % 8
    assert "bit planes" not in c.header(chain(linear(weight), shape=(128,), hi=1), "m")
    assert "bit planes" not in c.header(chain(linear(weight % 2), shape=(128,), hi=4), "m")
    assert "bit planes" in c.header(chain(linear(weight % 2), shape=(128,), hi=3), "m")


def test_the_text_has_no_float_and_no_allocation_and_says_what_it_is(tmp_path):
    model = chain(linear(np.eye(4, dtype=int) * 3))
    c.write(model, tmp_path / "net.h")
    text = (tmp_path / "net.h").read_text()
    assert not re.search(r"\b(float|double|malloc|calloc|alloca)\b", text)
    assert model.sha256() in text
    assert "1 / 8 = 2^-3" in text
    assert "#define net_INPUT_SIZE 4\n#define net_OUTPUT_SIZE 4" in text
    assert "net_run(const uint8_t *input, int32_t *output)" in text
    odd = IntegerModel(model.nodes, model.output, 2.0**-3 / 3)
    assert f"{(2.0**-3 / 3).as_integer_ratio()[0]} / " in c.header(odd, "m")


@pytest.mark.parametrize("bits", range(1, 17))
def test_weights_take_their_own_width(bits):
    levels = range(-(2 ** (bits - 1)), 2 ** (bits - 1))
    weight = np.random.default_rng(0).integers(levels[0], levels[-1] + 1, (40, 100))
    text = c.header(chain(linear(weight, None, {"weight": Packing((levels,), np.array(0))}), shape=(100,)), "m")
    size = int(re.search(r"(\d+) bytes of constants", text)[1])
    assert size <= 40 * -(-100 * bits // 8) + bits + 1 + 8


def test_buffers_are_used_again():
    """Ten operations in a row on 1000 bytes need two buffers."""
    steps = [Node(f"n{k}", "clip", (f"n{k - 1}" if k else "x",), {"lo": k, "hi": 255 - k}) for k in range(10)]
    text = c.header(chain(*steps, shape=(1000,)), "m")
    assert "m_pool8[2048]" in text


def test_names_are_made_c_identifiers_and_cannot_end_comments(tmp_path):
    node = linear(np.eye(4, dtype=int), name="*\\ evil \n#error")
    model = chain(node)
    c.write(model, tmp_path / "3-d net é.v2.h")
    x = np.arange(8).reshape(2, 4)
    assert np.array_equal(c.run(tmp_path / "3-d net é.v2.h", x), model.run(x))
    assert identifier("3-d net é.v2") == "m_3_d_net___v2"


def test_run_gives_the_shape_of_the_output_and_takes_no_example(tmp_path):
    model = chain(Node("p", "permute", ("x",), {"axes": [1, 0]}), shape=(2, 3))
    c.write(model, tmp_path / "m.h")
    x = np.arange(12).reshape(2, 2, 3)
    assert np.array_equal(c.run(tmp_path / "m.h", x), model.run(x))
    assert c.run(tmp_path / "m.h", x[:0]).shape == (0, 3, 2)


def test_the_test_program_finds_a_difference(tmp_path):
    model = chain(linear(np.eye(4, dtype=int)))
    c.write(model, tmp_path / "net.h")
    x = inputs(model, 5)
    c.write_test(model, tmp_path / "net_test.c", x)
    build(tmp_path / "net_test.c", tmp_path / "a.out", c.WARNINGS)
    assert execute(tmp_path / "a.out", b"") == b"0 of 20 outputs differ\n"
    other = chain(linear(np.eye(4, dtype=int), [0, 0, 0, 1]))
    c.write_test(other, tmp_path / "net_test.c", x)
    build(tmp_path / "net_test.c", tmp_path / "a.out", c.WARNINGS)
    done = subprocess.run([tmp_path / "a.out"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"5 of 20 outputs differ\n")


def test_bad_input_is_refused(tmp_path, monkeypatch):
    model = chain(linear(np.eye(4, dtype=int)))
    path = tmp_path / "m.h"
    c.write(model, path)
    with pytest.raises(ProbqError, match="takes 4 integers"):
        c.run(path, np.zeros((2, 3), int))
    with pytest.raises(ProbqError, match="takes 4 integers"):
        c.run(path, np.zeros((2, 4)))
    with pytest.raises(ProbqError, match=r"0 \.\. 256 do not fit uint8_t"):
        c.run(path, np.array([[0, 0, 0, 256]]))
    (tmp_path / "other.h").write_text("int x;")
    with pytest.raises(ProbqError, match="not a header"):
        c.run(tmp_path / "other.h", np.zeros((2, 4), int))
    with pytest.raises(ProbqError, match="cannot read"):
        c.run(tmp_path / "none.h", np.zeros((2, 4), int))
    with pytest.raises(ProbqError, match="folder that exists"):
        c.write(model, tmp_path / "none" / "m.h")
    with pytest.raises(ProbqError, match="cannot compile main"):
        c.run(path, np.zeros((2, 4), int), ["-no-such-flag"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProbqError, match="none of cc, gcc, clang"):
        c.run(path, np.zeros((2, 4), int))


def test_a_value_without_elements_is_refused(tmp_path):
    with pytest.raises(ProbqError, match="has no elements"):
        c.write(chain(Node("n", "clip", ("x",), {"lo": 0, "hi": 1}), shape=(0,)), tmp_path / "m.h")


def test_a_program_that_takes_too_long_is_one_error(tmp_path, monkeypatch):
    source = tmp_path / "main.c"
    source.write_text("int main(void) { volatile int forever = 1; while (forever) { } return 0; }\n")
    compiler.build(source, tmp_path / "main", [])
    monkeypatch.setattr(compiler, "SECONDS", 0.2)
    with pytest.raises(ProbqError, match=r"main took more than 0\.2 seconds"):
        compiler.execute(tmp_path / "main", b"")
