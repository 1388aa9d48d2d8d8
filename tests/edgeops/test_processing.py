"""The operators of pre- and post-processing, held against plain numpy."""

import numpy as np
import pytest

from edgeops.errors import TensorError
from edgeops.manifest import Normalize, Scale, Softmax
from edgeops.processing import apply


def test_scale_turns_bytes_into_float32():
    image = np.array([[0, 51, 255]], dtype=np.uint8)

    result = apply([Scale(tensor="image", factor=1 / 255)], {"image": image})

    assert result["image"].dtype == np.float32
    np.testing.assert_allclose(result["image"], [[0.0, 0.2, 1.0]], rtol=1e-6)
    assert image.dtype == np.uint8


def test_normalize_works_along_its_axis():
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    operator = Normalize(tensor="image", mean=(1.0, 2.0, 3.0), std=(0.5, 1.0, 2.0))

    result = apply([operator], {"image": image})["image"]

    for channel, (mean, std) in enumerate(zip(operator.mean, operator.std, strict=True)):
        np.testing.assert_allclose(result[:, channel], (image[:, channel] - mean) / std, rtol=1e-6)


def test_normalize_takes_a_negative_axis():
    rows = np.ones((4, 2), dtype=np.float32)
    result = apply([Normalize(tensor="x", mean=(0.0, 1.0), std=(1.0, 2.0), axis=-1)], {"x": rows})
    np.testing.assert_allclose(result["x"], [[1.0, 0.0]] * 4)


def test_softmax_sums_to_one_and_survives_large_logits():
    logits = np.array([[1000.0, 1001.0, 999.0], [-1e4, 0.0, 0.0]], dtype=np.float32)

    probabilities = apply([Softmax(tensor="logits")], {"logits": logits})["logits"]

    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(probabilities[1], [0.0, 0.5, 0.5])


def test_operators_run_in_the_order_they_stand():
    operators = [Scale(tensor="x", factor=2.0), Scale(tensor="x", factor=1.0, offset=1.0)]
    np.testing.assert_allclose(apply(operators, {"x": np.float32([[3.0]])})["x"], [[7.0]])


def test_tensors_without_an_operator_pass_unchanged_and_none_is_written_to():
    touched, untouched = np.float32([[1.0]]), np.array([[7]], dtype=np.int64)

    result = apply([Scale(tensor="a", factor=2.0)], {"a": touched, "b": untouched})

    assert result["b"] is untouched
    assert touched[0, 0] == 1.0


def test_a_missing_tensor_is_named_with_those_that_exist():
    with pytest.raises(TensorError, match=r"softmax 'logits': no tensor .* \['scores'\]"):
        apply([Softmax(tensor="logits")], {"scores": np.zeros((1, 2), np.float32)})


def test_an_axis_that_does_not_exist_is_refused():
    with pytest.raises(TensorError, match="axis 3"):
        apply([Softmax(tensor="x", axis=3)], {"x": np.zeros((1, 2), np.float32)})


def test_another_number_of_means_than_channels_is_refused():
    with pytest.raises(TensorError, match="3 means for axis 1"):
        apply([Normalize(tensor="x", mean=(0.0,) * 3, std=(1.0,) * 3)], {"x": np.zeros((1, 1, 4, 4), np.float32)})
