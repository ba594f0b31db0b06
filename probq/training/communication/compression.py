"""A compression rounds gradients, sends them, and averages what comes from all processes.

Annotations are no text here, since `register_comm_hook` looks at those of a hook.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from probq.training.communication.packing import pack, per_byte, unpack

FLOAT = 4  # bytes of a scale or of a number that is not compressed


class Compression(ABC):
    """A compression is the state of the hook `average`: how gradients are rounded, and how much was sent.

    Args:
        base: number of values of a code.
        chunk: how many numbers share a scale; None: all of a bucket.
        group: of processes; None: all.
        feedback: whether what rounding left out is added to the next gradient.

    Attributes:
        sent: bytes that this process has handed over.
        uncompressed: bytes of the same gradients in float32.
    """

    def __init__(self, base: int, chunk: int | None, group: Any = None, feedback: bool = False) -> None:
        self.base, self.chunk, self.group, self.feedback = base, chunk, group, feedback
        self.sent, self.uncompressed = 0, 0
        self.left: dict[Tensor, Tensor] = {}

    @abstractmethod
    def scales(self, parts: Tensor) -> Tensor:
        """Return the scale of each chunk, `[chunks, numbers]` to `[chunks, 1]`."""

    @abstractmethod
    def codes(self, parts: Tensor) -> Tensor:
        """Return the codes of numbers in units of their scale, 0 to `base - 1`, of the same shape."""

    @abstractmethod
    def values(self, codes: Tensor) -> Tensor:
        """Return what codes mean, in units of the scale."""

    def encode(self, gradient: Tensor) -> Tensor:
        """Return a gradient `[N]` as bytes: the scales, float32, then the codes."""
        parts = self._parts(gradient.float())
        scales = self.scales(parts)
        units = parts / scales.where(scales != 0, 1.0)
        codes = self.codes(units).reshape(-1)[: len(gradient)]
        return torch.cat([scales.reshape(-1).contiguous().view(torch.uint8), pack(codes, self.base)])

    def decode(self, data: Tensor, count: int) -> Tensor:
        """Return the gradient `[count]` of bytes, float32."""
        bounds = FLOAT * self._chunks(count)
        scales = data[:bounds].clone().view(torch.float32).unsqueeze(1)
        values = self.values(unpack(data[bounds:], self.base, count))
        return (self._parts(values) * scales).reshape(-1)[:count]

    def bytes_of(self, count: int) -> int:
        """Return the number of bytes of a gradient of so many numbers."""
        return FLOAT * self._chunks(count) + -(-count // per_byte(self.base))

    def _chunks(self, count: int) -> int:
        return 1 if self.chunk is None else -(-count // self.chunk)

    def _parts(self, numbers: Tensor) -> Tensor:
        chunks = self._chunks(len(numbers))
        size = len(numbers) if self.chunk is None else self.chunk
        return torch.nn.functional.pad(numbers, (0, chunks * size - len(numbers))).reshape(chunks, size)


def average(
    state: Compression,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """Return the mean of the compressed gradients of all processes; for `register_comm_hook`.

    Args:
        state: the compression, of this model alone.
        bucket: gradients of some parameters.
    """
    gradient = bucket.buffer()
    if state.feedback:
        left = [state.left.get(p) for p in bucket.parameters()]
        flat = [
            torch.zeros_like(p).reshape(-1) if e is None else e for p, e in zip(bucket.parameters(), left, strict=True)
        ]
        gradient = gradient + torch.cat(flat).to(gradient)
    own = state.encode(gradient)
    if state.feedback:
        error = gradient - state.decode(own, len(gradient)).to(gradient)
        sizes = [p.numel() for p in bucket.parameters()]
        state.left.update(zip(bucket.parameters(), error.split(sizes), strict=True))
    state.sent += len(own)
    state.uncompressed += FLOAT * len(gradient)
    received = [torch.empty_like(own) for _ in range(dist.get_world_size(state.group))]
    work = dist.all_gather(received, own, group=state.group, async_op=True)
    assert work is not None

    def mean(_: Any) -> Tensor:
        decoded = torch.stack([state.decode(data, len(gradient)) for data in received])
        return bucket.buffer().copy_(decoded.mean(0))

    return work.get_future().then(mean)
