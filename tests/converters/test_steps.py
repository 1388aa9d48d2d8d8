"""Steps: what the operating system refuses is said as such, whoever met it."""

import errno

import pytest

from edgeops.errors import ExportError, TransientError
from edgeops_converters.steps import Steps


def fail(cause):
    """A step in which a library meets an error of the operating system, which an exporter translates."""
    with Steps(None, clock=lambda: 0.0).step("export onnx"):
        raise ExportError("model: does not export") from cause


def test_a_full_disk_is_no_fault_of_the_model():
    with pytest.raises(TransientError, match=r"export onnx: .*No space left"):
        fail(OSError(errno.ENOSPC, "No space left on device"))


def test_other_failures_pass_as_they_are():
    with pytest.raises(ExportError, match="does not export"):
        fail(FileNotFoundError(errno.ENOENT, "nowhere"))
