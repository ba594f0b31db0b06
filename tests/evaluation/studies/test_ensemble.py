"""Ensembles: their total cost by enumeration, integers against the networks they came from, and damaged folders."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import probq
from probq import Budget, Plan, ProbqError, Quantized
from probq.codebooks import ladder, powers_of_two
from probq.decisions.allocation.conditional_sampling import conditional_draws
from probq.decisions.constrained_posterior import width_problem
from probq.decisions.outputs import stacked_outputs
from probq.evaluation.studies.ensemble import draw_members, repeat_problem
from probq.integer import Node
from probq.likelihoods import Normal
from probq.testing import zoo

X = torch.rand(9, 5, generator=torch.Generator().manual_seed(5))


def network(likelihood: Any = None, outputs: int = 3, **plan: Any) -> Quantized:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, outputs)).eval()
    chosen = {"weight": ladder(1, 2, 4), "input": ladder(2, 4), "spread": 0.4, **plan}
    q = probq.quantize(net, X, plan=Plan(**chosen), likelihood=likelihood)
    q.calibrated = True
    with torch.no_grad():
        for k, (_, quantizer) in enumerate(q.named_quantizers()):
            quantizer.logits.fill_(0.5 - 0.3 * k)
    return q


PAIRS = [(X, torch.arange(9) % 3)]


def undecided(**plan: Any) -> Quantized:
    """Tuned at one choice of widths, while others stay about as probable."""
    q, still = network(**plan), probq.Rates(gates=0.01)
    probq.fit(q, PAIRS, Budget(percent=2.0), 2, search=0.5, rounding=False, rates=still, seed=0, progress=False)
    return q


@pytest.mark.parametrize("seed", range(5))
def test_total_cost_keeps_the_budget(seed: int) -> None:
    q, budget = network(), Budget(percent=4.0)
    limit = budget.absolute(q.layers)
    drawn = draw_members(q, 3, budget, seed)
    assert sum(a.cost() for a in drawn) <= limit
    assert len(drawn) == 3


def test_joint_draws_have_the_enumerated_law_given_their_total() -> None:
    q, budget = network(), Budget(percent=1.6)
    limit = budget.absolute(q.layers)
    free = [name for name, z in q.named_quantizers() if len(z.ladder) > 1]
    laws = {name: q.quantizer(name).probs().tolist() for name in free}
    single: dict[float, float] = {}
    for rungs in itertools.product(*[range(len(laws[name])) for name in free]):
        bits = {name: q.quantizer(name).ladder.bits[k] for name, k in zip(free, rungs, strict=True)}
        cost = 30 * bits["0.weight"] * 8 + 18 * bits["2.weight"] * bits["2.input"]
        single[cost] = single.get(cost, 0) + math.prod(laws[n][k] for n, k in zip(free, rungs, strict=True))
    pairs = {(a, b): single[a] * single[b] for a in single for b in single if a + b <= limit}
    total, n, one = sum(pairs.values()), 5000, width_problem(q)
    found: dict[tuple[float, ...], int] = {}
    for choice in conditional_draws(repeat_problem(one, 2), limit, n, np.random.default_rng(0)):
        half = len(one.groups)
        key = (float(one.value(choice[:half])[1][0]), float(one.value(choice[half:])[1][0]))
        found[key] = found.get(key, 0) + 1
    assert set(found) <= set(pairs)
    assert 0.02 < total < 0.9  # the limit cuts off a good part
    likely = {key: p / total for key, p in pairs.items() if p / total > 0.03}
    assert len(likely) > 3
    for key, p in likely.items():
        assert found.get(key, 0) / n == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))


def test_members_are_the_drawn_networks() -> None:
    q, budget = network(), Budget(percent=6.0)
    members = probq.ensemble(q, 3, budget, seed=4)
    drawn = draw_members(q, 3, budget, 4)
    expected = np.stack([q.at(a)(X.double()).numpy() for a in drawn])
    np.testing.assert_array_equal(members.outputs(X.numpy()), expected)
    assert members.metadata["costs"] == [a.cost() for a in drawn]
    assert members.metadata["total"] <= members.metadata["limit"] == budget.absolute(q.layers)
    assert str(draw_members(q, 3, budget, 5)) != str(drawn)


def test_fixed_widths_share_the_budget() -> None:
    q = network()
    fixed = q.at(q.mode(Budget(percent=2.0)))
    total = 2 * fixed.mode().cost()
    members = probq.ensemble(fixed, 2, Budget(limit=total))
    assert members.metadata["total"] == total
    assert not np.array_equal(*members(X.numpy()))  # their codes differ
    with pytest.raises(ProbqError, match="ask for 2 at most"):
        probq.ensemble(fixed, 3, Budget(limit=total))


def test_without_a_budget_and_with_the_last_one() -> None:
    q = network()
    assert probq.ensemble(q, 2).metadata["limit"] is None
    q.budget = Budget(percent=3.0)
    assert probq.ensemble(q, 2).metadata["total"] <= q.budget.absolute(q.layers)


def test_parts_are_those_of_the_members_softmax() -> None:
    members = probq.ensemble(network(), 4, seed=1)
    found = members.classes(X.numpy())
    probs = torch.tensor(members.outputs(X.numpy())).softmax(-1)
    entropies = torch.distributions.Categorical(probs=probs).entropy().mean(0)
    average = torch.distributions.Categorical(probs=probs.mean(0))
    np.testing.assert_allclose(found.mean, average.probs.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.total, average.entropy().numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.epistemic, (average.entropy() - entropies).numpy(), atol=1e-6)
    with pytest.raises(ProbqError, match="call classes"):
        members.numbers(X.numpy())


def test_regression_knows_its_noise() -> None:
    members = probq.ensemble(network(Normal(0.5), outputs=1), 4, seed=1)
    outputs, found = members.outputs(X.numpy()), members.numbers(X.numpy())
    np.testing.assert_allclose(found.mean, sum(outputs) / 4)
    np.testing.assert_allclose(found.aleatoric, 0.25, rtol=1e-6)
    np.testing.assert_allclose(found.total, 0.25 + (outputs**2).mean(0) - outputs.mean(0) ** 2, rtol=1e-6)
    with pytest.raises(ProbqError, match="call numbers"):
        members.classes(X.numpy())
    assert probq.ensemble(network(Normal(), outputs=1), 2, seed=1).noise == 1.0  # learned noise starts at 1


def test_folder_brings_back_the_same_without_torch(tmp_path: Path) -> None:
    members = probq.ensemble(network(), 2, Budget(percent=5.0))
    members.save(tmp_path / "e")
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == [
        "ensemble.json",
        "member-000.safetensors",
        "member-001.safetensors",
    ]
    np.save(tmp_path / "x.npy", X.numpy())
    program = (
        f"import sys, numpy, probq; e = probq.Ensemble.load({str(tmp_path / 'e')!r}); "
        f"x = numpy.load({str(tmp_path / 'x.npy')!r}); print(e(x).tolist(), e.metadata == {members.metadata!r}, "
        "e.classes(x).epistemic.tolist(), sorted({'torch', 'pyro'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    x = X.numpy()
    assert done.stdout == f"{members(x).tolist()} True {members.classes(x).epistemic.tolist()} []\n"


def tiny(scale: float = 0.5, size: int = 2, rows: int = 2) -> probq.IntegerModel:
    image = Node("x", "input", attributes={"shape": [size], "scale": 0.5, "lo": 0, "hi": 15})
    weight = np.arange(rows * size).reshape(rows, size)
    layer = Node("fc", "linear", ("x",), tensors={"weight": weight, "bias": np.zeros(rows, int)})
    return probq.IntegerModel([image, layer], "fc", scale)


def test_every_member_has_its_own_unit() -> None:
    members = probq.Ensemble([tiny(0.5), tiny(0.25)], noise=0.0)
    assert members([[1.0, 1.5]]).tolist() == [[[3, 13]], [[3, 13]]]  # inputs 2 and 3, weights 0 1 / 2 3
    assert members.outputs([[1.0, 1.5]]).tolist() == [[[1.5, 6.5]], [[0.75, 3.25]]]
    assert members.numbers([[1.0, 1.5]]).epistemic.tolist() == [[0.375**2, 1.625**2]]


def damage(folder: Path, what: str) -> None:
    manifest = json.loads((folder / "ensemble.json").read_text())
    if what == "member":
        path = folder / "member-001.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    elif what == "missing":
        (folder / "member-001.safetensors").unlink()
    elif what == "swapped":
        (folder / "member-000.safetensors").replace(folder / "member-001.safetensors")
        (folder / "member-000.safetensors").write_bytes((folder / "member-001.safetensors").read_bytes())
    elif what == "edited":
        manifest["noise"] = 3.0
    elif what == "outside":
        manifest["members"][0]["file"] = "../member-000.safetensors"
    elif what == "version":
        manifest["version"] = 99
    elif what == "format":
        manifest["format"] = "probq.posterior"
    elif what == "field":
        del manifest["metadata"]
    if what == "json":
        (folder / "ensemble.json").write_text("{")
    elif what == "list":
        (folder / "ensemble.json").write_text("[]")
    elif what == "no manifest":
        (folder / "ensemble.json").unlink()
    else:
        (folder / "ensemble.json").write_text(json.dumps(manifest))


DAMAGE = {
    "member": "not the file that its manifest records",
    "missing": "member 1 cannot be read",
    "swapped": "member 1 of",
    "edited": "edited or damaged",
    "outside": "edited or damaged",
    "version": "version is 99",
    "format": "'probq.posterior'",
    "field": "edited or damaged",
    "json": "not JSON",
    "list": "format None",
    "no manifest": r"holds no ensemble\.json",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_folders_are_refused(tmp_path: Path, what: str) -> None:
    probq.Ensemble([tiny(), tiny(0.25)]).save(tmp_path / "e")
    assert len(probq.Ensemble.load(tmp_path / "e")) == 2
    damage(tmp_path / "e", what)
    with pytest.raises(ProbqError, match=DAMAGE[what]):
        probq.Ensemble.load(tmp_path / "e")


def test_a_signed_manifest_cannot_name_a_file_outside(tmp_path: Path) -> None:
    from probq.integer.ensemble import _digest

    probq.Ensemble([tiny()]).save(tmp_path / "e")
    manifest = json.loads((tmp_path / "e/ensemble.json").read_text())
    del manifest["sha256"]
    manifest["members"][0]["file"] = "../other"
    (tmp_path / "e/ensemble.json").write_text(json.dumps({**manifest, "sha256": _digest(manifest)}))
    with pytest.raises(ProbqError, match="member 0"):
        probq.Ensemble.load(tmp_path / "e")


def test_nothing_is_overwritten_or_left_behind(tmp_path: Path) -> None:
    members = probq.Ensemble([tiny()])
    members.save(tmp_path / "e")
    with pytest.raises(ProbqError, match="not empty"):
        members.save(tmp_path / "e")
    with pytest.raises(ProbqError, match="cannot write"):
        members.save(tmp_path / "missing" / "e")
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def fixed() -> Any:
    q = network()
    return q.at(q.mode())


BAD: dict[str, tuple[Any, str]] = {
    "no member": (lambda: probq.Ensemble([]), "at least one IntegerModel"),
    "a network": (lambda: probq.Ensemble([nn.Linear(1, 1)]), "at least one IntegerModel"),
    "inputs": (lambda: probq.Ensemble([tiny(), tiny(size=3)]), "different shapes"),
    "outputs": (lambda: probq.Ensemble([tiny(), tiny(rows=3)])([[1.0, 1.0]]), "different shapes"),
    "noise": (lambda: probq.Ensemble([tiny()], noise=-1.0), "noise is a variance"),
    "metadata": (lambda: probq.Ensemble([tiny()], metadata={"x": math.nan}), "metadata must be JSON"),
    "members": (lambda: probq.ensemble(network(), 0), "number of members"),
    "reach": (lambda: probq.ensemble(network(), 9, Budget(percent=2.0)), r"9 members .* ask for 3 at most"),
    "not even one": (lambda: probq.ensemble(network(), 2, Budget(limit=1)), r"one costs [\d,]+ at least; raise the"),
    "fixed": (lambda: probq.ensemble(fixed(), 3, Budget(limit=2.9 * fixed().mode().cost())), "ask for 2 at most"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ProbqError, match=message):
        call()


def test_unfitted_posterior_warns() -> None:
    q = probq.quantize(nn.Linear(5, 3), X)
    draws: list[Callable[[], Any]] = [
        lambda: q.sample(1),
        lambda: q.predict(X, 1),
        lambda: probq.ensemble(q, 1),
        lambda: probq.to_arviz(q, 4),
        lambda: probq.convergence([q, q], 4),
    ]
    for draw in draws:
        with pytest.warns(UserWarning, match=r"never fitted.*run probq\.fit first") as seen:
            draw()
        assert [warning.filename for warning in seen] == [__file__]
    q.at(q.mode()).sample(1)  # no width is left to learn
    with torch.no_grad():
        q.quantizer(".weight").logits.add_(0.1)
    for draw in draws:  # learned outside of probq.fit, as by Pyro's own SVI
        draw()


@pytest.mark.parametrize("gates", ["tensor", "channel"])
def test_members_that_were_not_tuned_warn(gates: str, tmp_path: Path) -> None:
    q = undecided(gates=gates)
    total, wide, mode = Budget(percent=8.0), Budget(percent=100.0), q.mode()
    strangers = sum(str(a.widths) != str(mode.widths) for a in draw_members(q, 4, total, 0))
    assert strangers > 0
    with pytest.warns(UserWarning, match=f"^{strangers} of 4 members .*q.at"):
        probq.ensemble(q, 4, total)
    q.save(tmp_path / "q.safetensors")
    with pytest.warns(UserWarning, match=f"^{strangers} of 4 members"):
        probq.ensemble(probq.load(tmp_path / "q.safetensors", q.net), 4, total)
    probq.ensemble(q.at(mode), 4, total)
    other = next(q.at(a) for a in draw_members(q, 4, total, 0) if str(a.widths) != str(mode.widths))
    with pytest.warns(UserWarning, match="2 of 2 members"):
        probq.ensemble(other, 2, wide)
    probq.fit(other, PAIRS, epochs=1, rounding=False, progress=False)
    other.save(tmp_path / "other.safetensors")
    probq.ensemble(probq.load(tmp_path / "other.safetensors", q.net), 2, wide)


def test_predictions_at_widths_that_were_not_tuned_warn(tmp_path: Path) -> None:
    q = undecided()
    fixed, page = q.at(q.mode()), tmp_path / "page.html"
    strangers = sum(str(a.widths) != str(q.mode().widths) for a in q.sample(6, seed=0))
    assert 0 < strangers < 6

    with pytest.warns(UserWarning, match=rf"^{strangers} of 6 draws .*q\.at\(q\.mode\(\)\)\.predict") as seen:
        q.predict(X, 6, seed=0)
    with pytest.warns(UserWarning, match=r"of 12 draws .*probq\.to_arviz") as more:
        probq.to_arviz([q, q], 6, batches=PAIRS)
    with pytest.warns(UserWarning, match=r"of 6 draws .*probq\.report") as last:
        probq.report(q, page, validation=PAIRS, draws=6)
    assert str(last[0].message).split(";")[0] in page.read_text()
    assert {warning.filename for warning in [*seen, *more, *last]} == {__file__}
    probq.to_arviz([q, q], 6)  # of widths alone, which is what they are
    fixed.predict(X, 6, seed=0)
    probq.to_arviz(fixed, 6, batches=PAIRS)
    probq.report(fixed, page, validation=PAIRS, draws=6)


def test_members_that_are_all_the_same_network_warn() -> None:
    q = network()
    probq.fit(q, PAIRS, Budget(percent=2.0), 2, seed=0, progress=False)
    with pytest.warns(UserWarning, match=r"all draws are the same network; .*rounding=False"):
        first, second = probq.ensemble(q.at(q.mode()), 2, Budget(percent=8.0))(X.numpy())
    assert (first == second).all()


def test_a_fit_that_learns_widths_to_its_end_has_tuned_none() -> None:
    q = network()
    slow = {"rates": probq.Rates(gates=0.05), "progress": False}  # gates that leave every width a chance
    probq.fit(q, PAIRS, Budget(percent=2.0), 1, search=0.5, **slow)
    probq.fit(q, PAIRS, Budget(percent=2.0), 1, search=1, **slow)
    assert len({str(a.widths) for a in draw_members(q, 4, Budget(percent=8.0), 0)}) > 1
    probq.ensemble(q, 4, Budget(percent=8.0))


PLANS: dict[str, dict[str, Any]] = {
    "tensor": {},
    "channel": {"gates": "channel"},
    "weight": {"gates": "weight"},
    "levels": {"weight": ladder(powers_of_two(3))},
    "nearest": {"codes": 1},
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_draws_run_together_are_those_run_one_by_one(plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    q = network(**plan)
    fixed = q.at(q.mode())
    drawn = fixed.sample(5, seed=0)
    expected = [fixed._decided(a, (X,)) for a in drawn]
    repeat_problem = stacked_outputs(fixed, drawn, (X,))
    assert repeat_problem is not None
    assert repeat_problem.dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(fixed.outputs(drawn, X), expected, strict=True))
    monkeypatch.setattr("probq.decisions.outputs.MOST_ROWS", 18)  # two networks at once
    assert torch.equal(fixed.predict(X, 5, seed=0), torch.stack(expected))


def test_no_example_gives_no_output() -> None:
    fixed = network().at(network().mode())
    assert fixed.predict(X[:0], 4, seed=0).shape == (4, 0, 3)


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
@pytest.mark.parametrize("name", ["tied embedding", "layer used twice", "nested", "buffers"])
def test_awkward_networks_run_together_too(name: str) -> None:
    nets = {key: (net, example) for key, net, example in zoo()}
    net, example = nets[name]
    q = probq.quantize(net, example, plan=Plan(weight=ladder(2, 4)))
    fixed = q.at(q.mode())
    drawn = fixed.sample(3, seed=0)
    args = example if isinstance(example, tuple) else (example,)
    for a, b in zip(fixed.outputs(drawn, example), [fixed._decided(a, args) for a in drawn], strict=True):
        assert torch.equal(a, b)


class Branching(nn.Module):
    """Looks at its values, which `torch.func.vmap` cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        return -x if float(x.detach().sum()) > 1e9 else x


@pytest.mark.filterwarnings("ignore:probq.lower will refuse")
def test_networks_that_cannot_be_vectorised_run_one_by_one() -> None:
    q = probq.quantize(Branching(), X)
    q.calibrated = True
    fixed = q.at(q.mode())
    drawn = fixed.sample(3, seed=0)
    assert stacked_outputs(fixed, drawn, (X,)) is None
    assert fixed.predict(X, 3, seed=0).shape == (3, 9, 2)
    assert stacked_outputs(q, q.sample(8, seed=0), (X,)) is None  # their widths differ
