"""The machine that figures were taken on, without which they are worth nothing."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

_VECTOR_FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "asimddp")


def describe_machine() -> dict[str, str]:
    """CPU, cores, how busy they are now, and the versions of what is measured."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": str(os.cpu_count()),
        "load average": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("onnxruntime", "ai-edge-litert", "numpy")},
    }


def vector_instructions() -> list[str]:
    """The flags of this CPU that decide how 8-bit products are summed.

    Without one of the VNNI flags (``asimddp`` on ARM) onnxruntime adds pairs of U8S8 products in 16 bits, which can saturate.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(
        (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), []
    )
    return [flag for flag in _VECTOR_FLAGS if flag in flags]
