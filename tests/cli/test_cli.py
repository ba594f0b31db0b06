"""The command line, run as a user runs it: what it prints, and its exit status."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import probq
from probq.cli import command_line as cli
from probq.cli import demo
from probq.codebooks import ladder


def command(*arguments: str | Path, code: str = "") -> subprocess.CompletedProcess[str]:
    start = ["-c", f"{code}; import sys; from probq.cli import main; sys.exit(main())"] if code else ["-m", "probq"]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("probq: ")
    return done.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, probq.Quantized]:
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    q = probq.quantize(net, torch.rand(8, 1, 4, 4), probq.Plan(weight=ladder(2, 4, 8)))
    q.budget = probq.Budget(percent=1.5)
    q.save(folder / "q")
    probq.lower(q, q.mode()).save(folder / "m")
    return folder, q


def test_help() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "demo" in done.stdout
    assert "show" in done.stdout
    done = command("demo", "--help")
    assert all(option in done.stdout for option in ("--out", "--budget", "--seed"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"probq {probq.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("show",), ("demo", "--seed", "-1"), ("demo", "--budget", "x")]
)
def test_wrong_arguments(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: probq" in capsys.readouterr().err


def test_show_integer_model(files: tuple[Path, probq.Quantized], capsys: pytest.CaptureFixture[str]) -> None:
    folder, q = files
    assert cli.main(["show", str(folder / "m")]) == 0
    shown = capsys.readouterr().out
    model, widths = probq.IntegerModel.load(folder / "m"), q.mode().widths
    layers = {node.name: node for node in model.nodes if node.op in ("conv", "linear")}
    bops = {"0": 108 * widths["0.weight"] * 8, "3": 24 * widths["3.weight"] * widths["3.input"]}
    for name, op, shape, macs in (("0", "conv", "3x1x3x3", 108), ("3", "linear", "2x12", 24)):
        # the narrowest two's complement integer that holds -bound .. bound
        accumulator = next(n for n in range(1, 64) if layers[name].bound <= 2 ** (n - 1) - 1)
        share = f"{100 * bops[name] / sum(bops.values()):.1f}"
        expected = [name, op, shape, widths[f"{name}.weight"], widths[f"{name}.input"], accumulator, macs, share]
        assert " ".join(map(str, expected)) in [" ".join(line.split()) for line in shown.splitlines()]
    assert f"{q.mode().percent():.4g} %" in shown
    assert f"{(folder / 'm').stat().st_size:,} bytes" in shown


def test_show_posterior_without_its_network(files: tuple[Path, probq.Quantized]) -> None:
    folder, q = files
    done = command("show", folder / "q")
    assert done.returncode == 0
    assert done.stderr == ""
    row = next(line for line in done.stdout.splitlines() if line.startswith("3.weight"))
    assert f"{probq.table(q).loc['3.weight', 'P(4)']:.3f}" in row
    assert "Budget(percent=1.5, limit=None)" in done.stdout


def test_show_model_without_known_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from probq.integer import IntegerModel, Node

    image = Node("x", "input", attributes={"shape": [2], "scale": 0.5, "lo": 0, "hi": 15})
    layer = Node("fc", "linear", ("x",), tensors={"weight": np.array([[1, -2]]), "bias": np.array([3])})
    IntegerModel([image, layer], "fc", 0.25, {"layers": "odd", "versions": 3, "bops": "x"}).save(tmp_path / "m")
    assert cli.main(["show", str(tmp_path / "m")]) == 0
    shown = capsys.readouterr().out
    assert "fc linear 1x2 2 - - - -" in " ".join(shown.split())
    assert "not recorded" in shown


def test_show_what_cannot_be_shown(
    tmp_path: Path, files: tuple[Path, probq.Quantized], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("hello, this is no model")
    (tmp_path / "cut").write_bytes((files[0] / "q").read_bytes()[:-9])
    (tmp_path / "edited").write_bytes(
        (files[0] / "q").read_bytes().replace(b'temperature\\":1.0', b'temperature\\":2.0')
    )
    save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    save_file({"a": np.zeros(3)}, tmp_path / "list", {"probq": json.dumps([1])})
    expected = {
        "none": "there is no file",
        "": "is a folder",
        "text": "not a safetensors file",
        "cut": "not a safetensors file",
        "edited": "SHA-256",
        "foreign": "probq did not write it",
        "list": "format",
    }
    for name, message in expected.items():
        assert cli.main(["show", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
    assert "not a safetensors file" in one_line(command("show", tmp_path / "text"))


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "file_kind", interrupted)
    assert cli.main(["show", "x"]) == 1
    assert capsys.readouterr().err == "probq: interrupted\n"


def test_closed_pipe(files: tuple[Path, probq.Quantized]) -> None:
    shell = f"set -o pipefail; {sys.executable} -u -m probq show {files[0] / 'm'} | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


# The demonstration


def test_budget_out_of_reach_is_said_before_training(tmp_path: Path) -> None:
    message = one_line(command("demo", "--budget", "0.01", "--out", tmp_path / "out"))
    assert "cannot be reached" in message
    assert "0.02329 %" in message  # rounded up: one bit in the first layer: 9216 * 1 * 8 of 309248 * 32 * 32
    assert not (tmp_path / "out").exists()


def test_budgets_that_are_none(tmp_path: Path) -> None:
    for budget in ("-1", "0", "nan", "inf"):
        assert cli.main(["demo", f"--budget={budget}", "--out", str(tmp_path / "out")]) == 2


def test_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "cannot make the folder" in capsys.readouterr().err


def test_without_scikit_learn() -> None:
    assert "probq[demo]" in one_line(command("demo", code="import sys; sys.modules['sklearn'] = None"))


def test_split_is_fixed_by_the_seed() -> None:
    one, same, other = demo.digits(1), demo.digits(1), demo.digits(2)
    assert [len(part) for part in (one.train, one.validation, one.test)] == [1078, 360, 359]
    assert torch.equal(one.test.tensors[0], same.test.tensors[0])
    assert not torch.equal(one.test.tensors[0], other.test.tensors[0])
    images = torch.cat([part.tensors[0] for part in (one.train, one.validation, one.test)])
    assert images.min() == 0
    assert images.max() == 1
    assert sum(layer.macs for layer in probq.layers(demo.network(), images[:2])) == 309248


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    done = command("demo", "--out", tmp_path / "out", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr  # progress
    assert "differ: 0 of 359" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(demo.FILES)
    accuracies = [float(value) for value in re.findall(r"(?:network|model) +([\d.]+) %", done.stdout)]
    assert len(accuracies) == 2
    assert min(accuracies) > 90
    frame = pandas.read_csv(tmp_path / "out/table.csv", index_col=0)
    bits = frame["mode"]
    bops = [m * bits[f"{n}.weight"] * bits[f"{n}.input"] for n, m in ((0, 9216), (3, 294912), (8, 5120))]
    assert f"{sum(bops):,.0f} of at most 1,583,350" in done.stdout
    assert sum(bops) <= 1_583_350
    data, q = demo.digits(1), probq.load(tmp_path / "out/posterior.safetensors", demo.network())
    model = probq.IntegerModel.load(tmp_path / "out/model.safetensors")
    x, y = data.test.tensors
    assert np.array_equal(model(x.numpy()) * model.output_scale, q(x.double()).numpy())
    assert f"{100 * np.mean(model(x.numpy()).argmax(1) == y.numpy()):.2f} %" in done.stdout
    for name in ("posterior", "model"):
        assert cli.main(["show", str(tmp_path / f"out/{name}.safetensors")]) == 0
