"""The networks of the benchmarks."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def lenet5() -> nn.Sequential:
    """LeNet-5 as 32C5-MP2-64C5-MP2-512-10: valid padding, ReLU, no normalisation, 4,267,008 MACs at 28x28."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(1024, 512),
            relu3=nn.ReLU(),
            fc2=nn.Linear(512, 10),
        )
    )


def vgg7(width: float = 1.0) -> nn.Sequential:
    """VGG-7 as 2x128C3-MP2-2x256C3-MP2-2x512C3-MP2-1024-10 with batch normalisation, every width times `width`."""
    members: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for block, full in enumerate((128, 256, 512)):
        for layer in (2 * block + 1, 2 * block + 2):
            size = round(full * width)
            members[f"conv{layer}"] = nn.Conv2d(channels, size, 3, padding=1, bias=False)
            members[f"norm{layer}"] = nn.BatchNorm2d(size)
            members[f"relu{layer}"] = nn.ReLU()
            channels = size
        members[f"pool{block + 1}"] = nn.MaxPool2d(2)
    hidden = round(1024 * width)
    members["flatten"] = nn.Flatten()
    members["fc1"] = nn.Linear(16 * channels, hidden, bias=False)
    members["norm7"] = nn.BatchNorm1d(hidden)
    members["relu7"] = nn.ReLU()
    members["fc2"] = nn.Linear(hidden, 10)
    return nn.Sequential(members)
