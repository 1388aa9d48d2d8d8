"""A file is opened first in a process that may die of it; this one hears why, and lives."""

import pytest

from edgeops.errors import ExportError, RecipeError
from edgeops_converters.rehearsal import inspect_apart, rehearse


@pytest.fixture
def rows(evaluation):
    return {"image": evaluation["image"][:4]}


def test_a_sound_file_passes_and_an_error_comes_back_as_it_was(onnx_source, rows, tmp_path):
    rehearse(onnx_source, rows)
    with pytest.raises(RecipeError, match=r"data for tensor 'image': expected shape \['batch', 1, 16, 16\]"):
        rehearse(onnx_source, {"image": rows["image"][:, :, :8]})
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(onnx_source.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"broken\.onnx: not a readable \.onnx file"):
        rehearse(broken, rows)


def test_a_file_that_crashes_the_engine_is_refused(onnx_source, rows, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExportError, match=r"quarters\.onnx: crashes its engine \(signal 11\)"):
        rehearse(onnx_source, rows)
    with pytest.raises(ExportError, match="crashes its engine"):
        inspect_apart(onnx_source)


def test_a_file_that_never_ends_is_refused(onnx_source, rows):
    with pytest.raises(ExportError, match=r"busy for more than 0\.01 s"):
        rehearse(onnx_source, rows, timeout_s=0.01)


def test_what_is_no_model_file_is_left_alone(tmp_path):
    rehearse("file.py:function", {})
    rehearse(tmp_path / "gone.onnx", {})
    rehearse(object(), {})
