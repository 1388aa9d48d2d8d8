"""Where the bytes of a file go."""

import pytest

from edgeops_converters.artifact import Artifact
from edgeops_converters.sizes import break_down

WEIGHTS = 32 * 9 + 32 * 32 * 9 + 128 * 4
BIASES = 32 + 32 + 4


@pytest.mark.parametrize(
    ("name", "weight_bytes"), [("onnx-float", 4), ("onnx-int8", 1), ("tflite-float", 4), ("tflite-int8", 1)]
)
def test_weights_and_biases_are_counted_and_the_rest_is_what_is_left(conversion, name, weight_bytes):
    one = conversion.bundle.manifest.variant(name)
    found = break_down(
        Artifact(conversion.bundle.file(one.file), one.format, one.precision, one.batch, one.inputs, one.outputs)
    )
    assert found.biases == 4 * BIASES
    # A float file may hold the bounds of a rectifier as well.
    assert weight_bytes * WEIGHTS <= found.weights <= weight_bytes * WEIGHTS + 64
    assert found.weights + found.biases + found.rest == conversion.bundle.file(one.file).stat().st_size
    assert found.rest > 0
    assert conversion.report.variant(name).sizes == found
