"""Attention that is spelled out gives torch's outputs in float, and widths, costs and exact integers once quantized."""

import copy

import numpy as np
import pytest
import torch
from exact_integers import assert_exact
from torch import nn

import probq
from probq import Plan
from probq.codebooks import ladder
from probq.nn import MultiheadAttention
from probq.testing import deployed

KINDS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False, "batch_first": True},
    "other keys": {"kdim": 5, "batch_first": True},
    "other keys and values": {"kdim": 5, "vdim": 3},
    "dropout": {"dropout": 0.5, "batch_first": True},
}
SAME = {"rtol": 1e-5, "atol": 1e-5}
FLOAT = pytest.mark.filterwarnings("ignore:probq.lower will refuse", "ignore:.*(stays float|of all layers)")
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attention(**options):
    """Attention with biases as after training, which are zero before."""
    torch.manual_seed(0)
    made = nn.MultiheadAttention(8, 2, **options)
    for name, p in made.named_parameters():
        if "bias" in name:
            nn.init.normal_(p)
    return made


def arguments(original, batch=3):
    """A query of 4 places, keys and values of 6."""
    shapes = ((4, 8), (6, original.kdim), (6, original.vdim))
    found = [drawn(batch, *shape, seed=k) for k, shape in enumerate(shapes)]
    return found if original.batch_first else [x.transpose(0, 1) for x in found]


def assert_same(net, other, *args, **options):
    """Outputs are equal, in evaluation mode with and without gradients, and in training."""
    for mode in (False, True):
        with torch.no_grad():
            torch.testing.assert_close(net.train(mode)(*args, **options), other.train(mode)(*args, **options), **SAME)
        torch.testing.assert_close(net(*args, **options), other(*args, **options), **SAME)


@every_kind
@pytest.mark.parametrize("weights", [{}, {"need_weights": False}, {"average_attn_weights": False}], ids=str)
def test_attention_is_what_torch_computes(options, weights):
    original = attention(**options)
    other = probq.explicit(original)
    assert isinstance(other, MultiheadAttention)
    original.dropout = other.dropout = 0.0
    assert_same(original, other, *arguments(original), **weights)


def test_one_sequence_without_a_batch_is_too():
    original = attention()
    assert_same(original, probq.explicit(original), *[drawn(4, 8)] * 3)


@pytest.mark.parametrize(
    "mask", [{"attn_mask": torch.ones(4, 6).triu(1).bool()}, {"key_padding_mask": drawn(3, 6) > 1}]
)
def test_masked_attention_is_too(mask):
    original = attention(batch_first=True)
    assert_same(original, probq.explicit(original), *arguments(original), **mask)


def test_dropout_is_that_of_the_original():
    """By its law: the share of weights that are dropped, and what scales the others."""
    original = attention(dropout=0.25, batch_first=True)
    other = probq.explicit(original).train()
    x = drawn(64, 16, 8)
    kept = original.eval()(x, x, x, average_attn_weights=False)[1]
    torch.manual_seed(0)
    ratio = other(x, x, x, average_attn_weights=False)[1] / kept
    assert float((ratio == 0).float().mean()) == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(ratio[ratio != 0], torch.full_like(ratio[ratio != 0], 4 / 3))


@every_kind
def test_parameters_of_the_original_can_be_loaded(options):
    original = attention(**options)
    other = probq.explicit(nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, **options)}))
    state = nn.ModuleDict({"a": original}).state_dict()
    names = list(state)
    other.load_state_dict(state)
    assert list(state) == names
    original.dropout = other["a"].dropout = 0.0
    assert_same(original, other["a"], *arguments(original))
    other.load_state_dict(other.state_dict())


TRANSFORMERS = {
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True), 2),
    "encoder, norms first": lambda: nn.TransformerEncoderLayer(
        8, 2, 12, 0.0, "gelu", norm_first=True, batch_first=True
    ),
    "decoder": lambda: nn.TransformerDecoderLayer(8, 2, 12, 0.0, batch_first=True),
    "both": lambda: nn.Transformer(8, 2, 1, 1, 12, 0.0, batch_first=True),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True", "ignore:.*nested tensors is in prototype")
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers_are_too(kind):
    torch.manual_seed(0)
    net = TRANSFORMERS[kind]()
    before = copy.deepcopy(net.state_dict())
    other = probq.explicit(net)
    args = [drawn(3, 5, 8)] if "encoder" in kind else [drawn(3, 5, 8), drawn(3, 5, 8, seed=1)]
    assert_same(net, other, *args)
    assert not any(isinstance(module, nn.MultiheadAttention) for module in other.modules())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    if kind == "encoder":
        padded = torch.tensor([[0, 0, 0, 0, 1]] * 3).bool()
        assert_same(net.train(), other.train(), *args)
        with torch.no_grad():
            there = net.eval()(*args, src_key_padding_mask=padded)
            here = other.eval()(*args, src_key_padding_mask=padded)
        torch.testing.assert_close(there[:, :4], here[:, :4], **SAME)


def test_what_cannot_be_spelled_out_stays():
    torch.manual_seed(0)
    tied = nn.ModuleList([attention(), attention()])
    tied[1].in_proj_weight = tied[0].in_proj_weight
    hooked = attention()
    hooked.register_forward_hook(lambda *_: None)
    for net in (attention(add_bias_kv=True), attention(add_zero_attn=True), tied, hooked):
        assert not any(isinstance(module, MultiheadAttention) for module in probq.explicit(net).modules())
    with pytest.raises(probq.ProbqError, match="not int"):
        probq.explicit(3)


def test_a_shared_module_is_one_and_what_does_not_learn_does_not():
    shared = attention(batch_first=True)
    shared.in_proj_weight.requires_grad_(False)
    other = probq.explicit(nn.ModuleList([shared, shared]))
    assert other[0] is other[1]
    assert [name for name, p in other[0].named_parameters() if not p.requires_grad] == [
        f"{part}_proj.weight" for part in "qkv"
    ]
    assert other[0].q_proj.weight.data_ptr() != shared.in_proj_weight.data_ptr()


class Net(nn.Module):
    """Attention, called by a function, stands between two layers."""

    def __init__(self, function, **options):
        super().__init__()
        self.first, self.attn, self.last = nn.Linear(4, 8), attention(**options), nn.Linear(8, 3)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self.attn, self.first(x)).mean(1))


def test_costs_are_those_counted_by_hand():
    """4 bits everywhere: 16 bit operations for each MAC of 5 places, 8 numbers, 2 heads of 4."""
    net = Net(lambda attn, x: attn(x, x, x)[0], batch_first=True).eval()
    q = probq.quantize(net, drawn(16, 5, 4), Plan(ladder(4), ladder(4), ladder(4)))
    assert isinstance(net.attn, nn.MultiheadAttention)
    matrices = 4 * 5 * 8 * 8  # query, key, value, output
    products = 2 * 5 * 5 * 8  # of all heads together
    assert q.mode().cost() == 16 * (5 * 4 * 8 + matrices + products + 8 * 3)
    assert q.uncounted == 0
    (note,) = q.notes
    assert note.startswith("attn (MultiheadAttention) is spelled out in the quantized copy")
    assert [layer.name for layer in q.layers] == [layer.name for layer in probq.layers(net, drawn(16, 5, 4))]


CROSS = {
    "cross attention": lambda attn, x: attn(x, x.relu(), x.flip(1), need_weights=False)[0],
    "weights that are used": lambda attn, x: attn(x, x, x)[0] + attn(x, x, x)[1] @ x,
}


@pytest.mark.parametrize("function", CROSS.values(), ids=CROSS)
def test_it_becomes_integers(function, tmp_path):
    pytest.importorskip("onnxruntime")
    net, x = Net(function, batch_first=True).eval(), drawn(16, 5, 4)
    assert_exact(probq.quantize(net, x), x, tmp_path)


def test_a_posterior_is_loaded_on_the_original_network(tmp_path):
    net, x = Net(lambda attn, x: attn(x, x, x)[0], batch_first=True).eval(), drawn(16, 5, 4)
    q = probq.quantize(net, x)
    q.save(tmp_path / "q.safetensors")
    for given in (net, probq.explicit(net)):
        assert torch.equal(probq.load(tmp_path / "q.safetensors", given)(x), q(x))
    other = Net(lambda attn, x: x, batch_first=True, add_zero_attn=True).eval()
    with pytest.raises(probq.ProbqError, match="posterior of another network: 'attn' is no module to spell out"):
        probq.load(tmp_path / "q.safetensors", other)


MASK = torch.ones(5, 5).triu(1).bool()
NUMBERS = torch.zeros(5, 5).masked_fill(MASK, -torch.inf)
MASKED = {
    "true or false": lambda attn, x: attn(x, x, x, attn_mask=MASK, need_weights=False)[0],
    "numbers": lambda attn, x: attn(x, x, x, attn_mask=NUMBERS, is_causal=True)[0],
    "least numbers": lambda attn, x: attn(x, x, x, attn_mask=NUMBERS.clamp(min=torch.finfo(torch.float32).min))[0],
    "of each head": lambda attn, x: attn(x, x, x, attn_mask=MASK.expand(2 * len(x), 5, 5))[0],
    "selected": lambda attn, x: torch.where(MASK[:, 1:2], attn(x, x, x)[0], 0.25),
    "filled by hand": lambda attn, x: (x @ attn(x, x, x)[0].mT).masked_fill(MASK, -1e9).softmax(-1) @ x,
}


@pytest.mark.parametrize("kind", MASKED)
def test_masks_that_depend_on_no_input_become_integers(kind, tmp_path):
    """The probability of what is masked is 0, and all outputs are those of the network."""
    pytest.importorskip("onnxruntime")
    net, x = Net(MASKED[kind], batch_first=True).eval(), drawn(16, 5, 4)
    q = probq.quantize(net, x, probq.Plan(ladder(3, 6), ladder(3, 8, signed=True)))
    assert not q.uncounted
    assert_exact(q, torch.cat([x, 3 * x]), tmp_path)


def test_what_comes_later_does_not_change_what_causal_attention_gives():
    causal = lambda attn, x: attn(x, x, x, attn_mask=MASK)[0]  # noqa: E731
    net, x = Net(causal, batch_first=True).eval(), drawn(16, 5, 4)
    model = probq.lower(probq.quantize(ByPlace(net), x))
    y = x.clone()
    y[:, 3:] = drawn(16, 2, 4, seed=5)
    assert np.array_equal(model(x)[:, :3], model(y)[:, :3])
    assert not np.array_equal(model(x)[:, 3:], model(y)[:, 3:])


class ByPlace(nn.Module):
    """The same without the average over places."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.last(self.net.function(self.net.attn, self.net.first(x)))


@FLOAT
def test_masks_that_are_computed_are_refused():
    net = Net(lambda attn, x: attn(x, x, x, key_padding_mask=x.mean(-1) > 0.5)[0], batch_first=True).eval()
    q = probq.quantize(net, drawn(16, 5, 4))
    assert not q.uncounted
    with pytest.raises(probq.ProbqError, match="cannot be lowered"):
        probq.lower(q)


@FLOAT
def test_the_batch_may_be_the_second_axis_where_it_was_the_first(tmp_path):
    """The batch is what the example's first axis is: another length stays float."""
    turned = Net(lambda attn, x: attn(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1)).eval()
    q = probq.quantize(turned, drawn(16, 5, 4))
    assert q.uncounted == 0
    assert_exact(q, drawn(16, 5, 4), tmp_path)
    with pytest.warns(UserWarning, match="attn takes the batch as its second axis, and is called with"):
        probq.quantize(Net(lambda attn, x: attn(x, x, x)[0]).eval(), drawn(16, 5, 4))


def test_the_macs_of_an_encoder_are_those_counted_by_hand():
    """Of both encoder layers: four matrices, two products, and a perceptron with 12 hidden numbers, at 5 places."""
    net, example = {name: (net, example) for name, net, example in deployed()}["transformer of torch"]
    found = probq.layers(net, example)
    each = 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 12
    assert sum(layer.macs for layer in found) == 5 * 4 * 8 + 2 * each + 8 * 3
