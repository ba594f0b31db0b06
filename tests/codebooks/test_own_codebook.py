"""A codebook of the user's own: levels and their number are all that it must say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import probq
from probq.codebooks import Codebook, ladder, levels


@dataclass(frozen=True)
class Squares(Codebook):
    """Signed squares up to the given root."""

    root: int

    @property
    def count(self) -> int:  # type: ignore[override]
        return 2 * self.root + 1

    def levels(self) -> Tensor:
        return torch.tensor([k * abs(k) for k in range(-self.root, self.root + 1)], dtype=torch.get_default_dtype())


def quantized(book: Codebook) -> probq.Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return probq.quantize(net, torch.rand(16, 6), plan=probq.Plan(weight=ladder(book, 8)))


def test_rounding_follows_from_its_levels() -> None:
    book, values = Squares(2), torch.linspace(-6, 6, 101)
    every = book.levels()
    best = (values[:, None] - every).abs().amin(1)
    assert torch.equal((book.nearest(values) - values).abs(), best)
    assert torch.equal(book.decode(book.encode(values)), book.nearest(values))
    assert (book.bits, book.count, book.learned) == (3, 5, False)


def test_a_network_computes_what_it_does_with_the_same_levels_given() -> None:
    one, other = (quantized(book) for book in (Squares(2), levels(Squares(2).levels().tolist())))
    x = torch.rand(16, 6)
    for q in (one, other):
        for quantizer in q.weights.values():
            quantizer.logits.data.fill_(-3.0)
    mine, theirs = one.mode(), other.mode()
    assert mine.widths["0.weight"] == 3
    assert torch.equal(one.at(mine)(x), other.at(theirs)(x))
    a, b = probq.lower(one, mine), probq.lower(other, theirs)
    assert (a(x.numpy()) == b(x.numpy())).all()


def test_no_file_holds_it(tmp_path: Path) -> None:
    with pytest.raises(probq.ProbqError, match="cannot hold a codebook of one's own \\(Squares\\)"):
        quantized(Squares(2)).save(tmp_path / "q")
    assert not list(tmp_path.iterdir())
