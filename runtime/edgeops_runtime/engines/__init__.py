"""The inference engines that a device may have, and which variant of a bundle runs on which of them.

Nothing here imports an engine or numpy, so that the agent can ask what is installed and choose; :func:`load_engine` imports the
one engine that a worker uses. A new engine is a module with a class and one line in :data:`ENGINES`.
"""

import importlib
import re
from collections.abc import Mapping, Sequence
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
    # Here, since it brings mail and archives along, 2 MB, and a worker does not ask.
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

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
    manifest: Manifest,
    engines: Mapping[str, str],
    *,
    preference: Sequence[str] = (),
    cpu: frozenset[str] = frozenset(),
    memory_bytes: int | None = None,
) -> tuple[list[tuple[Variant, str]], str]:
    """The variants that can run here, each with its engine, the best first; and why the others cannot.

    Args:
        manifest: Its order is the order of preference, and so is the order of each variant's engines.
        engines: Installed engine → version.
        preference: Engines that may be used, the preferred first; empty: any.
        cpu: What the CPU can do, as Linux names it; empty: unknown, and then every demand counts as met.
        memory_bytes: Available memory; ``None``: unknown.

    Returns:
        Pairs of variant and engine name, empty when nothing can run, and the objections to the other variants.
    """
    usable = {engine: engines[engine] for engine in preference or engines if engine in engines}
    fitting, objections = [], []
    for variant in manifest.variants:
        found = [engine for engine in variant.engines if _can_run(engine, variant, usable)]
        objection = _objection(variant, cpu=cpu, memory_bytes=memory_bytes)
        if not objection and not found:
            objection = f"needs {_in_words(variant.engines)}, has {_in_words(usable) or 'no engine'}"
        if objection:
            objections.append(f"{variant.name}: {objection}")
        else:
            fitting += [(variant, engine) for engine in found]
    if preference:
        fitting.sort(key=lambda pair: preference.index(pair[1]))
    return fitting, "; ".join(objections)


def is_at_least(installed: str, lowest: str) -> bool:
    """Whether a version is not below another, compared number by number.

    >>> is_at_least("1.9.0", "1.18"), is_at_least("1.18", "1.18.0"), is_at_least("2.0rc1", "1.18")
    (False, True, True)
    """
    have, want = _numbers(installed), _numbers(lowest)
    width = max(len(have), len(want))
    return have + (0,) * (width - len(have)) >= want + (0,) * (width - len(want))


def _can_run(engine: str, variant: Variant, usable: Mapping[str, str]) -> bool:
    entry = ENGINES.get(engine)
    return (
        entry is not None
        and engine in usable
        and entry.model_format == variant.format
        and is_at_least(usable[engine], variant.engines[engine])
    )


def _objection(variant: Variant, *, cpu: frozenset[str], memory_bytes: int | None) -> str:
    missing = sorted(set(variant.requires.cpu) - cpu)
    if cpu and missing:
        return f"the CPU lacks {', '.join(missing)}"
    needed_mb = variant.requires.memory_mb
    if memory_bytes is not None and memory_bytes < needed_mb << 20:
        return f"needs {needed_mb} MB of memory, {memory_bytes >> 20} MB are available"
    return ""


def _in_words(engines: Mapping[str, str]) -> str:
    return " or ".join(f"{engine} {version}" for engine, version in engines.items())


def _numbers(text: str) -> tuple[int, ...]:
    numbers = []
    for part in text.partition("+")[0].split("."):
        match = _NUMBER.match(part)
        if match is None:
            break
        numbers.append(int(match.group()))
    return tuple(numbers)
