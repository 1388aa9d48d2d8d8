"""Against the official client, ``tritonclient[http]``, and against requests written by hand."""

import contextlib
import time
import warnings

import msgspec
import numpy as np
import pytest

import edgeops_runtime
from edgeops.tensors import NUMPY_NAMES, TensorSpec
from edgeops_runtime.serving.codec import decode_request
from edgeops_runtime.serving.http import Request
from edgeops_runtime.serving.listener import Listener, bind
from edgeops_runtime.serving.model import LoadedModel
from edgeops_runtime.serving.repository import Repository, Served
from edgeops_runtime.serving.v2 import Service

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # gevent and geventhttpclient
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

GOLDEN_ROWS = 8


@contextlib.contextmanager
def served(service):
    with bind("127.0.0.1:0") as listening:
        listener = Listener(listening, service)
        listener.start()
        host, port = listening.getsockname()
        with triton.InferenceServerClient(f"{host}:{port}") as client:
            yield client
        listener.drain(0.0)


@pytest.fixture(scope="module")
def model(make_bundle):
    with edgeops_runtime.load(make_bundle("1.0.0").path) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def client(model):
    with served(Service(Repository(Served(model.loaded)))) as connected:
        yield connected


@pytest.fixture(scope="module")
def golden(model):
    arrays = np.load(model.bundle.file("golden.npz"))
    return arrays["input/image"], arrays["output/onnx/logits"]


def tensor(name, array, *, binary=True):
    made = triton.InferInput(name, list(array.shape), {v: k for k, v in NUMPY_NAMES.items()}[array.dtype.name])
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def test_the_client_finds_server_and_model_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1.0.0")
    assert not client.is_model_ready("digits", "2.0.0")
    assert client.get_inference_statistics("digits")["model_stats"][0]["version"] == "1.0.0"
    assert client.get_server_metadata()["name"] == "edgeops"
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "statistics"]
    for metadata in (client.get_model_metadata("digits"), client.get_model_metadata("digits", "1.0.0")):
        assert metadata["versions"] == ["1.0.0"]
        assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
        assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("rows", [1, GOLDEN_ROWS])
def test_the_client_gets_the_golden_answers(client, golden, binary_in, binary_out, rows):
    outputs = None if binary_out is None else [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    answer = client.infer(
        "digits", [tensor("image", golden[0][:rows], binary=binary_in)], outputs=outputs, request_id="request 7"
    )
    np.testing.assert_allclose(answer.as_numpy("logits"), golden[1][:rows], atol=1e-3)
    described = answer.get_response()
    assert (described["id"], described["model_name"], described["model_version"]) == ("request 7", "digits", "1.0.0")
    assert ("data" in described["outputs"][0]) is (binary_out is False)


def test_the_client_may_name_the_version(client, golden):
    answer = client.infer("digits", [tensor("image", golden[0])], model_version="1.0.0")
    np.testing.assert_allclose(answer.as_numpy("logits"), golden[1], atol=1e-3)


class Echo:
    """A session that answers its only input."""

    def run(self, feeds):
        return {"y": feeds["x"]}


@pytest.fixture(scope="module")
def echo(make_bundle):
    """A service that answers what it is asked, for one dtype."""
    bundle = make_bundle("1.0.0")

    def make(dtype, shape=("batch", 3)):
        variant = msgspec.structs.replace(bundle.manifest.variants[0], inputs={"x": "x"}, outputs={"y": "y"})
        manifest = msgspec.structs.replace(
            bundle.manifest,
            inputs=(TensorSpec("x", dtype, shape),),
            outputs=(TensorSpec("y", dtype, shape),),
            variants=(variant,),
        )
        changed = msgspec.structs.replace(bundle, manifest=manifest)
        return Service(
            Repository(Served(LoadedModel(changed, variant, Echo(), engine="onnxruntime", engine_version="0")))
        )

    return make


@pytest.mark.parametrize(
    ("dtype", "binary"),
    # The official client sends FP16 as binary only; as JSON it is asked for by hand, below.
    [
        (dtype, binary)
        for dtype in sorted(NUMPY_NAMES)
        for binary in (True, False)
        if (dtype, binary) != ("FP16", False)
    ],
)
def test_every_dtype_comes_back_as_it_went(echo, dtype, binary):
    name = NUMPY_NAMES[dtype]
    if dtype == "BOOL":
        array = np.array([[True, False, True], [False, False, True]])
    elif dtype.startswith("FP"):
        array = np.array([[0.1, -2.5, 6e4], [1e-3, 0, -1]], dtype=name)
    else:
        limits = np.iinfo(name)
        array = np.array([[limits.min, limits.max, 0], [1, 2, 3]], dtype=name)
    with served(echo(dtype)) as client:
        wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
        answer = client.infer("digits", [tensor("x", array, binary=binary)], outputs=wanted).as_numpy("y")
    assert answer.dtype == array.dtype
    np.testing.assert_array_equal(answer, array)


def test_what_is_wrong_reaches_the_client_with_what_was_expected(client, golden):
    image = golden[0][:1]
    for inputs, outputs, message in (
        ([tensor("image", image.astype(np.float64))], None, "expected dtype FP32, got FP64"),
        ([tensor("image", image[:, :, :5])], None, r"expected shape \['batch', 1, 28, 28\], got \[1, 1, 5, 28\]"),
        ([tensor("picture", image)], None, "expected the inputs image FP32 .*; got 'picture'"),
        ([tensor("image", image)] * 2, None, "'image': given twice"),
        ([tensor("image", image)], [triton.InferRequestedOutput("boxes")], "'boxes': expected one of logits"),
        ([tensor("image", image)], [triton.InferRequestedOutput("logits", class_count=3)], "classification"),
    ):
        with pytest.raises(InferenceServerException, match=message) as caught:
            client.infer("digits", inputs, outputs=outputs)
        assert caught.value.status() == "400"
    with pytest.raises(InferenceServerException, match="there is digits version") as caught:
        client.infer("other", [tensor("image", image)])
    assert caught.value.status() == "404"


def test_a_failing_model_is_a_server_error_and_a_bad_request_is_not(make_bundle, golden):
    bright = np.full((1, 1, 28, 28), 0.9, np.float32)
    for broken, message in (("nan", "NaN or infinity"), ("raises", "onnxruntime cannot run it")):
        with edgeops_runtime.load(make_bundle("1.1.0", broken, hidden=True).path) as model:
            with served(Service(Repository(Served(model.loaded)))) as client:
                client.infer("digits", [tensor("image", golden[0][:1])])
                with pytest.raises(InferenceServerException, match=message) as caught:
                    client.infer("digits", [tensor("image", bright)])
                assert caught.value.status() == "500"
                with pytest.raises(InferenceServerException):
                    client.infer("digits", [tensor("image", bright.astype(np.int8))])
            window = model.window()
        assert (window.requests, window.rows, window.errors) == (2, 1, 1)
        assert window.not_finite == (broken == "nan")


def ask(service, body, *, method=b"POST", path=b"/v2/models/digits/infer", **headers):
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    text = body if isinstance(body, bytes) else msgspec.json.encode(body)
    response = service(Request(method, path, named, text, keep_alive=True))
    return response.status, msgspec.json.decode(response.body[0]), response


def echo_body(data, dtype="FP32", shape=(1, 3), **more):
    return {"inputs": [{"name": "x", "datatype": dtype, "shape": list(shape), "data": data, **more}]}


def test_json_data_may_be_flat_or_nested(echo):
    for data in ([1, 2.5, 3, 4, 5, 6], [[1, 2.5, 3], [4, 5, 6]]):
        status, answer, _ = ask(echo("FP32"), echo_body(data, shape=(2, 3)))
        assert (status, answer["outputs"][0]["data"]) == (200, [1, 2.5, 3, 4, 5, 6])
    status, answer, _ = ask(echo("FP16"), echo_body([0.5, 1, 2], "FP16"))
    assert (status, answer["outputs"][0]) == (
        200,
        {"name": "y", "datatype": "FP16", "shape": [1, 3], "data": [0.5, 1.0, 2.0]},
    )


@pytest.mark.parametrize(
    ("dtype", "body", "message"),
    [
        ("FP32", b"", "expected an inference request in JSON"),
        ("FP32", b"[1, 2", "expected an inference request in JSON"),
        ("FP32", b"[" * 100_000, "expected an inference request in JSON"),
        ("FP32", b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [NaN, 1, 2]}]}', "JSON"),
        ("FP32", b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1e999, 1, 2]}]}', "JSON"),
        ("FP32", {"inputs": 5}, r"Expected `array`, got `int`.*inputs"),
        ("FP32", {"inputs": []}, "expected the inputs x FP32"),
        ("FP32", echo_body([1, 2]), r"expected 3 values for shape \[1, 3\], got 2"),
        ("FP32", echo_body([1, 2, "3"]), "expected FP32 values, got 3"),
        ("FP32", echo_body([1, 2, True]), "expected FP32 values, got True"),
        ("FP32", echo_body(None), "expected data to be a list, got NoneType"),
        ("FP32", echo_body([1, 2, 3], shape=(-1, -3)), "expected sizes of 0 or more"),
        ("FP32", echo_body([], shape=(0, 3)), r"got \[0, 3\]"),
        ("FP32", echo_body(["a", "b", "c"], "BYTES"), "expected one of the datatypes"),
        ("FP32", echo_body([1, 2, 1e300]), "expected finite values"),
        ("UINT8", echo_body([1, 2, 256], "UINT8"), "expected UINT8 values from 0 to 255, got 256"),
        ("INT8", echo_body([1, 2, -129], "INT8"), "from -128 to 127, got -129"),
        ("INT8", echo_body([1, 2, 1.5], "INT8"), "expected INT8 values, got 1.5"),
        ("BOOL", echo_body([1, 0, 1], "BOOL"), "expected BOOL values, got 1"),
        ("FP32", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3]}]}, "got neither"),
        ("FP32", echo_body([1, 2, 3], parameters={"binary_data_size": 12}), "got both"),
    ],
)
def test_wrong_json_is_refused(echo, dtype, body, message):
    status, answer, _ = ask(echo(dtype), body)
    assert status == 400
    with pytest.raises(ValueError, match=message):
        raise ValueError(answer["error"])


@pytest.mark.parametrize(
    ("size", "sent", "length", "message"),
    [
        (12, 12, None, None),
        (8, 12, None, "expected 12 bytes of binary data for FP32 .*, got binary_data_size 8"),
        (12, 8, None, "expected 12 bytes of binary data, got 8"),
        (12, 16, None, "in all by the tensors' binary_data_size, got a body of"),
        (12, 12, b"100000", "Inference-Header-Content-Length: expected a number up to"),
        (12, 12, b"-1", "Inference-Header-Content-Length"),
        (12, 12, b"5", "expected an inference request in JSON"),
    ],
)
def test_wrong_binary_lengths_are_refused(echo, size, sent, length, message):
    text = msgspec.json.encode(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": size}}]}
    )
    header = length or str(len(text)).encode()
    status, answer, _ = ask(echo("FP32"), text + bytes(sent), inference_header_content_length=header)
    assert status == (200 if message is None else 400)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            raise ValueError(answer["error"])


@pytest.mark.parametrize("dtype", sorted(NUMPY_NAMES))
def test_decoded_tensors_have_the_dtype_objects_that_the_pipeline_checks_by_identity(dtype):
    array = np.zeros(3, NUMPY_NAMES[dtype])
    described = {"name": "x", "datatype": dtype, "shape": [3]}
    text = msgspec.json.encode({"inputs": [described | {"parameters": {"binary_data_size": array.nbytes}}]})
    headers = {b"inference-header-content-length": str(len(text)).encode()}
    _, binary = decode_request(Request(b"POST", b"/", headers, text + array.tobytes(), keep_alive=True))
    text = msgspec.json.encode({"inputs": [described | {"data": array.tolist()}]})
    _, plain = decode_request(Request(b"POST", b"/", {}, text, keep_alive=True))
    assert binary["x"].dtype is plain["x"].dtype is np.dtype(NUMPY_NAMES[dtype])


def test_unaligned_binary_data_is_read_right(echo):
    values = np.array([[1.5, -2.5, 3.5]])
    for padding in range(8):
        text = msgspec.json.encode(
            {
                "id": "x" * padding,
                "inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 3], "parameters": {"binary_data_size": 24}}],
            }
        )
        body = text + values.astype("<f8").tobytes()
        status, answer, _ = ask(echo("FP64"), body, inference_header_content_length=str(len(text)).encode())
        assert (status, answer["outputs"][0]["data"]) == (200, [1.5, -2.5, 3.5])


def test_methods_paths_and_encodings_are_checked(echo):
    service = echo("FP32")
    status, answer, response = ask(service, b"", method=b"GET")
    assert (status, dict(response.headers)) == (405, {"Allow": "POST"})
    assert "expected the method POST" in answer["error"]
    status, _, response = ask(service, b"{}", path=b"/v2")
    assert (status, dict(response.headers)) == (405, {"Allow": "GET"})
    assert ask(service, b"", method=b"GET", path=b"/")[0] == 404
    assert ask(service, b"", method=b"GET", path=b"/v2/models/digits/config")[0] == 404
    assert ask(service, b"", method=b"HEAD", path=b"/v2/health/ready")[:2] == (200, {"ready": True, "live": True})
    status, answer, _ = ask(service, b"x", content_encoding=b"gzip")
    assert status == 415
    assert "content encoding" in answer["error"]


def test_a_fault_of_our_own_is_answered_as_one(echo):
    service = echo("FP32")
    (served,) = service._repository.served

    def fail(request, feeds, answer):
        raise KeyError("oops")

    served._observer = fail
    status, answer, _ = ask(service, echo_body([1, 2, 3]))
    assert status == 500
    assert "internal error: KeyError" in answer["error"]
    window = served.model.window()
    assert (window.requests, window.errors) == (1, 1)


@pytest.mark.parametrize(
    "tensors",
    [
        {"shape": [0, 10**30], "data": []},
        {"shape": [1] * 70, "data": [1]},
        {"shape": [1], "data": [10**400]},
        {"shape": [10**400], "data": [1]},
        {"shape": [0, 2**62, 2**62], "parameters": {"binary_data_size": 0}},
    ],
)
def test_sizes_and_numbers_beyond_all_bounds_are_the_callers_fault_and_not_counted_as_errors(model, tensors):
    text = msgspec.json.encode({"inputs": [{"name": "image", "datatype": "FP32", **tensors}]})
    headers = {b"inference-header-content-length": str(len(text)).encode()}
    before = model.counters().errors
    response = Service(Repository(Served(model.loaded)))(
        Request(b"POST", b"/v2/models/digits/infer", headers, text, keep_alive=True)
    )
    assert response.status == 400
    assert b"image" in response.body[0]
    assert model.counters().errors == before


def test_a_request_whose_deadline_has_passed_is_not_asked(echo):
    body = msgspec.json.encode(echo_body([1, 2, 3]))
    path = b"/v2/models/digits/infer"
    for deadline, status in ((1, 504), (None, 200), (time.perf_counter_ns() + 10**12, 200)):
        response = echo("FP32")(Request(b"POST", path, {}, body, keep_alive=True, deadline=deadline))
        assert response.status == status
