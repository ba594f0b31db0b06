"""Gradients of several processes are averaged in few bits here, as communication hooks of `DistributedDataParallel`.

    ddp.register_comm_hook(probq.communication.qsgd(4), probq.communication.average)

Each process sends its own gradient, rounded, to all others (one `all_gather`), and takes the mean of what it gets; all
processes come to the same mean. The state counts the bytes that its process has sent, and what float32 would have been.
"""

from probq.training.communication.compression import Compression, average
from probq.training.communication.schemes import qsgd, sign, ternary

__all__ = ["Compression", "average", "qsgd", "sign", "ternary"]
