"""Which quantizers are perturbed, and what a file of measurements answers for."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import probq
from probq import Budget, Plan, ProbqError, Quantized, criteria
from probq.codebooks import ladder, levels
from probq.criteria.measuring.quantizers_of import only_of

pytestmark = pytest.mark.filterwarnings("ignore:.*energies of")  # of networks that were never trained
X, Y = torch.rand(24, 5, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
DATA = [(X, Y)]
PLAN = Plan(weight=ladder(2, 4, 8), input=ladder(4, 8, signed=False))
CRITERIA = (criteria.loss, criteria.kl, criteria.clado)


def network(plan: Plan | None = None, act: type[nn.Module] = nn.ReLU) -> Quantized:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), act(), nn.Linear(6, 4), act(), nn.Linear(4, 3)).eval()
    return probq.quantize(net, X, plan or PLAN)


def of_kind(q: Quantized, name: str, of: str) -> bool:
    return of == "both" or (name in q.weight_names) == (of == "weights")


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("of", ["weights", "inputs", "both"])
def test_quantizers_that_are_left_out_have_no_energy(criterion: Any, of: str) -> None:
    q = network()
    whole, part = criterion(q, DATA, progress=False), criterion(q, DATA, of=of, progress=False)
    assert (part.names, part.widths) == (whole.names, whole.widths)
    for name, row, measured in zip(part.names, part.unary, whole.unary, strict=True):
        assert np.array_equal(row, measured if of_kind(q, name, of) else np.zeros(len(row)))
    for one in part.names:
        for other in part.names:
            kept = of_kind(q, one, of) and of_kind(q, other, of)
            assert np.array_equal(part.block(one, other), whole.block(one, other) * kept)
    cut = only_of(whole, q, of)
    assert all(map(np.array_equal, cut.unary, part.unary))
    assert (cut.pairwise is None) == (part.pairwise is None)
    assert cut.pairwise is None or np.array_equal(cut.pairwise, part.pairwise)
    assert probq.allocate(q, part, Budget(percent=3)).percent() <= 3


def test_only_what_is_asked_for_is_measured(tmp_path: Path) -> None:
    q = network()
    for of, count in (("weights", 1 + 3 * 2), ("inputs", 1 + 2), ("both", 1 + 3 * 2 + 2)):
        criteria.loss(q, DATA, of=of, resume=tmp_path / of, progress=False)
        assert len(json.loads((tmp_path / of).read_text())["values"]) == count


@pytest.mark.parametrize("criterion", CRITERIA)
def test_kinds_that_are_none_are_told(criterion: Any) -> None:
    for wrong in ("weight", "", None, 3):
        with pytest.raises(ProbqError, match='of is "both", "weights" or "inputs"'):
            criterion(network(), DATA, of=wrong, progress=False)
    plan = Plan(weight=ladder(2, 8), input=ladder(8, signed=False))
    with pytest.raises(ProbqError, match="no quantizer of inputs has a choice"):
        criterion(network(plan), DATA, of="inputs", progress=False)


def test_a_file_answers_for_one_measure_network_and_data_only(tmp_path: Path) -> None:
    path, q = tmp_path / "m.json", network()
    criteria.loss(q, DATA, resume=path, progress=False)
    kept = path.read_bytes()
    moved = copy.deepcopy(q)
    with torch.no_grad():
        moved.net[0].weight += 1e-3
    books = Plan(weight=ladder(levels([-1.5, -0.5, 0.5, 1.5]), 4, 8), input=ladder(4, 8, signed=False))
    others: list[tuple[Any, Any, Any]] = [
        (criteria.kl, q, DATA),
        (criteria.loss, moved, DATA),
        (criteria.loss, network(act=nn.ReLU6), DATA),  # the same tensors and ladders
        (criteria.loss, network(books), DATA),  # the same widths
        (criteria.loss, network(Plan(weight=PLAN.weight, input=PLAN.input, profile="shift")), DATA),
        (criteria.loss, q, [(X, Y.roll(1))]),
        (criteria.loss, q, [(X[:12], Y[:12]), (X[12:], Y[12:])]),
    ]
    for criterion, other, data in others:
        with pytest.raises(ProbqError, match="of another network, other data or another criterion"):
            criterion(other, data, resume=path, progress=False)
    assert path.read_bytes() == kept


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"values": [[[], NaN]]}', '{"values": [[[], 1e999]]}'])
def test_a_damaged_file_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ProbqError, match=r"m\.json is no file of measurements .* remove it, or name another"):
        criteria.loss(network(), DATA, resume=path, progress=False)


def test_a_file_is_not_taken_for_another_function_of_the_users(tmp_path: Path) -> None:
    q, path = network(), tmp_path / "m.json"

    def with_likelihood(factor: float) -> Quantized:
        own = copy.deepcopy(q)
        own.likelihood = lambda output: torch.distributions.Categorical(logits=factor * output)
        return own

    first = criteria.loss(with_likelihood(1.0), DATA, resume=path, progress=False)
    kept = path.read_bytes()
    with pytest.raises(ProbqError, match="another criterion, plan or likelihood"):
        criteria.loss(with_likelihood(5.0), DATA, resume=path, progress=False)
    again = criteria.loss(with_likelihood(1.0), DATA, resume=path, progress=False)
    assert all(map(np.array_equal, first.unary, again.unary))
    assert path.read_bytes() == kept
    with pytest.raises(ProbqError, match="a path is a string"):
        criteria.loss(q, DATA, resume=3, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("criterion", [criteria.loss, criteria.clado, criteria.expected_error])
def test_an_energy_of_another_network_with_the_same_names_and_widths_is_refused(criterion: Any) -> None:
    q = network()
    energy = 0.5 * criterion(q, DATA, progress=False)
    assert len(energy.tensors) == len(energy.names)
    torch.manual_seed(1)  # the same architecture after its weights moved
    act = nn.ReLU()
    moved = nn.Sequential(nn.Linear(5, 6), act, nn.Linear(6, 4), act, nn.Linear(4, 3)).eval()
    assert probq.allocate(probq.quantize(moved, X, PLAN), energy, Budget(percent=3)).percent() <= 3
    wider = nn.Sequential(nn.Linear(5, 9), act, nn.Linear(9, 4), act, nn.Linear(4, 3)).eval()
    others = {
        r"0.weight is \[6, 5\] for 30 MACs .* in it and \[9, 5\] for 45": probq.quantize(wider, X, PLAN),
        "with codebooks": network(Plan(weight=ladder(levels([-1.5, -0.5, 0.5, 1.5]), 4, 8), input=PLAN.input)),
    }
    for message, other in others.items():
        for taken in (
            lambda o: probq.allocate(o, energy, Budget(percent=3)),
            lambda o: probq.WidthField(o, energy),
            lambda o: probq.fit(o, DATA, epochs=1, prior=energy, progress=False),
        ):
            with pytest.raises(ProbqError, match=f"of another network or plan: .*{message}"):
                taken(other)
    by_hand = probq.Energy(energy.names, energy.widths, energy.unary)
    assert (by_hand + energy).tensors == (energy + by_hand).tensors == energy.tensors
    with pytest.raises(ProbqError, match="different networks or plans"):
        energy + criterion(probq.quantize(wider, X, PLAN), DATA, progress=False)


def test_tied_quantizers_are_known_together() -> None:
    tied = network(Plan(weight=PLAN.weight, input=PLAN.input, tie_weight="w"))
    first, *others = criteria.mixquant(tied, DATA, progress=False).tensors or ()
    assert [text.split(" with")[0] for text in first.split("; ")] == [
        "[6, 5] for 30 MACs",
        "[4, 6] for 24 MACs",
        "[3, 4] for 12 MACs",
    ]
    assert [text.split(" with")[0] for text in others] == ["6 numbers for 24 MACs", "4 numbers for 12 MACs"]


def test_pairs_go_on_from_the_file_of_single_quantizers(tmp_path: Path) -> None:
    path, q = tmp_path / "m.json", network()
    single = criteria.loss(q, DATA, resume=path, progress=False)
    pairs = criteria.clado(q, DATA, resume=path, progress=False)
    assert all(map(np.array_equal, single.unary, pairs.unary))
    values = {tuple(map(tuple, c)): v for c, v in json.loads(path.read_text())["values"]}
    assert len(values) == 1 + 8 + (8 * 7 // 2 - 3)  # all pairs of rungs, but for those of one quantizer
    with torch.no_grad():
        assert values[()] == pytest.approx(float(F.cross_entropy(q.net(X), Y)), abs=0.01)  # 8 bits, all of them
