"""Compression by training, for those who have a training step: structured pruning, distillation, quantisation-aware training.

:func:`compress` gives a smaller module and writes an exported program, which :func:`edgeops_converters.convert` takes like
any other.
"""

from edgeops_converters.training.compression import Compression, compress

__all__ = ["Compression", "compress"]
