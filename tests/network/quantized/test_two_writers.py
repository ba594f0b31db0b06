"""Where two write one path, whoever reads it sees one file or the other, never a part of each."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import probq
from probq.network.quantized.file_format import read

READS = 150
INPUTS = np.linspace(0, 1, 64, dtype=np.float32)[None]
WRITER = """
import os, sys, itertools
a, b, path = sys.argv[1:]
print(flush=True)
for number, source in enumerate(itertools.cycle((a, b))):
    temporary = f"{path}.{number}"
    with open(source, "rb") as one, open(temporary, "wb") as other:
        other.write(one.read())
    os.replace(temporary, path)
"""


def posterior(seed: int) -> probq.Quantized:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    return probq.quantize(net, torch.rand(8, 64))


def numbers_of_posterior(path: Path) -> Any:
    return read(path)[1]["net.0.weight"].sum().item()


def numbers_of_model(path: Path) -> Any:
    model = probq.IntegerModel.load(path)
    return int(model(INPUTS).sum())


KINDS: dict[str, tuple[Callable[[probq.Quantized, Path], Any], Callable[[Path], Any]]] = {
    "posterior": (lambda q, path: q.save(path), numbers_of_posterior),
    "integer model": (lambda q, path: probq.lower(q, q.mode()).save(path), numbers_of_model),
}


@pytest.mark.parametrize(("save", "load"), KINDS.values(), ids=KINDS.keys())
def test_a_reader_sees_one_file_or_the_other(tmp_path: Path, save: Any, load: Any) -> None:
    files, path = [tmp_path / "a", tmp_path / "b"], tmp_path / "both"
    for seed, file in enumerate(files):
        save(posterior(seed), file)
    expected = {load(file) for file in files}
    os.link(files[0], path)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, *map(str, files), str(path)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        seen = {load(path) for _ in range(READS)}
    finally:
        writer.kill()
        writer.communicate()
    assert seen == expected
