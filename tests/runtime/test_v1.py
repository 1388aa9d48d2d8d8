"""TensorFlow Serving's REST API; the shapes are those of https://www.tensorflow.org/tfx/serving/api_rest."""

import json
import math
import re

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeops_runtime
from edgeops.tensors import TensorSpec
from edgeops_runtime.serving.http import Request
from edgeops_runtime.serving.model import LoadedModel
from edgeops_runtime.serving.protocols import Protocols
from edgeops_runtime.serving.repository import Label, Repository, Served


class Echo:
    """A session that answers its inputs by their names with a prime; ``sum`` has one value for each request."""

    def run(self, feeds):
        return {f"{name}'": array for name, array in feeds.items()} | {"sum": np.ones((1, 1), np.float32)}


@pytest.fixture(scope="module")
def echo(make_bundle):
    bundle = make_bundle("1.0.0")

    def make(*inputs, outputs=None):
        specs = tuple(TensorSpec(*one) for one in inputs)
        outputs = outputs or tuple(TensorSpec(f"{spec.name}'", spec.dtype, spec.shape) for spec in specs)
        names = {"inputs": {s.name: s.name for s in specs}, "outputs": {s.name: s.name for s in outputs}}
        variant = msgspec.structs.replace(bundle.manifest.variants[0], **names)
        manifest = msgspec.structs.replace(bundle.manifest, inputs=specs, outputs=outputs, variants=(variant,))
        changed = msgspec.structs.replace(bundle, manifest=manifest)
        return Protocols(
            Repository(Served(LoadedModel(changed, variant, Echo(), engine="onnxruntime", engine_version="0")))
        )

    return make


def ask(service, path, body=None, *, method=None):
    text = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
    method = method or (b"GET" if body is None else b"POST")
    response = service(Request(method, path.encode(), {}, text, keep_alive=True))
    return response.status, msgspec.json.decode(b"".join(response.body))


def predict(service, body, path="/v1/models/digits:predict"):
    return ask(service, path, body)


SENSORS = (("signal", "FP32", ("batch", 5)), ("sensor", "INT32", ("batch", 2, 2)))


def test_rows_of_one_input_need_no_name_and_may_have_it(echo):
    half = echo(("x", "FP32", ("batch",)))
    assert predict(half, {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [1.0, 2.0, 5.0]})
    assert predict(half, {"instances": [{"x": 1}, {"x": 2}]}) == (200, {"predictions": [1.0, 2.0]})
    nested = echo(("x", "FP32", ("batch", 1, 2)))
    assert predict(nested, {"instances": [[[1, 2]], [[3, 4]]]}) == (200, {"predictions": [[[1, 2]], [[3, 4]]]})


def test_rows_of_several_inputs_are_objects_and_so_are_the_answers(echo):
    rows = [
        {"signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
        {"signal": [3, 4, 1, 2, 5], "sensor": [[4, 5], [6, 8]]},
    ]
    status, answer = predict(echo(*SENSORS), {"instances": rows, "signature_name": "serving_default"})
    assert status == 200
    assert answer == {"predictions": [{f"{name}'": value for name, value in row.items()} for row in rows]}


def test_columns_come_back_as_columns(echo):
    columns = {"signal": [[1, 2, 3, 4, 5], [3, 4, 1, 2, 5]], "sensor": [[[1, 2], [3, 4]], [[4, 5], [6, 8]]]}
    status, answer = predict(echo(*SENSORS), {"inputs": columns})
    assert (status, answer) == (200, {"outputs": {f"{name}'": value for name, value in columns.items()}})
    one = echo(("x", "UINT8", ("batch", 2)))
    assert (
        predict(one, {"inputs": [[1, 2]]}) == predict(one, {"inputs": {"x": [[1, 2]]}}) == (200, {"outputs": [[1, 2]]})
    )


def test_a_model_whose_answer_has_no_rows_is_asked_in_columns(echo):
    service = echo(("x", "FP32", ("batch",)), outputs=(TensorSpec("sum", "FP32", (1, 1)),))
    status, answer = predict(service, {"instances": [1, 2, 3]})
    assert status == 400
    assert "expected 3 rows" in answer["error"]
    assert predict(service, {"inputs": [1, 2, 3]}) == (200, {"outputs": [[1.0]]})


def test_status_and_metadata_have_the_shape_of_tensorflow_serving(echo):
    service = echo(("x", "FP32", ("batch", 3)))
    good = {"version": "1.0.0", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("", "/versions/1.0.0", "/labels/stable"):
        assert ask(service, f"/v1/models/digits{path}") == (200, {"model_version_status": [good]})
        status, answer = ask(service, f"/v1/models/digits{path}/metadata")
        assert (status, answer["model_spec"]) == (200, {"name": "digits", "signature_name": "", "version": "1.0.0"})
        signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["method_name"] == "tensorflow/serving/predict"
        assert signature["inputs"]["x"] == {
            "dtype": "DT_FLOAT",
            "tensor_shape": {
                "dim": [{"size": "-1", "name": "batch"}, {"size": "3", "name": ""}],
                "unknown_rank": False,
            },
            "name": "x",
        }


def test_labels_name_the_stable_version_and_the_canary(make_bundle):
    image = np.full((1, 28, 28), 0.25).tolist()
    with (
        edgeops_runtime.load(make_bundle("1.0.0").path) as old,
        edgeops_runtime.load(make_bundle("1.1.0").path) as new,
    ):
        repository = Repository(Served(old.loaded))
        service = Protocols(repository)
        status, answer = ask(service, "/v1/models/digits/labels/canary")
        assert (status, answer["error"]) == (
            404,
            "no model digits with the label canary; there is digits version 1.0.0",
        )
        repository.put(Served(new.loaded), Label.CANARY)
        answers = {}
        for path in ("", "/versions/1.0.0", "/labels/stable", "/versions/1.1.0", "/labels/canary"):
            status, answer = predict(service, {"instances": [image]}, f"/v1/models/digits{path}:predict")
            assert status == 200
            answers[path] = answer["predictions"]
        assert answers[""] == answers["/versions/1.0.0"] == answers["/labels/stable"]
        assert answers["/versions/1.1.0"] == answers["/labels/canary"] != answers[""]
        _, answer = ask(service, "/v1/models/digits")
        assert [one["version"] for one in answer["model_version_status"]] == ["1.0.0", "1.1.0"]
        assert (old.counters().requests, new.counters().requests) == (3, 2)


def test_the_answer_is_that_of_the_open_inference_protocol(make_bundle):
    with edgeops_runtime.load(make_bundle("1.0.0").path) as model:
        service = Protocols(Repository(Served(model.loaded)))
        rows = np.load(model.bundle.file("golden.npz"))["input/image"]
        _, first = predict(service, {"instances": rows.tolist()})
        tensor = {"name": "image", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
        _, second = ask(service, "/v2/models/digits/infer", {"inputs": [tensor]})
    assert np.array(first["predictions"]).ravel().tolist() == second["outputs"][0]["data"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "expected a predict request in JSON"),
        (b"[" * 100_000, "expected a predict request in JSON"),
        (b'{"instances": [1' + b"0" * 5000 + b"]}", "expected"),
        ({}, "expected either 'instances' .* or 'inputs'"),
        ({"instances": [[1, 2]], "inputs": [[1, 2]]}, "both or neither"),
        ({"instances": []}, "expected a list of one row or more"),
        ({"instances": 5}, "expected a list of one row or more"),
        ({"instances": [[1, 2], [1]]}, "nested lists of equal lengths"),
        ({"instances": [[1, 2, 3]]}, r"expected shape \['batch', 2\], got \[1, 3\]"),
        ({"instances": [["1", "2"]]}, "expected FP32 values in nested lists"),
        ({"instances": [[True, False]]}, "expected FP32 values in nested lists"),
        ({"instances": [{"b64": "AAAA"}]}, "'b64': expected one of x"),
        ({"inputs": {"b64": "AAAA"}}, "b64 is for strings"),
        ({"instances": [{"x": [1, 2]}, {"y": [1, 2]}]}, r"instances\[1\]: expected an object with x"),
        ({"instances": [[1, 2]], "signature_name": "regress"}, "signature_name: expected 'serving_default'"),
        ({"inputs": {"x": [[1, 2]], "y": 1}}, "input 'y': expected one of x"),
        (b'{"instances": [[1, NaN]]}', "expected finite values"),
        (b'{"instances": [[1, -Infinity]]}', "expected finite values"),
        ({"instances": [[1, 1e300]]}, "expected finite values"),
    ],
)
def test_wrong_requests_are_refused_by_what_is_wrong(echo, body, message):
    status, answer = predict(echo(("x", "FP32", ("batch", 2))), body)
    assert status == 400
    assert re.search(message, answer["error"]), answer


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("UINT8", 256, "from 0 to 255, got 256"),
        ("INT8", -129, "from -128 to 127, got -129"),
        ("INT64", 2**63, "from -9223372036854775808"),
        ("INT32", 1.5, "expected INT32 values"),
        ("BOOL", 1, "expected BOOL values"),
    ],
)
def test_values_that_do_not_fit_their_type_are_refused(echo, dtype, value, message):
    status, answer = predict(echo(("x", dtype, ("batch",))), {"instances": [value]})
    assert status == 400
    assert message in answer["error"]


def test_not_a_number_is_read_as_tensorflow_serving_reads_it():
    from edgeops_runtime.serving.v1 import decode_body, tensor_of

    rows = decode_body(b'{"instances": [NaN, Infinity, -Infinity, 1e3]}').instances
    array = tensor_of(rows, TensorSpec("x", "FP32", ("batch",)))
    assert math.isnan(array[0])
    assert array[1:].tolist() == [math.inf, -math.inf, 1000]


def test_paths_and_methods_are_checked(echo):
    service = echo(("x", "FP32", ("batch",)))
    for path in (
        "/v1/",
        "/v1/models",
        "/v1/models/other",
        "/v1/models/digits/versions/2.0.0",
        "/v1/models/digits/versions",
        "/v1/models/digits/labels/golden",
        "/v1/models/digits/shape",
        "/v1/models/digits:classify",
    ):
        status, answer = ask(service, path)
        assert (status, "error" in answer) == (404, True), path
    assert ask(service, "/v1/models/digits:predict")[0] == 405
    assert ask(service, "/v1/models/digits", b"{}")[0] == 405


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "b64", "y"]), inner, max_size=3),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def counting(echo):
    return echo(("x", "INT32", ("batch", 2)))


@settings(max_examples=150, deadline=None)
@given(body=st.fixed_dictionaries({}, optional={"instances": JSON, "inputs": JSON, "signature_name": JSON}))
def test_no_json_is_an_internal_error(counting, body):
    status, answer = predict(counting, json.dumps(body).encode())
    assert status in {200, 400}, answer
