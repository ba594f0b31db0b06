"""Post-training quantization makes passes over data without training.

It sets scales of inputs and statistics of batch normalisation, and rounds decided networks better.
"""

from probq.training.ptq.batch_norm import norms
from probq.training.ptq.bias import bias
from probq.training.ptq.deviations import deviations
from probq.training.ptq.equalize import equalize
from probq.training.ptq.gpfq import gpfq
from probq.training.ptq.ranges import ranges
from probq.training.ptq.reconstruct import reconstruct

__all__ = ["bias", "deviations", "equalize", "gpfq", "norms", "ranges", "reconstruct"]
