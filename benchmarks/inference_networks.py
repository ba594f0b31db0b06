"""Networks beside LeNet-5 whose inference is measured: in float32 as ONNX, and in integers of uniform widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from resnet8 import ResNet8
from sequence_tasks import CHARACTERS, PLACES, Transformer
from torch import Tensor, nn

import probq


class DSCNN(nn.Module):
    """A 10x4 convolution, four depthwise separable ones, mean, linear layer: 12 keywords from 49 frames of 10 numbers.

    Source: C. Banbury et al., 2021, "MLPerf Tiny Benchmark"; Y. Zhang et al., 2017, "Hello Edge".
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.stem = normalised(nn.Conv2d(1, channels, (10, 4), 2, (5, 1), bias=False))
        self.separable = nn.Sequential()
        for _ in range(4):
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            self.separable += normalised(depthwise) + normalised(nn.Conv2d(channels, channels, 1, bias=False))
        self.linear = nn.Linear(channels, 12)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.linear(self.separable(self.stem(x)).mean((2, 3)))


def normalised(convolution: nn.Conv2d) -> nn.Sequential:
    """A convolution with its normalisation, rectified."""
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU())


class Network(NamedTuple):
    """A network and what it reads.

    Attributes:
        make: the network, its weights random.
        shape: of an example.
        count: of characters, or None where the input is real.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    count: int | None = None

    def integers(self, examples: int) -> np.ndarray:
        """What the integer model reads, uint8."""
        size = examples, *self.shape
        return np.random.default_rng(2).integers(0, self.count or 256, size).astype(np.uint8)

    def example(self, examples: int) -> Tensor:
        """What the float network reads: the numbers of characters, or real numbers from 0 to 1."""
        x = torch.from_numpy(self.integers(examples))
        return x.float() / 256 if self.count is None else x.long()


NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        "ResNet-8": Network(ResNet8, (3, 32, 32)),
        "DS-CNN": Network(DSCNN, (1, 49, 10)),
        "Transformer": Network(Transformer, (PLACES,), len(CHARACTERS)),
    }
)


def made(name: str) -> nn.Module:
    """A network of the list, its weights random, the same at every call."""
    torch.manual_seed(0)
    return NETWORKS[name].make().eval()


def write_float(name: str, path: Path) -> None:
    """Write a network in float32 as ONNX by PyTorch's exporter, its batch of any size."""
    sizes = ({0: torch.export.Dim("batch")},)
    named = {"input_names": ["input"], "output_names": ["output"], "external_data": False, "verbose": False}
    torch.onnx.export(made(name), (NETWORKS[name].example(8),), str(path), dynamo=True, dynamic_shapes=sizes, **named)


def write_int8(name: str, plain: Path, path: Path) -> None:
    """Write a network of images as ONNX Runtime's own quantizer makes it of the float one, 8 bits by channel."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Examples(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"input": NETWORKS[name].example(64).numpy()}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    ready = path.with_suffix(".ready.onnx")
    quant_pre_process(str(plain), str(ready))
    kinds = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
    quantization.quantize_static(ready, path, Examples(), per_channel=True, **kinds)


def integer_network(name: str, weights: int, inputs: int) -> probq.IntegerModel:
    """A network in integers: weights of one width, inputs of layers of another, the network's own input of 8 bits."""
    q = probq.quantize(made(name), NETWORKS[name].example(64), probq.uniform(weights, inputs))
    return probq.lower(q)
