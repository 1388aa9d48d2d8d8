"""What a tensor at the boundary of a model looks like, and whether an array fits.

Names of dtypes are those of the Open Inference Protocol (``FP32``, ``UINT8``, …). Nothing here imports numpy, so that
the agent can read a manifest without it; arrays are recognised by their ``dtype`` and ``shape``.
"""

from typing import Any

import msgspec

from edgeops.errors import TensorError

NUMPY_NAMES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""Open Inference Protocol dtype → numpy dtype name."""

PROTOCOL_NAMES = {numpy_name: name for name, numpy_name in NUMPY_NAMES.items()}
"""Numpy dtype name → Open Inference Protocol dtype."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Name, dtype and shape of one input or output.

    Attributes:
        name: The name that callers use.
        dtype: Open Inference Protocol dtype, for example ``FP32``.
        shape: Sizes; a string names a dynamic dimension, for example ``("batch", 1, 28, 28)``.
        layout: How to read the dimensions, for example ``NCHW``; empty when it does not matter.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in NUMPY_NAMES:
            raise TensorError(f"tensor {self.name!r}: dtype {self.dtype!r} is none of {', '.join(NUMPY_NAMES)}")

    @property
    def numpy_dtype(self) -> str:
        """The numpy name of the dtype, for example ``float32``."""
        return NUMPY_NAMES[self.dtype]

    @property
    def is_batched(self) -> bool:
        """Whether the first dimension is dynamic, that is, counts rows."""
        return bool(self.shape) and isinstance(self.shape[0], str)

    def check(self, array: Any) -> None:  # noqa: ANN401 - any object with dtype and shape
        """Hold an array against this specification.

        Args:
            array: Anything with ``dtype`` and ``shape``, as numpy arrays have.

        Raises:
            TensorError: The dtype, the rank or a fixed size differs, or a dimension is empty.
        """
        if str(array.dtype) != self.numpy_dtype:
            came = PROTOCOL_NAMES.get(str(array.dtype), str(array.dtype))
            raise TensorError(f"tensor {self.name!r}: expected dtype {self.dtype}, got {came}")
        shape = tuple(array.shape)
        fits = len(shape) == len(self.shape) and all(
            (size > 0) if isinstance(wanted, str) else (size == wanted)
            for size, wanted in zip(shape, self.shape, strict=True)
        )
        if not fits:
            raise TensorError(f"tensor {self.name!r}: expected shape {list(self.shape)}, got {list(shape)}")
