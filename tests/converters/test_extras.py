"""Heavy libraries come late, their noise stays out of sight, and a missing one says what to install."""

import logging
import os
import subprocess
import sys
import warnings

import pytest

from edgeops.errors import MissingExtraError
from edgeops_converters.extras import load, quiet


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import sys, edgeops_converters, edgeops_converters.cli.compress, edgeops_converters.cli.convert\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'litert_torch', 'ai_edge_litert', 'ai_edge_quantizer', 'jax', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_library_names_the_extra():
    with pytest.raises(MissingExtraError, match=r"no_such_library is not installed.*edgeops\[convert\]"):
        load("no_such_library")


def test_noise_is_kept_for_the_debug_log(capfd, caplog):
    caplog.set_level(logging.DEBUG, "edgeops_converters.extras")
    with quiet():
        os.write(2, b"I0000 native chatter\n")
        sys.stderr.write("progress bar\n")
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
    os.write(2, b"heard again\n")
    assert capfd.readouterr().err == "heard again\n"
    assert "native chatter" in caplog.text
    assert "progress bar" in caplog.text


def test_errors_pass_and_standard_error_comes_back(capfd):
    with pytest.raises(ValueError, match="real"), quiet():
        raise ValueError("real")
    os.write(2, b"still here\n")
    assert capfd.readouterr().err == "still here\n"


def test_a_library_that_configures_logging_for_the_whole_program_is_undone():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with quiet():
        root.addHandler(logging.StreamHandler())
        root.setLevel(logging.INFO + 1)
    assert root.handlers == handlers
    assert root.level == level
