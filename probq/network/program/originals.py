"""Rounding keeps what it moves of a network, so that whatever comes next still finds the float network."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import Tensor, nn


class Originals(nn.Module):
    """The originals are the weights, biases and statistics that rounding has moved, as the float network has them.

    They are buffers, which copies, devices and files take along.
    """

    @torch.no_grad()
    def keep(self, net: nn.Module, name: str) -> None:
        """Keep a tensor of a network that is about to be moved, unless it was moved before."""
        own = name.removeprefix(".")  # a network that is one layer has no name
        if own not in self.names():
            self.make_room(own, net.state_dict()[own].clone())

    def make_room(self, name: str, tensor: Tensor) -> None:
        """Take a tensor as that of a name."""
        self.register_buffer(name.replace(".", "/"), tensor)

    def names(self) -> tuple[str, ...]:
        """Return the names in the network of all that is kept."""
        return tuple(key.replace("/", ".") for key, _ in self.named_buffers())

    @torch.no_grad()
    def put_back(self, net: nn.Module, but: Container[str] = ()) -> None:
        """Move what is kept back into a network, and keep it no longer.

        Args:
            net: the network, changed in place.
            but: names that stay as they are, and kept.
        """
        there = net.state_dict()  # the very tensors
        for name in self.names():
            if name not in but:
                key = name.replace(".", "/")
                there[name].copy_(self.get_buffer(key))
                delattr(self, key)
