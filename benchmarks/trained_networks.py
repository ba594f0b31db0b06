"""Float networks of MNIST and CIFAR-10 that the study of quantization without training starts from, trained once.

LeNet-5 has dropout before its linear layers and 8 epochs; ResNet-8 has 8 channels in its first block, batch
normalisation, random crops and flips, and 40 epochs. Both are trained as `protocol.train` does, on all training images,
with one seed; a file that is in the folder already is read. They take 2 and 15 minutes of one CPU thread.

    python benchmarks/trained_networks.py --data DIR --networks FOLDER
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import data
import torch
from mnist_lenet5 import with_dropout
from protocol import BATCH, accuracy, in_parts, train, write
from resnet8 import ResNet8
from torch import Tensor, nn

EPOCHS: Mapping[str, int] = MappingProxyType({"LeNet-5": 8, "ResNet-8": 40})
WIDTH = 8  # channels of ResNet-8's first block
HELP = "folder that keeps the float networks; one that is missing is trained"


TRAINING = MappingProxyType({"LeNet-5": 60_000, "ResNet-8": 50_000})  # images


def images(
    network: str, folder: Path, train: bool, count: int | None = None, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The first or the chosen images of a part of a network's data, in [0, 1], and their labels."""
    if network == "LeNet-5":
        x, y = data.mnist(folder, train)
        return (x[:count], y[:count]) if chosen is None else (x[chosen], y[chosen])
    x, y = data.cifar10(folder, train, count, chosen)
    return x.float() / 255, y


def trained(network: str, folder: Path, kept: Path) -> nn.Module:
    """A float network from its file, or trained now and kept there."""
    path = kept / f"{network}-epochs{EPOCHS[network]}.pt"
    torch.manual_seed(0)
    net = with_dropout() if network == "LeNet-5" else ResNet8(WIDTH).to(memory_format=torch.channels_last)
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    if network == "LeNet-5":
        x, y = data.mnist(folder, True)
        train(net, data.Shuffled(x.contiguous(memory_format=torch.channels_last), y, BATCH), EPOCHS[network])
    else:
        part = path.with_suffix(".checkpoint")
        train(net, data.Cropped(*data.cifar10(folder, True), BATCH), EPOCHS[network], part)
    write(path, functools.partial(torch.save, net.state_dict()))
    return net.eval()


def main() -> None:
    """Train what is missing, print test accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"{data.DATA_HELP} For ResNet-8: {data.CIFAR_HELP}")
    parser.add_argument("--networks", type=Path, required=True, help=HELP)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for network in EPOCHS:
        net = trained(network, options.data, options.networks)
        x, y = images(network, options.data, False)
        print(network, f"{accuracy(in_parts(net, x), y):.2f} % of {len(y)} test images")


if __name__ == "__main__":
    main()
