"""Something that is no integer model is told by every target, before anything is written."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import probq
from probq.export.verification import Report

Q = probq.quantize(nn.Linear(3, 2), torch.rand(8, 3))


@pytest.mark.parametrize("model", [Q, "model.safetensors", None], ids=["network", "path", "nothing"])
@pytest.mark.parametrize("target", ["c", "hls", "memory", "onnx", "qonnx", "verilog"])
def test_writers_say_what_they_take(target: str, model: Any, tmp_path: Path) -> None:
    with pytest.raises(probq.ProbqError, match=rf"export\.{target}\.write takes an integer model, from probq\.lower"):
        getattr(probq.export, target).write(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_verify_certify_and_lower_say_what_they_take(tmp_path: Path) -> None:
    path: Any = tmp_path / "m.h"
    probq.export.c.write(probq.lower(Q), path)
    with pytest.raises(probq.ProbqError, match=r"export\.verify takes an integer model"):
        probq.export.verify(Q, path, torch.rand(2, 3).numpy())  # type: ignore[arg-type]
    with pytest.raises(probq.ProbqError, match=r"export\.certify takes an integer model"):
        probq.export.certify(Q, path, Report("c", 1, 0, 0.0))  # type: ignore[arg-type]
    with pytest.raises(probq.ProbqError, match=r"lower takes an assignment, such as q\.mode"):
        probq.lower(Q, {"weight": 4})  # type: ignore[arg-type]
