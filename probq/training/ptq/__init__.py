"""Post-training quantization makes passes over data without training.

It sets scales of inputs and statistics of batch normalisation, and rounds decided networks better.
"""

from probq.training.ptq.bias import bias
from probq.training.ptq.gpfq import gpfq

__all__ = ["bias", "gpfq"]
