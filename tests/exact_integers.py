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
    probq.export.onnx.write(model, folder / "m.onnx")
    assert probq.export.verify(model, folder / "m.onnx", x).differing == 0
    probq.export.c.write(model, folder / "m.h")
    integers = model.quantize_input(x)
    found = probq.export.c.run(folder / "m.h", integers, ("-O0",))  # optimized C has random models of its own
    assert np.array_equal(found, model.run(integers))
    return model
