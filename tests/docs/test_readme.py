"""What README.md shows is what happens."""

import re
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot
from torch import nn

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    torch.manual_seed(0)
    x = torch.rand(64, 4)
    data = [(x, x[:, :3].argmax(1))]
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    names = {"net": net, "example": x, "batches": data, "held": data, "x": x}
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(example, names)
    pyplot.close(names["axes"].figure)
    assert names["decision"].percent() <= names["budget"].percent
    assert (names["integers"] * names["model"].output_scale == names["q"](x).double().numpy()).all()
    assert (tmp_path / "model.safetensors").exists()


def test_its_figures_stand_in_the_results():
    results = [path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "results").glob("*.md")]
    if results:  # a source distribution has none
        figure = re.compile(r"\d+\.\d+")
        reached = README.split("## What it reaches")[1].split("\n## ")[0]
        assert set(figure.findall(reached)) <= {number for text in results for number in figure.findall(text)}


def test_it_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 100
    if (ROOT / "docs").exists():  # a source distribution has none
        for link in re.findall(r"\]\(([^)#:]+)\)", README):
            assert (ROOT / link).exists(), link
