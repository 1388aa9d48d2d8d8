import subprocess
import sys
import threading
from http.client import HTTPConnection

import msgspec
import numpy as np
import pytest

from edgeops.errors import ConfigError, EngineError, MissingExtraError
from edgeops_runtime.control import Golden, GoldenResult, Ready, Serve, Serving
from edgeops_runtime.engines import (
    ENGINES,
    available_engines,
    load_engine,
)
from edgeops_runtime.engines.engine import run_in_batches

INSTALLED = sorted(available_engines())
# The environment of the tests has two of the three engines; the third has one of its own, below.
PAIRS = [
    (name, engine)
    for name, engine in (("onnx-float", "onnxruntime"), ("onnx-int8", "onnxruntime"), ("tflite-float", "litert"))
    if engine in INSTALLED
]


def session_of(bundle, variant_name, engine, *, threads=1, **changes):
    variant = msgspec.structs.replace(bundle.manifest.variant(variant_name), **changes)
    return load_engine(engine).load(bundle.file(variant.file), variant, threads)


def golden_of(bundle, variant):
    with np.load(bundle.file("golden.npz")) as golden:
        return golden["input/image"], golden[f"output/{variant}/logits"]


def test_both_engines_of_the_test_environment_are_here():
    assert {"onnxruntime", "litert"} <= set(INSTALLED)


@pytest.mark.parametrize(("variant", "engine"), PAIRS)
def test_every_engine_gives_the_golden_answers(small_bundle, variant, engine):
    images, expected = golden_of(small_bundle, variant)
    answers = session_of(small_bundle, variant, engine).run({"image": images})
    assert list(answers) == ["logits"]
    assert answers["logits"].dtype == np.float32
    np.testing.assert_allclose(answers["logits"], expected, atol=small_bundle.manifest.variant(variant).tolerance)


@pytest.mark.parametrize(("variant", "engine"), PAIRS)
def test_every_engine_answers_one_row_as_it_answers_it_among_many(small_bundle, variant, engine):
    images, _ = golden_of(small_bundle, variant)
    session = session_of(small_bundle, variant, engine)
    together = session.run({"image": images})["logits"]
    alone = np.concatenate([session.run({"image": image[None]})["logits"] for image in images])
    np.testing.assert_allclose(alone, together, atol=1e-4)


@pytest.mark.parametrize(("variant", "engine"), PAIRS)
def test_every_engine_serves_several_threads_at_once(small_bundle, variant, engine):
    images, expected = golden_of(small_bundle, variant)
    session = session_of(small_bundle, variant, engine, threads=2)
    wrong = []

    def ask(row):
        for _ in range(20):
            answer = session.run({"image": images[row : row + 1]})["logits"][0]
            if not np.allclose(answer, expected[row], atol=0.5):
                wrong.append(row)

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(("variant", "engine"), PAIRS)
def test_every_engine_turns_its_own_exceptions_into_engine_errors(small_bundle, tmp_path, variant, engine):
    described = small_bundle.manifest.variant(variant)
    damaged = tmp_path / described.file
    damaged.write_bytes(small_bundle.file(described.file).read_bytes()[:1000])
    with pytest.raises(EngineError, match=f"{described.file}.*cannot load"):
        load_engine(engine).load(damaged, described, 1)
    with pytest.raises(EngineError, match=r"no tensor \['nowhere'\]"):
        session_of(small_bundle, variant, engine, inputs={"image": "nowhere"})
    with pytest.raises(EngineError, match="cannot run"):
        session_of(small_bundle, variant, engine).run({"image": np.zeros((1, 1, 5, 5), np.float32)})


def test_a_tflite_file_takes_the_names_of_its_signature_too(small_bundle):
    images, expected = golden_of(small_bundle, "tflite-float")
    session = session_of(
        small_bundle, "tflite-float", "litert", inputs={"image": "args_0"}, outputs={"logits": "output_0"}
    )
    np.testing.assert_allclose(session.run({"image": images})["logits"], expected, atol=1e-3)


def test_a_tflite_file_that_takes_one_row_is_run_row_by_row_when_the_variant_does_not_say_so(small_bundle):
    images, expected = golden_of(small_bundle, "tflite-float")
    session = session_of(small_bundle, "tflite-float", "litert", batch=None)
    for rows in (1, 8, 3):
        np.testing.assert_allclose(session.run({"image": images[:rows]})["logits"], expected[:rows], atol=1e-3)


def test_rows_that_do_not_fill_the_last_batch_are_answered_once():
    seen = []

    def double(feeds):
        seen.append(len(feeds["x"]))
        return {"y": feeds["x"] * 2}

    rows = np.arange(7, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(run_in_batches(double, {"x": rows}, 3)["y"], rows * 2)
    assert seen == [3, 3, 3]
    with pytest.raises(EngineError, match="same number of rows"):
        run_in_batches(double, {"x": rows, "z": rows[:2]}, 3)


def test_tflite_runtime_gives_the_golden_answers_in_a_worker_of_its_own_environment(
    small_bundle, start_worker, listening, tflite_python
):
    worker = start_worker(small_bundle, "tflite-float", "tflite", python=str(tflite_python))
    assert isinstance(worker.first, Ready), worker.first
    assert worker.first.engine_version == "2.14.0"
    golden = worker.ask(Golden())
    assert isinstance(golden, GoldenResult)
    assert golden.passed, golden.reason
    assert golden.rows == 8
    assert isinstance(worker.ask(Serve()), Serving)
    images, expected = golden_of(small_bundle, "tflite-float")
    client = HTTPConnection(*listening.getsockname(), timeout=20)
    tensor = {"name": "image", "datatype": "FP32", "shape": [3, 1, 28, 28], "data": images[:3].ravel().tolist()}
    client.request("POST", "/v2/models/digits/infer", msgspec.json.encode({"inputs": [tensor]}))
    answer = msgspec.json.decode(client.getresponse().read())
    client.close()
    np.testing.assert_allclose(np.reshape(answer["outputs"][0]["data"], (3, 10)), expected[:3], atol=1e-3)


def test_all_three_engines_agree_on_the_same_model(small_bundle):
    # The golden answers of the TFLite file are held against in the test above; here against those of the ONNX file.
    _, onnx = golden_of(small_bundle, "onnx-float")
    _, tflite = golden_of(small_bundle, "tflite-float")
    np.testing.assert_allclose(onnx, tflite, atol=1e-3)


def test_asking_what_is_installed_imports_no_engine():
    code = (
        "import sys; from edgeops_runtime.engines import available_engines, choose_variant; import edgeops_runtime; "
        "print(available_engines()); "
        "print(sorted({'numpy', 'onnxruntime', 'ai_edge_litert', 'tflite_runtime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "onnxruntime" in lines[0]
    assert lines[1] == "[]"


def test_an_engine_that_is_not_there_is_named_with_what_to_install():
    with pytest.raises(ConfigError, match="expected one of onnxruntime, litert, tflite"):
        load_engine("tensorrt")
    missing = sorted(set(ENGINES) - set(INSTALLED))
    for name in missing:
        with pytest.raises(MissingExtraError, match=rf"edgeops\[{ENGINES[name].extra}\]"):
            load_engine(name)
