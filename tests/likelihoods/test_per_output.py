"""A likelihood for each output: densities by SciPy, what is built otherwise, files, and the sites of a program."""

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import nn

import probq
from probq import ProbqError
from probq.evaluation.diagnostics.held_out import validate
from probq.likelihoods import Categorical, Normal, PerOutput, categorical
from probq.training.distillation.lessons import divergence
from probq.utils.batches import Batches
from probq.utils.structures.targets import Targets

CPU = torch.device("cpu")
X = {"x": torch.randn(24, 4), "ids": torch.randint(0, 3, (24,))}
Y = {"size": torch.randn(24, 2), "kind": torch.arange(24) % 3}


class Net(nn.Module):
    """Two outputs with targets, and one without."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.e, self.size, self.kind = nn.Linear(4, 8), nn.Embedding(3, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x, ids):
        hidden = (self.a(x) + self.e(ids)).relu()
        return {"size": self.size(hidden), "kind": self.kind(hidden), "hidden": hidden}


def quantized(likelihood=None):
    return probq.quantize(Net().eval(), X, likelihood=likelihood)


def batches(targets=Y, size=12):
    def rows(structure, k):
        return {key: part[k : k + size] for key, part in structure.items()}

    return [{**rows(X, k), "labels": rows(targets, k)} for k in range(0, 24, size)]


def test_the_log_probability_is_the_sum_over_outputs():
    q = quantized(PerOutput({"size": Normal(0.5), "kind": Categorical(), "hidden": None}))
    output = {key: value.detach().double().numpy() for key, value in q(**X).items()}
    kind = log_softmax(output["kind"], -1)[np.arange(24), Y["kind"]]
    size = stats.norm.logpdf(Y["size"], output["size"], 0.5).sum(1)
    found = validate(q, Batches(batches(), CPU))
    np.testing.assert_allclose(found["loss"], -(kind + size).mean(), rtol=1e-5)
    assert found["accuracy"] == (output["kind"].argmax(1) == Y["kind"].numpy()).mean()


def test_a_fit_learns_the_noise_of_each_output_and_a_file_keeps_it(tmp_path):
    q, given = quantized(), {"size": Y["size"] / 4, "kind": Y["kind"]}
    probq.fit(q, batches(given), probq.Budget(percent=4), epochs=2, progress=False)
    noise = q.likelihood.now()["obs.size"].noise_variance
    assert 0 < noise < 1
    q.save(tmp_path / "q.safetensors")
    loaded = probq.load(tmp_path / "q.safetensors", Net())
    assert loaded.likelihood.now()["obs.size"].noise_variance == noise
    assert loaded.likelihood.now()["obs.kind"] is categorical
    assert validate(loaded, Batches(batches(given), CPU)) == validate(q, Batches(batches(given), CPU))


def test_a_copy_learns_a_noise_of_its_own():
    q = quantized(PerOutput({"size": Normal()}))
    other = q.at(q.mode())
    other.likelihood.parts[0].log_sd.data.fill_(-3)
    assert other.likelihood.now()["obs.size"].noise_variance == pytest.approx(np.exp(-6))
    assert q.likelihood.now()["obs.size"].noise_variance == 1


def test_each_output_is_a_site():
    q = quantized(PerOutput({"size": Normal(), "kind": categorical}))
    args = (X["x"], X["ids"])
    for trace, observed in (
        (poutine.trace(q.model).get_trace(args, Y, 48), True), (poutine.trace(q.model).get_trace(args), False),
    ):  # fmt: skip
        sites = {name: site for name, site in trace.nodes.items() if name.startswith("obs")}
        assert list(sites) == ["obs.size", "obs.kind"]
        assert all(site["is_observed"] == observed for site in sites.values())
        assert all(site["scale"] == (2 if observed else 1) for site in sites.values())


TARGETS = {
    "one is missing": ({"size": Y["size"]}, "the targets has no 'kind'"),
    "one too many": ({**Y, "more": Y["kind"]}, "the targets has 'more', which is not among"),
    "a tuple": (tuple(Y.values()), "the targets is a tuple; give a dictionary"),
    "one tensor": (Y["kind"], "the targets is a Tensor; give a dictionary with the keys 'size', 'kind'"),
    "real kinds": ({**Y, "kind": Y["size"]}, r"output kind: targets of shape \(24, 2\)"),
    "too many classes": ({**Y, "kind": Y["kind"] + 1}, "output kind: the data does not fit .* a target is 3"),
}


@pytest.mark.parametrize(("targets", "message"), TARGETS.values(), ids=TARGETS)
def test_targets_that_do_not_fit_are_told(targets, message):
    q = quantized(PerOutput({"size": Normal(), "kind": categorical}))
    with pytest.raises(ProbqError, match=message):
        probq.fit(q, [((X["x"], X["ids"]), targets)], probq.Budget(percent=4), epochs=1, progress=False)


LIKELIHOODS = {
    "another key": (lambda: PerOutput({"sizes": Normal()}), "has no 'sizes', for which .*; it has 'size', 'kind'"),
    "a tuple": (lambda: PerOutput((Normal(), None)), "is a dict, and its likelihoods a tuple of 2"),
    "of one tensor": (Normal, "the network returns a dict with 'size'"),
    "no function": (lambda: PerOutput({"size": 3}), "of output size is no function .*, but 3"),
    "none": (lambda: PerOutput({"size": None}), "and there is none"),
    "no law": (lambda: PerOutput({"size": lambda y: y}), "output size must return a torch distribution, not a Tensor"),
}


@pytest.mark.parametrize(("make", "message"), LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_likelihoods_that_do_not_fit_are_told(make, message):
    with pytest.raises(ProbqError, match=message):
        probq.fit(quantized(), batches(), probq.Budget(percent=4), likelihood=make(), epochs=1, progress=False)


def test_what_needs_one_output_says_so():
    q = quantized(PerOutput({"size": Normal(), "kind": categorical}))
    probq.fit(q, batches(), probq.Budget(percent=4), epochs=1, progress=False)
    ensemble = probq.ensemble(q, 2, probq.Budget(percent=4), seed=0)
    assert ensemble.outputs(X)["kind"].shape == (2, 24, 3)
    with pytest.raises(ProbqError, match=r"several outputs, output\.size, output\.kind, output\.hidden"):
        ensemble.classes(X)


def test_arviz_gets_a_variable_for_each_output():
    q = quantized(PerOutput({"size": Normal(0.5), "kind": Categorical(), "hidden": None}))
    data = probq.to_arviz(q.at(q.mode()), draws=2, seed=0, batches=batches())
    predicted, observed = data["posterior_predictive"], data["observed_data"]
    assert predicted["y.size"].shape == (1, 2, 24, 2)
    assert set(np.unique(predicted["y.kind"])) <= {0, 1, 2}
    for name, y in Y.items():
        np.testing.assert_array_equal(observed[f"y.{name}"], y.numpy())
    assert data["log_likelihood"]["y"].shape == (1, 2, 24)


def test_a_teacher_speaks_of_every_output():
    """The divergence of a batch is the sum of a normal and a categorical one, by SciPy."""
    likelihood, q = PerOutput({"size": Normal(0.5), "kind": categorical}), quantized()
    with torch.no_grad():
        given = (q.net(**{**X, "x": factor * X["x"]}) for factor in (1, 2))
        taught, teacher = ({name: part.double() for name, part in one.items()} for one in given)
    found = divergence(likelihood(teacher), likelihood(taught), Targets(Y), 1.0)
    sizes = ((teacher["size"] - taught["size"]) ** 2 / (2 * 0.5**2)).sum(1)
    kinds = [entropy(*(softmax(one["kind"][k].numpy()) for one in (teacher, taught))) for k in range(24)]
    np.testing.assert_allclose(found.numpy(), sizes.numpy() + np.array(kinds), rtol=1e-4)
    probq.fit(q, batches(), probq.Budget(percent=4), likelihood=likelihood, teacher=Net(), epochs=1, progress=False)
