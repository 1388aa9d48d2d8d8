"""The inference engines that a device may have, and which variant of a bundle runs on which of them.

Nothing here imports an engine or numpy, so that the agent can ask what is installed and choose; :func:`load_engine` imports the
one engine that a worker uses. A new engine is a module with a class and one line in :data:`ENGINES`.
"""

import importlib
import re
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgeops.errors import ConfigError, MissingExtraError
from edgeops.manifest import Manifest, Variant

if TYPE_CHECKING:
    from edgeops_runtime.engines.engine import Engine


class EngineEntry(NamedTuple):
    """One line of the table.

    Attributes:
        distribution: The installed package, whose version is the engine's.
        extra: The extra of ``edgeops`` that brings it.
        model_format: Which :attr:`edgeops.manifest.Variant.format` it reads.
        module: Where the class is.
        attribute: The class.
    """

    distribution: str
    extra: str
    model_format: str
    module: str
    attribute: str


ENGINES = {
    "onnxruntime": EngineEntry(
        "onnxruntime", "device", "onnx", "edgeops_runtime.engines.onnxruntime", "OnnxRuntimeEngine"
    ),
    "litert": EngineEntry(
        "ai-edge-litert", "device-litert", "tflite", "edgeops_runtime.engines.litert", "LiteRTEngine"
    ),
    "tflite": EngineEntry(
        "tflite-runtime", "device-tflite", "tflite", "edgeops_runtime.engines.tflite", "TFLiteEngine"
    ),
}
"""Engine name, as manifests write it → where it is."""

_NUMBER = re.compile(r"\d+")


def available_engines() -> dict[str, str]:
    """The installed engines and their versions, read from package metadata; none is imported."""
    found = {}
    for name, entry in ENGINES.items():
        try:
            found[name] = version(entry.distribution)
        except PackageNotFoundError:
            continue
    return found


def load_engine(name: str) -> "Engine":
    """Import an engine.

    Raises:
        ConfigError: There is no engine of that name.
        MissingExtraError: It is not installed.
    """
    entry = ENGINES.get(name)
    if entry is None:
        raise ConfigError(f"engine {name!r}: expected one of {', '.join(ENGINES)}")
    try:
        engine: Engine = getattr(importlib.import_module(entry.module), entry.attribute)()
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or entry.distribution, entry.extra) from error
    return engine


def choose_variant(
    manifest: Manifest, engines: Mapping[str, str], cpu_flags: Collection[str]
) -> list[tuple[Variant, str]]:
    """The variants that can run here, each with its engine; the best first.

    Args:
        manifest: Its order is the order of preference, and so is the order of each variant's engines.
        engines: Installed engine → version.
        cpu_flags: What the CPU can do, as Linux names it; empty: unknown, and then every demand counts as met.

    Returns:
        Pairs of variant and engine name; empty when nothing can run.
    """
    return [
        (variant, engine)
        for variant in manifest.variants
        for engine, lowest in variant.engines.items()
        if engine in ENGINES
        and engine in engines
        and ENGINES[engine].model_format == variant.format
        and is_at_least(engines[engine], lowest)
        and (not cpu_flags or set(variant.requires.cpu) <= set(cpu_flags))
    ]


def is_at_least(installed: str, lowest: str) -> bool:
    """Whether a version is not below another, compared number by number.

    >>> is_at_least("1.9.0", "1.18"), is_at_least("1.18", "1.18.0"), is_at_least("2.0rc1", "1.18")
    (False, True, True)
    """
    have, want = _numbers(installed), _numbers(lowest)
    width = max(len(have), len(want))
    return have + (0,) * (width - len(have)) >= want + (0,) * (width - len(want))


def read_cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the CPU can do (``flags`` on x86, ``Features`` on ARM); empty where it cannot be read."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() in {"flags", "features"}:
            return frozenset(value.split())
    return frozenset()


def _numbers(text: str) -> tuple[int, ...]:
    numbers = []
    for part in text.partition("+")[0].split("."):
        match = _NUMBER.match(part)
        if match is None:
            break
        numbers.append(int(match.group()))
    return tuple(numbers)
