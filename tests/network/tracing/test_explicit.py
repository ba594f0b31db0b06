"""Functions that are spelled out give what torch's own give."""

import pytest
import torch
import torch.nn.functional as F

from probq.network.explicit.functions import EXPLICIT, is_spelled_out, letters


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


CALLS = {
    "glu": (F.glu, drawn((2, 6, 3)), {"dim": 1}),
    "glu of the last axis": (F.glu, drawn((2, 6)), {}),
    "attention": (F.scaled_dot_product_attention, drawn((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7)), {}),
    "attention, scaled": (F.scaled_dot_product_attention, drawn((2, 5, 4), (2, 6, 4), (2, 6, 7)), {"scale": 0.3}),
    "addcmul": (torch.addcmul, drawn((2, 3), (2, 3), (2, 1)), {"value": -2.0}),
    "prelu": (torch.prelu, drawn((2, 3, 4), (1,)), {}),
    "prelu of channels": (torch.prelu, drawn((2, 3, 4), (3,)), {}),
    "prelu of features": (torch.prelu, drawn((2, 3), (3,)), {}),
    "lerp": (torch.lerp, drawn((2, 3), (2, 3), (2, 3)), {}),
    "baddbmm": (torch.baddbmm, drawn((2, 3, 5), (2, 3, 4), (2, 4, 5)), {"beta": 0.5, "alpha": 3}),
}
EQUATIONS = (
    "bid,bjd->bij", "bhid,bhjd->bhij", "bhij,bhjd->bihd", "bij,bjk", "bi,bi->bi", "bi,bi->b", "bi,bj->bij",
    "bcxy, bcz -> bzxy", "nchw,nc->nhw", "bij,bkj->kbi",
)  # fmt: skip
SIZES = dict(zip("bnhcidjkxyzw", (2, 3, 3, 4, 5, 4, 6, 3, 2, 3, 4, 2), strict=True))


@pytest.mark.parametrize(("function", "args", "kwargs"), CALLS.values(), ids=CALLS)
def test_what_is_spelled_out_is_what_torch_computes(function, args, kwargs):
    kind = function.__name__
    assert is_spelled_out(kind, tuple(args), kwargs)
    torch.testing.assert_close(EXPLICIT[kind][0](*args, **kwargs), function(*args, **kwargs))


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einstein_sums_of_two_are_products_of_matrices(equation):
    first, second, _ = letters(equation)
    x, y = drawn(*([SIZES[a] for a in axes] for axes in (first, second)))
    for operands in ((x, y), ([x, y],)):
        torch.testing.assert_close(EXPLICIT["einsum"][0](equation, *operands), torch.einsum(equation, x, y))


@pytest.mark.parametrize("equation", ["bii,bij->bj", "bij,bjk,bkl->bil", "bij->bji", "...i,...i->...", "bij,bj->b"])
def test_other_einstein_sums_are_not(equation):
    assert not is_spelled_out("einsum", (equation, *drawn((2, 2), (2, 2))), {})


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril(1)},
        {"attn_mask": torch.randn(5, 5), "scale": 0.3},
    ],
    ids=["causal", "mask", "numbers"],
)
def test_masked_attention_is_too(options):
    args = tuple(drawn(*[(2, 5, 4)] * 3))
    assert is_spelled_out("scaled_dot_product_attention", args, options)
    found = EXPLICIT["scaled_dot_product_attention"][0](*args, **options)
    torch.testing.assert_close(found, torch.nn.functional.scaled_dot_product_attention(*args, **options))


def test_attention_of_groups_is_not():
    args = tuple(drawn(*[(2, 5, 4)] * 3))
    assert not is_spelled_out("scaled_dot_product_attention", args, {"enable_gqa": True})
