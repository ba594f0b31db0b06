"""`probq export` and `probq verify`, run as a user runs them: artefacts, certificates, exit status, messages."""

import hashlib
import importlib
import json
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_cli import command, one_line

from probq import IntegerModel, ProbqError
from probq.cli import command_line as cli
from probq.cli import export as cli_export
from probq.cli.export import inputs
from probq.export.c.compiler import COMPILERS, build, execute
from probq.export.targets import TARGETS, Target
from probq.export.verification import verify_parts
from probq.integer import Node

NEEDS_COMPILER = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="there is no C compiler")


def source(**attributes) -> Node:
    return Node("x", "input", attributes={"shape": [6], "scale": 0.5, "lo": 0, "hi": 15, **attributes})


def linear(name: str, x: str, weight: np.ndarray, bias: np.ndarray) -> Node:
    return Node(name, "linear", (x,), tensors={"weight": weight, "bias": bias})


@pytest.fixture(scope="module")
def model() -> IntegerModel:
    """Two layers with 4-bit weights."""
    rng = np.random.default_rng(0)
    first = linear("a", "x", rng.integers(-8, 8, (7, 6)), rng.integers(-20, 20, 7))
    numbers = {"multiplier": np.array(1), "add": np.array(4), "shift": np.array(3)}
    between = Node("q", "requantize", ("a",), {"lo": 0, "hi": 15}, numbers)
    second = linear("b", "q", rng.integers(-8, 8, (3, 7)), rng.integers(-20, 20, 3))
    return IntegerModel([source(), first, between, second], "b", 0.25)


@pytest.fixture
def file(model: IntegerModel, tmp_path: Path) -> Path:
    model.save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def export(file: Path, target: str, *more: str) -> int:
    return cli.main(["export", str(file), "--to", target, "--out", str(file.parent / "out"), *more])


@pytest.mark.parametrize(
    ("target", "more"),
    [(target, ()) for target in TARGETS] + [(target, ("--packed",)) for target in TARGETS if target.packs],
    ids=lambda value: value.name if isinstance(value, Target) else "".join(value),
)
def test_export_and_verify(target, more, model, file, capsys):
    for library in target.libraries:
        pytest.importorskip(library)
    if target.name == "verilog" and not shutil.which("iverilog"):
        pytest.skip("there is no Icarus Verilog")
    assert export(file, target.name, "--verify", "--inputs", "70", *more) == 0
    out = capsys.readouterr().out
    artefact = target.path(file, file.parent / "out", bool(more))
    certificate = artefact.with_name(artefact.name + ".json")
    beside = {"m_test.c"} if target.name == "c" else set()
    assert {path.name for path in artefact.parent.iterdir()} == {artefact.name, certificate.name} | beside
    assert f"{cli_export.size(artefact):,} bytes" in out
    assert "0 of 70 outputs differ" in out
    assert f"certificate: {certificate}\n" in out
    found = json.loads(certificate.read_text())
    assert (found["target"], found["compared"], found["differing"]) == (target.module, 70, 0)
    assert found["model_sha256"] == model.sha256()
    assert found["bits"] == sum(node.bits for node in model.nodes)
    assert set(found["accumulators"]) == {"a", "b"}
    if artefact.is_file():
        assert found["bytes"] == artefact.stat().st_size
        assert found["artefact_sha256"] == hashlib.sha256(artefact.read_bytes()).hexdigest()
    assert cli.main(["verify", str(file), str(artefact), "--inputs", "5", "--seed", "7"]) == 0
    assert "0 of 5 outputs differ" in capsys.readouterr().out


def test_onnx_says_which_form_each_layer_took(file, capsys):
    pytest.importorskip("onnx")
    assert export(file, "onnx") == 0
    out = capsys.readouterr().out
    assert "1 of 2 layers as QLinearConv" in out
    assert "b: integer operators: " in out
    assert [path.name for path in (file.parent / "out").iterdir()] == ["m.onnx"]


@NEEDS_COMPILER
def test_as_a_process_without_torch(file):
    block = "import sys; sys.modules['torch'] = sys.modules['pyro'] = None"
    done = command("export", file, "--to", "c", "--out", file.parent / "a/b", "--verify", "--inputs", "20", code=block)
    assert done.returncode == 0, done.stderr
    assert "c: 0 of 20 outputs differ" in done.stdout
    assert command("verify", file, file.parent / "a/b/m.h", "--inputs", "3", code=block).returncode == 0


@NEEDS_COMPILER
def test_the_c_test_program_runs_alone(file, capsys):
    assert export(file, "c") == 0
    assert "16 test vectors" in capsys.readouterr().out
    folder = file.parent / "out"
    build(folder / "m_test.c", folder / "m_test", ["-O1"])
    assert execute(folder / "m_test", b"") == b"0 of 48 outputs differ\n"


@NEEDS_COMPILER
def test_a_manipulated_header_differs(model, file, capsys):
    """One weight of the last layer changed by one: an output differs where that weight's input is not 0."""
    assert export(file, "c", "--verify") == 0
    header = file.parent / "out/m.h"
    weight = model.nodes[-1].tensors["weight"]
    header.write_text(changed(header.read_text(), weight))
    capsys.readouterr()
    assert cli.main(["verify", str(file), str(header), "--inputs", "300"]) == 1
    (x,) = inputs(model, 300, 0, 300)
    read = model.values(model.quantize_input(x))["q"]
    expected = {int((read[:, k] != 0).sum()) for k in range(7)}
    found = re.search(r"c: (\d+) of 300 outputs differ", capsys.readouterr().out)
    assert found
    assert 0 < int(found[1]) in expected


def changed(text: str, weight: np.ndarray) -> str:
    """The header's text with one weight's lowest bit flipped, in the array that is only this weight's."""
    for definition in re.finditer(r"static const (u?)int8_t \w+\[(\d+)\] = \{\n([-\d,\n]+)\};", text):
        numbers = [int(n) for n in definition[3].replace("\n", "").split(",")]
        if sorted(n for n in numbers if n) == sorted(n for n in weight.reshape(-1) if n):
            at = next(k for k, n in enumerate(numbers) if n > 1)
            numbers[at] ^= 1
        elif definition[1] and -(-weight.size // 2) <= len(numbers) <= weight.size:
            numbers[0] ^= 1
        else:
            continue
        start, end = definition.span(3)
        return text[:start] + ",".join(map(str, numbers)) + "\n" + text[end:]
    raise AssertionError("no array of the header holds the weight")


@NEEDS_COMPILER
def test_an_export_that_differs_is_certified_as_such(file, capsys, monkeypatch):
    write = importlib.import_module("probq.export.c").write

    def wrong(model, path):
        write(model, path)
        path.write_text(path.read_text().replace("*output)\n{", "*output)\n{ (void)output; return;", 1))

    monkeypatch.setattr("probq.export.c.write", wrong)
    assert export(file, "c", "--verify", "--inputs", "9") == 1
    assert "c: 9 of 9 outputs differ" in capsys.readouterr().out
    assert json.loads((file.parent / "out/m.h.json").read_text())["differing"] == 9


def test_a_new_artefact_has_no_old_certificate(file):
    old = file.parent / "out/m.h.json"
    old.parent.mkdir()
    old.write_text("{}")
    assert export(file, "c") == 0
    assert not old.exists()


# What is refused


def test_models_that_are_none(model, file, tmp_path, capsys):
    content = file.read_bytes()
    (tmp_path / "cut").write_bytes(content[:-1])
    (tmp_path / "flipped").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (tmp_path / "text").write_text("no model")
    manifest = json.dumps({"format": "probq.posterior", "version": 1})
    save_file({"a": np.zeros(3)}, tmp_path / "posterior", {"probq": manifest})
    expected = {
        "none": "there is no file",
        "cut": "not a safetensors file",
        "flipped": "SHA-256",
        "text": "not a safetensors file",
        "posterior": "holds a posterior, not an integer model",
    }
    for name, message in expected.items():
        assert export(tmp_path / name, "c", "--verify") == 2
        err = capsys.readouterr().err
        assert message in err
        assert len(err.splitlines()) == 1
        assert cli.main(["verify", str(tmp_path / name), "m.h"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_written(file, tmp_path):
    (tmp_path / "taken").write_text("")
    for folder in ("taken", "taken/below"):
        message = one_line(command("export", file, "--to", "c", "--out", tmp_path / folder))
        assert "cannot make the folder" in message
    (tmp_path / "out/m.h").mkdir(parents=True)
    assert "cannot write" in one_line(command("export", file, "--to", "c", "--out", tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.h"]


def test_the_model_is_not_overwritten(model, tmp_path, capsys):
    model.save(tmp_path / "m.h")
    content = (tmp_path / "m.h").read_bytes()
    assert cli.main(["export", str(tmp_path / "m.h"), "--to", "c", "--out", str(tmp_path)]) == 2
    assert "is the model itself" in capsys.readouterr().err
    assert (tmp_path / "m.h").read_bytes() == content


def test_packed_is_a_form_of_onnx(file, capsys):
    assert export(file, "c", "--packed") == 2
    assert "leave it out for c" in capsys.readouterr().err
    assert list((file.parent / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("target", "library", "extra"), [("onnx", "onnx", "onnx"), ("qonnx", "qonnx.core.modelwrapper", "qonnx")]
)
def test_without_an_extra(target, library, extra, file):
    pytest.importorskip(target)
    block = f"import sys; sys.modules[{library!r}] = None"
    done = command("export", file, "--to", target, "--out", file.parent / "out", "--verify", code=block)
    assert done.returncode == 2
    assert f'install it with: pip install "probq[{extra}]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_compiler(file, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert export(file, "c", "--verify") == 2
    captured = capsys.readouterr()
    assert "install gcc or clang" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert {path.name for path in (file.parent / "out").iterdir()} == {"m.h", "m_test.c"}


def test_artefacts_that_are_none(file, tmp_path, capsys):
    (tmp_path / "odd.h").write_text("int main;")
    (tmp_path / "odd.bin").write_text("")
    for name, message in {"none.h": "there is no", "odd.h": "not a header", "odd.bin": "no known target"}.items():
        assert cli.main(["verify", str(file), str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("export",),
        ("export", "m", "--to", "c"),
        ("export", "m", "--to", "fpga", "--out", "o"),
        ("export", "m", "--to", "c", "--out", "o", "--inputs", "0"),
        ("export", "m", "--to", "c", "--out", "o", "--seed", "x"),
        ("verify", "m"),
        ("verify", "m", "a", "--inputs", "many"),
    ],
    ids=" ".join,
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: probq" in capsys.readouterr().err


def test_help_names_every_target(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["export", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for target in TARGETS:
        assert f"  {target.name:12}{target.text}\n" in out
    assert all(option in out for option in ("--to", "--out", "--verify", "--packed", "--inputs", "--seed"))


# Inputs and progress


@pytest.mark.parametrize(
    "node",
    [
        source(),
        source(lo=-8, hi=7, scale=2.0**-20),
        source(lo=0, hi=1, start=-1, step=2),
        source(lo=0, hi=3, start=-3, step=2, scale=8.0),
        source(lo=0, hi=2, start=1, step=3),
        Node("x", "input", attributes={"shape": [6], "index": True, "count": 16}),
    ],
)
def test_inputs_are_every_integer_of_the_range(node):
    model = IntegerModel([node], "x", 1.0)
    spec = node.attributes
    codes = range(spec["count"]) if spec.get("index") else range(spec["lo"], spec["hi"] + 1)
    levels = [spec.get("start", 0) + spec.get("step", 1) * code for code in codes]
    parts = list(inputs(model, 150, 3, 64))
    assert [len(part) for part in parts] == [64, 64, 22]
    integers = model.quantize_input(x := np.concatenate(parts))
    assert (integers * spec.get("scale", 1) == x).all()
    assert (integers[0] == levels[0]).all()
    assert (integers[1] == levels[-1]).all()
    drawn = integers[2:]
    assert set(drawn.reshape(-1).tolist()) == set(levels)
    # the mean of n uniform numbers, within 5 standard deviations
    assert abs(drawn.mean() - np.mean(levels)) < 5 * np.std(levels) / np.sqrt(drawn.size)
    assert (next(inputs(model, 150, 3, 150)) == x).all()
    assert (next(inputs(model, 150, 4, 150)) != x).any()
    assert len(next(inputs(model, 1, 3, 64))) == 1


@pytest.fixture
def opening(model, monkeypatch, tmp_path):
    """A C header whose program is a function given by the test, and how often it was built."""

    def given(compute):
        @contextmanager
        def opened(path):
            builds.append(path)
            yield compute

        builds = []
        monkeypatch.setattr("probq.export.c.opened", opened)
        (tmp_path / "m.h").touch()
        return tmp_path / "m.h", builds

    return given


def test_an_artefact_is_built_once_and_run_often(model, opening):
    sizes = []
    path, builds = opening(lambda x: sizes.append(len(x)) or model.run(x) + (x == 0).all(1)[:, None])
    report = cli_export.compared(model, path, 150, 0)
    assert (report.target, report.compared, report.differing) == ("c", 150, 1)  # the first input alone is all zero
    assert builds == [path]
    assert sizes == [64, 64, 22]


def test_seconds_are_those_of_the_artefact(model, opening):
    path, _ = opening(lambda x: time.sleep(0.1) or model.run(x))
    seconds = cli_export.compared(model, path, 130, 0).seconds
    assert seconds >= 0.3
    lazy = (time.sleep(0.4) or x for x in inputs(model, 130, 0, 64))
    start = time.perf_counter()
    assert verify_parts(model, path, lazy).seconds < time.perf_counter() - start - 1.1


def test_progress_appears_only_when_it_takes_long(model, opening, monkeypatch, capsys):
    path, _ = opening(lambda x: time.sleep(wait) or model.run(x))
    wait = 0.0
    assert cli_export.compared(model, path, 130, 0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(cli_export, "PATIENCE", 0.1)
    wait = 0.3
    cli_export.compared(model, path, 130, 0)
    shown = capsys.readouterr().err
    assert "verify:   0%" in shown
    assert "0/130" in shown
    assert "128/130" in shown
    assert shown.endswith("\r")


def test_writing_shows_the_time_it_takes(file, monkeypatch, capsys):
    monkeypatch.setattr(cli_export, "PATIENCE", 0.1)
    monkeypatch.setattr("probq.export.c.write", lambda model, path: time.sleep(0.4) or path.write_text(""))
    monkeypatch.setattr("probq.export.c.write_test", lambda *_: None)
    assert export(file, "c") == 0
    assert "export: 00:00" in capsys.readouterr().err


def test_progress_goes_when_it_fails(model, opening, monkeypatch, capsys):
    def failing(x):
        time.sleep(0.3)
        raise ProbqError("no")

    path, _ = opening(failing)
    monkeypatch.setattr(cli_export, "PATIENCE", 0.1)
    with pytest.raises(ProbqError, match="no"):
        cli_export.compared(model, path, 130, 0)
    assert capsys.readouterr().err.endswith("\r")


def test_an_interrupted_export_leaves_nothing(file, monkeypatch, capsys):
    write = Path.write_text

    def interrupted(path, text, **options):
        write(path, text[:100], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    assert export(file, "c") == 1
    assert capsys.readouterr().err == "probq: interrupted\n"
    assert list((file.parent / "out").iterdir()) == []


def test_a_name_of_the_users_choice(file, capsys):
    assert export(file, "c", "--name", "fw", "--inputs", "5") == 0
    found = sorted(path.name for path in (file.parent / "out").iterdir()) if (file.parent / "out").is_dir() else []
    found = found or sorted(path.name for path in file.parent.rglob("fw*"))
    assert {"fw.h", "fw_test.c"} <= set(found)
    assert "fw_run(" in next(file.parent.rglob("fw.h")).read_text()
    for name in ("a/b", "..", ""):
        assert export(file, "c", "--name", name) == 2
