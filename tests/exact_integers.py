"""What every network that is lowered must hold: its integers are what it computes, in every target."""

from pathlib import Path

import numpy as np
import torch

import probq


def assert_exact(q: probq.Quantized, x: torch.Tensor, folder: Path) -> probq.IntegerModel:
    """Check a decided network's integers against its own outputs, and C and ONNX against the integers.

    Args:
        q: the network, whose mode is lowered.
        x: inputs.
        folder: for the files of the targets.
    """
    model = probq.lower(q)
    outputs = q(x.double() if x.is_floating_point() else x).detach().numpy()  # tokens give float32
    assert np.array_equal((model(x) * model.output_scale).astype(outputs.dtype), outputs)
    for target, name in ((probq.export.c, "m.h"), (probq.export.onnx, "m.onnx")):
        target.write(model, folder / name)
        assert probq.export.verify(model, folder / name, x).differing == 0
    return model
