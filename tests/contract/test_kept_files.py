"""Files that an earlier version wrote load to the same bits, say the same, and are saved as the same bytes."""

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kept_facts import differences, here, of_model, of_posterior
from kept_networks import KEPT
from public_names import documented
from safetensors import safe_open
from write_kept_files import FILES, MODELS

import probq
from probq import Ensemble, IntegerModel, Quantized
from probq.export import certify, verify

MOST = 20_000  # bytes of a file
CERTAIN = (
    "format",
    "version",
    "model_sha256",
    "artefact",
    "artefact_sha256",
    "target",
    "compared",
    "differing",
    "bytes",
)


def kept(path: Path) -> Any:
    return json.loads(path.with_name(path.name + ".json").read_text(encoding="utf-8"))


def inputs(name: str, content: Any) -> torch.Tensor:
    return torch.tensor(content["input"], dtype=torch.int64 if name == "text" else torch.float32)


def header(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The manifest of a posterior's file without what names the versions, and its tensors."""
    with safe_open(path, "pt") as file:
        manifest = json.loads(file.metadata()["probq"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {key: value for key, value in manifest.items() if key not in ("versions", "sha256")}, tensors


def same_versions(path: Path) -> bool:
    with safe_open(path, "pt") as file:
        versions = json.loads(file.metadata()["probq"])["versions"]
    return versions == {"probq": probq.__version__, "torch": str(torch.__version__)}


def load(path: Path, name: str) -> Quantized:
    with warnings.catch_warnings():
        if not same_versions(path):  # another torch may call the network's operations by other names
            warnings.filterwarnings("ignore", ".*calls them otherwise", UserWarning)
        return probq.load(path, KEPT[name].net().eval())


every_posterior = pytest.mark.parametrize("name", KEPT)


@every_posterior
def test_a_posterior_says_what_it_said(name: str) -> None:
    path = FILES / "posteriors" / f"{name}.safetensors"
    content = kept(path)
    with torch.random.fork_rng():
        torch.manual_seed(99)  # nothing may depend on it
        found = of_posterior(load(path, name), inputs(name, content))
    found = json.loads(json.dumps(found))
    wrong = differences(found, content["posterior"], exact=content["written with"] == here())
    assert not wrong, "\n".join(wrong[:10])


@every_posterior
def test_a_posterior_holds_the_bits_of_its_file(name: str, tmp_path: Path) -> None:
    path = FILES / "posteriors" / f"{name}.safetensors"
    q = load(path, name)
    manifest, tensors = header(path)
    state = q.state_dict()
    for key, tensor in tensors.items():
        assert state[key].dtype == tensor.dtype
        assert torch.equal(state[key], tensor), key
    q.save(tmp_path / "again")
    if same_versions(path):
        assert (tmp_path / "again").read_bytes() == path.read_bytes()
    again, others = header(tmp_path / "again")
    assert again == manifest
    assert others.keys() == tensors.keys()
    assert all(torch.equal(others[key], tensor) for key, tensor in tensors.items())


def test_posteriors_have_every_attribute_that_is_documented() -> None:
    q = load(FILES / "posteriors" / "default.safetensors", "default")
    a, model = q.mode(), IntegerModel.load(FILES / "models" / "default.safetensors")
    for thing in (q, a, model, q.layers[0], model.nodes[0]):
        recorded = {name for kind in type(thing).__mro__ for name in documented(kind) if kind.__module__[:5] == "probq"}
        assert not [name for name in recorded if not hasattr(thing, name)]
    assert model.output in [node.name for node in model.nodes]


@pytest.mark.parametrize("name", MODELS)
def test_an_integer_model_gives_the_integers_it_gave(name: str, tmp_path: Path) -> None:
    path = FILES / "models" / f"{name}.safetensors"
    content, model = kept(path), IntegerModel.load(path)
    x = inputs(name, content).numpy()
    assert json.loads(json.dumps(of_model(model, x))) == content["model"]
    integers = np.array(content["integers"])
    np.testing.assert_array_equal(model.quantize_input(x), integers)
    np.testing.assert_array_equal(model.run(integers), content["model"]["output"])
    model.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    q = load(FILES / "posteriors" / f"{name}.safetensors", name)
    assert of_model(probq.lower(q), x) == of_model(model, x)


def test_an_ensemble_answers_as_it_did(tmp_path: Path) -> None:
    content, members = kept(FILES / "ensemble"), Ensemble.load(FILES / "ensemble")
    x = np.array(content["input"], np.float32)
    assert members(x).tolist() == content["outputs"]
    assert members.outputs(x).tolist() == content["real"]
    assert (members.noise, members.metadata) == (content["noise"], content["metadata"])
    assert members.numbers(x).mean.tolist() == np.mean(content["real"], 0).tolist()
    members.save(tmp_path / "again")
    files = sorted(path.name for path in (FILES / "ensemble").iterdir())
    assert [path.name for path in sorted((tmp_path / "again").iterdir())] == files
    assert all((tmp_path / "again" / n).read_bytes() == (FILES / "ensemble" / n).read_bytes() for n in files)


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    shutil.copytree(FILES / "artefacts", tmp_path / "artefacts")
    return tmp_path / "artefacts"


@pytest.mark.parametrize("name", ["model.h", "model.onnx", "memory"])
def test_an_artefact_is_certified_as_it_was(name: str, artefacts: Path) -> None:
    if name == "model.onnx":
        pytest.importorskip("onnxruntime")
    model = IntegerModel.load(artefacts / "model.safetensors")
    x = np.array(json.loads((artefacts / "inputs.json").read_text(encoding="utf-8")), np.float32)
    before = kept(artefacts / name)
    report = verify(model, artefacts / name, x)
    assert report
    assert certify(model, artefacts / name, report) == artefacts / f"{name}.json"
    after = kept(artefacts / name)
    assert after.keys() == before.keys()
    assert {key: after[key] for key in (*CERTAIN, "bits", "bops", "accumulators")} == {
        key: before[key] for key in (*CERTAIN, "bits", "bops", "accumulators")
    }


def test_a_report_takes_the_certificates(artefacts: Path, tmp_path: Path) -> None:
    page = probq.report(artefacts / "model.safetensors", tmp_path / "report.html").read_text(encoding="utf-8")
    for target in ("c", "memory", "onnx"):
        assert re.search(rf"<td[^>]*>{target}</td>.*?unchanged", page, re.DOTALL), target
    certificates = sorted(artefacts.glob("*.h.json"))
    assert probq.report(artefacts / "model.safetensors", tmp_path / "two.html", certified=certificates).exists()


def test_files_are_small() -> None:
    sizes = [path.stat().st_size for path in FILES.rglob("*") if path.is_file()]
    assert max(sizes) < MOST
    assert sum(sizes) < 300_000
