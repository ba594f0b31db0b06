"""Ensembles, certificates and exported artefacts out of edited files: an error, the same result, or another meaning."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import damaged, edited, outcome
from integer_models import one_layer

from probq import export
from probq.evaluation.reporting import certificates
from probq.export import c, hls, memory, onnx, qonnx, verilog
from probq.export.certificate import certify
from probq.export.common import artifact_folder
from probq.integer import IntegerModel, Node
from probq.integer.ensemble import Ensemble, _digest
from probq.utils.errors import ProbqError

MODEL = one_layer([[3, -5], [1, 2]], [4, -4], 2, 7)
X = np.array([[0.0, 0.0], [3.0, 1.0], [2.0, 9.0]])


def answered(folder: Path) -> Any:
    """What an ensemble predicts; saved again, it is the same."""
    loaded = Ensemble.load(folder)
    again = folder.with_name("again")
    shutil.rmtree(again, ignore_errors=True)
    loaded.save(again)
    assert [m.sha256() for m in Ensemble.load(again).models] == [m.sha256() for m in loaded.models]
    return loaded.classes(X) if loaded.noise is None else loaded.numbers(X)


def test_ensembles(tmp_path: Path) -> None:
    whole, rng = tmp_path / "whole", np.random.default_rng(0)
    Ensemble([MODEL, MODEL], 0.5, {"budget": [1, {"a": 2}], "class axis": 1}).save(whole)
    manifest = json.loads((whole / "ensemble.json").read_text())
    del manifest["sha256"]
    folder, refused = tmp_path / "e", 0
    for number in range(150):
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        if number % 3:
            content = edited(manifest, rng)
            (folder / "ensemble.json").write_text(json.dumps({**content, "sha256": _digest(content)}))
        else:
            name = ("ensemble.json", "member-001.safetensors")[rng.integers(2)]
            (folder / name).write_bytes(damaged((whole / name).read_bytes(), rng))
        refused += isinstance(outcome(lambda: answered(folder)), ProbqError)
    assert 100 < refused < 150


def test_certificates(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "m.h"
    MODEL.save(tmp_path / "m")
    path.write_text("a header")
    certificate = certify(MODEL, path, export.Report("c", 3, 0, 0.1))
    whole, refused = certificate.read_bytes(), 0

    def use() -> list[str]:
        return certificates.elements([*certificates.given([certificate], None)], True)

    for number in range(300):
        changed = json.dumps(edited(json.loads(whole), rng)).encode() if number % 2 else damaged(whole, rng)
        certificate.write_bytes(changed)
        refused += isinstance(outcome(use), ProbqError)
    assert 100 < refused < 300


def test_a_certificate_names_a_file_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "m.h"
    path.parent.mkdir()
    path.write_text("a header")
    certificate = certify(MODEL, path, export.Report("c", 3, 0, 0.1))
    content = json.loads(certificate.read_text())
    for name, state in {"m.h": "unchanged", "..": "not here", "": "not here", "x" * 5000: "cannot be read"}.items():
        certificate.write_text(json.dumps(content | {"artefact": name}))
        assert certificates.read(certificate).state == state


def test_free_information_is_a_dict() -> None:
    for metadata in (5, "a", [[0, 0]]):
        with pytest.raises(ProbqError, match="metadata is a dict"):
            Ensemble([MODEL], metadata=metadata)  # type: ignore[arg-type]


def test_memory(tmp_path: Path) -> None:
    rng, folder, refused = np.random.default_rng(0), tmp_path / "m", 0
    memory.write(MODEL, folder)
    files = sorted(folder.iterdir())
    for number in range(210):
        file = folder / "probq.json" if number % 3 else files[rng.integers(len(files))]
        whole = file.read_bytes()
        file.write_bytes(json.dumps(edited(json.loads(whole), rng)).encode() if number % 3 else damaged(whole, rng))
        refused += isinstance(outcome(lambda: export.verify(MODEL, folder, X)), ProbqError)
        file.write_bytes(whole)
    assert export.verify(MODEL, folder, X)
    assert 150 < refused < 210


def edit_index(folder: Path, rng: np.random.Generator) -> None:
    file = folder / "probq.json"
    file.write_text(json.dumps(edited(json.loads(file.read_text()), rng)))


@pytest.mark.parametrize("target", ["onnx", "qonnx"])
def test_graphs(target: str, tmp_path: Path) -> None:
    pytest.importorskip(target)
    path, rng, refused = tmp_path / "m.onnx", np.random.default_rng(0), 0
    {"onnx": onnx, "qonnx": qonnx}[target].write(MODEL, path)
    whole = path.read_bytes()
    for _ in range({"onnx": 200, "qonnx": 60}[target]):
        path.write_bytes(damaged(whole, rng))
        refused += isinstance(outcome(lambda: export.verify(MODEL, path, X)), ProbqError)
    assert refused > 30


def test_graphs_of_another_kind(tmp_path: Path) -> None:
    """Numbers that are no integers are not rounded to the model's; no module that a domain names is imported."""
    library, path = pytest.importorskip("onnx"), tmp_path / "m.onnx"
    pytest.importorskip("qonnx")
    onnx.write(MODEL, path)
    proto = library.load(str(path))
    (last,) = [node for node in proto.graph.node if node.output[0] == "output"]
    half = library.helper.make_node("Constant", [], ["half"], value=library.numpy_helper.from_array(np.float32(0.5)))
    cast = library.helper.make_node("Cast", [last.input[0]], ["real"], to=library.TensorProto.FLOAT)
    last.CopyFrom(library.helper.make_node("Add", ["real", "half"], ["output"]))
    last, ends = proto.graph.node.pop(), [half, cast]
    proto.graph.node.extend([*ends, last])
    proto.graph.output[0].type.tensor_type.elem_type = library.TensorProto.FLOAT
    library.save(proto, str(path))
    with pytest.raises(ProbqError, match="no integers"):
        export.verify(MODEL, path, X)
    qonnx.write(MODEL, path)
    proto = library.load(str(path))
    proto.graph.node[0].domain = "this"
    library.save(proto, str(path))
    with pytest.raises(ProbqError, match="operations of 'this'"):
        export.verify(MODEL, path, X)
    assert "this" not in sys.modules


def test_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of them before they are compiled; the program gives what the model's would."""
    path, rng, refused = tmp_path / "m.h", np.random.default_rng(0), 0
    c.write(MODEL, path)
    whole, output = path.read_bytes(), MODEL(X).astype(np.int32).tobytes()
    monkeypatch.setattr(c.writer, "build", lambda *_: None)
    monkeypatch.setattr(c.writer, "execute", lambda *_: output)
    for place in (b"_INPUT_SIZE 2", b"shape [2]", b"(const uint8_t *input"):
        start = whole.index(place)
        for _ in range(40):
            part = damaged(whole[start : start + 40], rng)
            path.write_bytes(whole[:start] + part + whole[start + 40 :])
            refused += isinstance(outcome(lambda: export.verify(MODEL, path, X)), ProbqError)
    path.write_bytes(whole.replace(b"shape [2]", b"shape [" + b"9" * 5000 + b"]"))
    assert isinstance(outcome(lambda: export.verify(MODEL, path, X)), ProbqError)
    assert 20 < refused < 120


def test_damaged_headers_are_compiled(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    path, rng = tmp_path / "m.h", np.random.default_rng(0)
    c.write(MODEL, path)
    whole = path.read_bytes()
    for _ in range(10):
        path.write_bytes(damaged(whole, rng))
        outcome(lambda: export.verify(MODEL, path, X))


def project(folder: Path) -> None:
    """An index as `hls.write` makes it."""
    folder.mkdir()
    spec = {"input": {"shape": [2], "exponent": 0, "low": 0, "high": 255}, "output": {"shape": [2], "exponent": -1}}
    artifact_folder.write_index(folder, "hls", {"model_sha256": "", "output_scale": 1.0, "function": "network", **spec})


def test_projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of a project for high-level synthesis; the emulation gives what the model's would."""
    rng, folder, refused = np.random.default_rng(0), tmp_path / "m", 0
    project(folder)
    whole, output = (folder / "probq.json").read_bytes(), MODEL(X).astype(np.float32) / 2
    monkeypatch.setattr(hls.writer, "_called", lambda _, at: output.tofile(at / "outputs.bin"))
    monkeypatch.setattr(hls.writer, "_build", lambda *_: [""])
    assert export.verify(MODEL, folder, X)
    for number in range(120):
        edit_index(folder, rng) if number % 3 else (folder / "probq.json").write_bytes(damaged(whole, rng))
        refused += isinstance(outcome(lambda: export.verify(MODEL, folder, X)), ProbqError)
        (folder / "probq.json").write_bytes(whole)
    assert 60 < refused < 120


def test_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of a Verilog module; the simulation gives what the model's would."""
    rng, folder, refused = np.random.default_rng(0), tmp_path / "m", 0
    folder.mkdir()
    ends = {"input": {"shape": [2], "low": 0, "high": 255, "elements": [[8, False, 0]] * 2}}
    ends["output"] = {"shape": [2], "elements": [[3, False, 0]] * 2}
    index = {"model_sha256": "", "output_scale": 1.0, "module": "network", **ends}
    artifact_folder.write_index(folder, "verilog", index)
    whole = (folder / "probq.json").read_bytes()
    lines = "".join(f"{low + (high << 3):x}\n" for low, high in MODEL(X))
    monkeypatch.setattr(verilog.writer, "_called", lambda *_: lines)
    assert export.verify(MODEL, folder, X)
    for number in range(120):
        edit_index(folder, rng) if number % 3 else (folder / "probq.json").write_bytes(damaged(whole, rng))
        refused += isinstance(outcome(lambda: export.verify(MODEL, folder, X)), ProbqError)
        (folder / "probq.json").write_bytes(whole)
    assert 60 < refused < 120


def test_programs_by_hand(tmp_path: Path) -> None:
    """Real compilers: `relu(x0 - x1)` and `x0 + x1` by hand, in C++ and in Verilog, and what leaves the grid."""
    if shutil.which("g++") is None or shutil.which("iverilog") is None:
        pytest.skip("needs g++ and Icarus Verilog")
    x, expected = np.array([[5, 2], [1, 3]]), [[3, 7], [0, 4]]
    project(tmp_path / "h")
    (tmp_path / "h" / "firmware").mkdir()
    (tmp_path / "h" / "firmware" / "network.cpp").write_text("")
    for half, refused in (("0.5f", False), ("0.25f", True)):
        body = f"y[0] = x[0] > x[1] ? {half} * (x[0] - x[1]) : 0; y[1] = {half} * (x[0] + x[1]);"
        (tmp_path / "h" / "network_bridge.cpp").write_text(f"void network_float(float *x, float *y) {{ {body} }}")
        found = outcome(lambda: hls.run(tmp_path / "h", x))
        assert isinstance(found, ProbqError) if refused else found.tolist() == expected
    ends = {"input": {"shape": [2], "low": 0, "high": 255, "elements": [[8, False, 0]] * 2}}
    ends["output"] = {"shape": [2], "elements": [[8, False, 0], [9, False, 0]]}
    (tmp_path / "v" / "src").mkdir(parents=True)
    artifact_folder.write_index(tmp_path / "v", "verilog", {"module": "network", **ends})
    (tmp_path / "v" / "src" / "network.v").write_text("""
        module network(input [15:0] model_inp, output [16:0] model_out);
            wire [7:0] a = model_inp[7:0], b = model_inp[15:8];
            assign model_out = {{1'b0, a} + {1'b0, b}, a > b ? a - b : 8'd0};
        endmodule""")
    assert verilog.run(tmp_path / "v", x).tolist() == expected


def test_half_characters_are_refused() -> None:
    """No UTF-8 holds them, so that a file of such a name could not be loaded again."""
    with pytest.raises(ProbqError, match="half of a character"):
        Node("a\ud800", "input", (), {"shape": [2], "scale": 1.0, "lo": 0, "hi": 15})
    with pytest.raises(ProbqError, match="must be JSON"):
        IntegerModel(MODEL.nodes, "out", 1.0, {"a": ["\ud800"]})
    with pytest.raises(ProbqError, match="must be JSON"):
        Ensemble([MODEL], metadata={"\ud800": 1})
