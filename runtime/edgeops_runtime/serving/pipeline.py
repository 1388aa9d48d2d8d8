"""One inference from the caller's tensors to the caller's answers: check, preprocess, run, postprocess, check.

Counting is left to :mod:`edgeops_runtime.serving.model`, the engine to :mod:`edgeops_runtime.engines`.
"""

import math
import struct
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.errors import EngineError, NotFiniteError, TensorError
from edgeops.manifest import Manifest
from edgeops.processing import apply
from edgeops.tensors import TensorSpec
from edgeops_runtime.engines.engine import Session, Tensors

_SINGLE_BYTES = 4
_SINGLE = np.dtype(np.float32)
_MAX_SEEN = 256
_FEW = 64


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What came out, and what drift signals look at.

    Attributes:
        outputs: As the caller sees them, after postprocessing.
        entered: What entered the engine, after preprocessing.
        left: What left the engine, before postprocessing.
        rows: How many rows were answered; 1 for a model without a batch dimension.
    """

    outputs: Tensors
    entered: Tensors
    left: Tensors
    rows: int


class Pipeline:
    """A model ready to answer; may be used from several threads."""

    def __init__(self, manifest: Manifest, session: Session) -> None:
        """Prepare.

        Args:
            manifest: Its inputs, outputs and operators.
            session: One of its variants, loaded.
        """
        self._run = session.run
        self._inputs = tuple((spec.name, np.dtype(spec.numpy_dtype), spec) for spec in manifest.inputs)
        self._outputs = tuple(spec.name for spec in manifest.outputs)
        self._dtypes = {spec.name: np.dtype(spec.numpy_dtype) for spec in manifest.outputs}
        self._preprocess = manifest.preprocess
        self._postprocess = manifest.postprocess
        self._batched = next((spec.name for spec in manifest.inputs if spec.is_batched), None)
        # Shapes that were looked at and fit: what comes again is recognised by one look into a set.
        self._seen: dict[str, set[tuple[int, ...]]] = {spec.name: set() for spec in manifest.inputs}
        # Small outputs are summed by Python: any call of numpy after an engine's costs some microseconds.
        self._unpack: dict[str, dict[tuple[int, ...], Callable[[Any], tuple[float, ...]]]] = {
            spec.name: {} for spec in manifest.outputs
        }
        is_single = len(manifest.inputs) == len(manifest.outputs) == 1 and manifest.inputs[0].is_batched
        self._is_simple = is_single and not (manifest.preprocess or manifest.postprocess)

    def answer(self, feeds: Mapping[str, NDArray[Any]]) -> Answer:
        """Answer.

        Args:
            feeds: Every input by name, as the manifest describes it; rows first.

        Raises:
            TensorError: An input is missing, unknown, of another dtype or shape, or not finite.
            NotFiniteError: The model answered NaN or infinity to finite inputs.
            EngineError: The engine failed.
        """
        rows = self.check(feeds)
        entered: Tensors = apply(self._preprocess, feeds) if self._preprocess else feeds  # type: ignore[assignment]
        left = self._run(entered)
        outputs = apply(self._postprocess, left) if self._postprocess else left
        for name in self._outputs:
            output = outputs[name]
            unpack = self._unpack[name].get(output.shape)
            if (unpack is None or not isfinite(sum(unpack(output)))) and not self._look_at(name, output):
                self._blame(feeds, name)
        return Answer(outputs, entered, left, rows)

    def fastest(self) -> "Callable[[Mapping[str, NDArray[Any]]], Answer]":
        """What does the same as :meth:`answer`, and as fast as it can be done for this model.

        For one input and one output with nothing before or after, the usual request goes without a loop or a call; what is not
        recognised goes the way of all others. To be kept by the caller: a pipeline that held it would hold itself.
        """
        if not self._is_simple:
            return self.answer
        ((name, dtype, _),), (output_name,) = self._inputs, self._outputs
        run, seen, unpack_of = self._run, self._seen[name], self._unpack[output_name]

        def answer(feeds: Mapping[str, NDArray[Any]]) -> Answer:
            array = feeds.get(name)
            if type(array) is not np.ndarray or array.dtype is not dtype or array.shape not in seen or len(feeds) != 1:
                return self.answer(feeds)
            left = run(feeds)  # type: ignore[arg-type]
            output = left[output_name]
            unpack = unpack_of.get(output.shape)
            if (unpack is None or not isfinite(sum(unpack(output)))) and not self._look_at(output_name, output):
                self._blame(feeds, output_name)
            return Answer(left, feeds, left, len(array))  # type: ignore[arg-type]

        return answer

    def check(self, feeds: Mapping[str, NDArray[Any]]) -> int:
        """How many rows a request has.

        Raises:
            TensorError: It does not fit the model.
        """
        if len(feeds) != len(self._inputs):
            self._refuse_names(feeds)
        for name, dtype, spec in self._inputs:
            array = feeds.get(name)
            if array is None:
                self._refuse_names(feeds)
            # The usual case first, in a few comparisons; what it does not cover is looked at in full, and refused by name.
            elif type(array) is not np.ndarray or array.dtype is not dtype or array.shape not in self._seen[name]:
                check_tensor(array, spec)
                self._remember(name, array.shape)
        if self._batched is None:
            return 1
        rows = len(feeds[self._batched])
        if len(self._inputs) > 1:
            self._check_rows(feeds, rows)
        return rows

    def _look_at(self, name: str, output: NDArray[Any]) -> bool:
        """Whether an output is finite; where it is small, remembers how to find that out faster the next time.

        Raises:
            EngineError: It is of another dtype than the manifest says.
        """
        if output.dtype is not self._dtypes[name] and output.dtype != self._dtypes[name]:
            raise EngineError(
                f"output {name!r}: expected {self._dtypes[name]} by the manifest, the model gave {output.dtype}"
            )
        if output.dtype is _SINGLE and output.size <= _FEW and output.flags.c_contiguous and output.ndim:
            if len(self._unpack[name]) >= _MAX_SEEN:
                self._unpack[name].clear()
            self._unpack[name][output.shape] = struct.Struct(f"{output.size}f").unpack
        return is_finite(output)

    def _remember(self, name: str, shape: tuple[int, ...]) -> None:
        if len(self._seen[name]) >= _MAX_SEEN:
            self._seen[name].clear()
        self._seen[name].add(shape)

    def _check_rows(self, feeds: Mapping[str, NDArray[Any]], rows: int) -> None:
        """Every dimension of the same name must have the same size."""
        sizes: dict[str, int] = {}
        for name, _, spec in self._inputs:
            for wanted, size in zip(spec.shape, feeds[name].shape, strict=True):
                if isinstance(wanted, str) and sizes.setdefault(wanted, size) != size:
                    raise TensorError(
                        f"tensor {name!r}: expected {wanted} = {sizes[wanted]} as in the other inputs, got {size} "
                        f"(rows: {rows})"
                    )

    def _refuse_names(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        expected = ", ".join(f"{name} {spec.dtype} {list(spec.shape)}" for name, _, spec in self._inputs)
        raise TensorError(f"expected the inputs {expected}; got {', '.join(map(repr, feeds)) or 'none'}")

    def _blame(self, feeds: Mapping[str, NDArray[Any]], output: str) -> None:
        """Say whose fault an answer is that is not finite."""
        for name, *_ in self._inputs:
            if not is_finite(feeds[name]):
                raise TensorError(f"tensor {name!r}: expected finite values, got NaN or infinity")
        raise NotFiniteError(f"output {output!r}: the model answered NaN or infinity to finite inputs")


def check_tensor(array: object, spec: TensorSpec) -> None:
    """Hold an argument against its specification, when it may be no array at all.

    Raises:
        TensorError: It is no array, or does not fit.
    """
    if not isinstance(array, np.ndarray):
        raise TensorError(f"tensor {spec.name!r}: expected a numpy array, got {type(array).__name__}")
    spec.check(array)


def is_finite(array: NDArray[Any]) -> bool:
    """Whether an array holds neither NaN nor infinity; integers and booleans never do."""
    if array.dtype.kind != "f":
        return True
    # A sum of squares is finite only if every term is, and is the cheapest look at all of them; where it is not, it may have
    # overflowed.
    return (array.dtype.itemsize >= _SINGLE_BYTES and math.isfinite(np.vdot(array, array))) or bool(
        np.isfinite(array).all()
    )


def warm_up(pipeline: Pipeline, manifest: Manifest, golden: Tensors | None) -> Answer | None:
    """Answer one row, so that the first caller does not wait for what an engine does on its first run.

    Args:
        pipeline: What to warm up.
        manifest: Its inputs.
        golden: Golden inputs, rows first; ``None`` takes zeros.

    Returns:
        The answer; ``None`` when it was not finite. The engine works, and what it answers is judged by the golden test.

    Raises:
        EngineError: The engine fails on it, or the bundle's golden inputs do not fit its own manifest.
    """
    feeds = {
        spec.name: first_row(golden[spec.name], spec) if golden and spec.name in golden else _zeros(spec)
        for spec in manifest.inputs
    }
    try:
        return pipeline.answer(feeds)
    except NotFiniteError:
        return None
    except TensorError as error:
        raise EngineError(f"{manifest.name} {manifest.version}: its own golden inputs do not fit: {error}") from error


def first_row(rows: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """The first row as one request: with its batch dimension where the tensor has one."""
    return take_row(rows, spec, 0)


def take_row(rows: NDArray[Any], spec: TensorSpec, index: int) -> NDArray[Any]:
    """One row of many as one request.

    Args:
        rows: Shape ``(n, …)``: rows first, also for a tensor without a batch dimension, which is then a row as a whole.
        spec: The tensor.
        index: Which row.
    """
    return rows[index : index + 1] if spec.is_batched or rows.ndim == len(spec.shape) else rows[index]


def _zeros(spec: TensorSpec) -> NDArray[Any]:
    return np.zeros([1 if isinstance(size, str) else size for size in spec.shape], dtype=spec.numpy_dtype)
