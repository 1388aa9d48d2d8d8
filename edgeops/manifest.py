"""What a bundle is: the manifest, its parts, and the rules that make one valid.

Reading and writing files is left to :mod:`edgeops.bundle`, signatures to :mod:`edgeops.signing`.
"""

import math
import re
from pathlib import PurePosixPath
from typing import Any

import msgspec

from edgeops.errors import EdgeOpsError, ManifestError
from edgeops.files import DIGEST_PATTERN
from edgeops.tensors import TensorSpec
from edgeops.topics import check_name

SCHEMA = 1
"""The version of the manifest's schema that this code reads and writes."""

_NUMBER = r"(0|[1-9]\d{0,8})"
_SEMVER = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Common settings of every part: immutable, and unknown keys are an error."""


class Scale(_Part, frozen=True, kw_only=True, tag="scale", tag_field="op"):
    """``x · factor + offset``, elementwise, in float32."""

    tensor: str
    factor: float
    offset: float = 0.0


class Normalize(_Part, frozen=True, kw_only=True, tag="normalize", tag_field="op"):
    """``(x − mean) / std`` along one axis, in float32; one mean and one std for each index of that axis."""

    tensor: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    axis: int = 1

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ManifestError(f"normalize {self.tensor!r}: expected as many std as mean, at least one")
        if not all(math.isfinite(value) and value > 0 for value in self.std):
            raise ManifestError(f"normalize {self.tensor!r}: every std must be finite and positive, got {self.std}")


class Softmax(_Part, frozen=True, kw_only=True, tag="softmax", tag_field="op"):
    """Softmax along one axis, in float32."""

    tensor: str
    axis: int = -1


Operator = Scale | Normalize | Softmax
"""The closed set of pre- and post-processing; never code."""


class FileEntry(_Part, frozen=True, kw_only=True):
    """Digest and size of one file of the bundle."""

    digest: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not DIGEST_PATTERN.match(self.digest) or self.size_bytes < 0:
            raise ManifestError(f"file entry: expected 'sha256:<64 hex>' and a size, got {self.digest!r}")


class Requires(_Part, frozen=True, kw_only=True):
    """What a variant needs of the device."""

    cpu: tuple[str, ...] = ()
    """CPU flags as Linux names them, for example ``avx2``; all must be there."""
    memory_mb: int = 0


class Interval(_Part, frozen=True, kw_only=True):
    """A measured figure with its 95 % interval."""

    value: float
    low: float
    high: float


class Measured(_Part, frozen=True, kw_only=True):
    """What the converter measured on the workstation; the device measures again."""

    latency_ms: float | None = None
    """Median of one call with one row."""
    accuracy: Interval | None = None
    agreement: float | None = None
    """Share of the evaluation rows whose top class is that of the source model."""


class Variant(_Part, frozen=True, kw_only=True):
    """One file that gives the model's answers.

    Attributes:
        name: Unique in the bundle, for example ``onnx-int8``.
        file: The model file.
        format: ``onnx`` or ``tflite``.
        engines: Engine name → lowest version, for example ``{"onnxruntime": "1.18"}``; names as in
            ``edgeops_runtime.engines``. Order is preference.
        precision: ``float32``, ``int8``, ….
        batch: Number of rows the file takes at once; ``None`` when any.
        inputs: Manifest input name → the file's tensor name. Likewise ``outputs``.
        tolerance: Largest absolute difference from the golden outputs, after post-processing.
    """

    name: str
    file: str
    format: str
    engines: dict[str, str]
    precision: str
    batch: int | None = None
    inputs: dict[str, str]
    outputs: dict[str, str]
    tolerance: float
    requires: Requires = Requires()
    measured: Measured = Measured()


class Lineage(_Part, frozen=True, kw_only=True):
    """Where the bundle comes from.

    Attributes:
        source: What was converted, as the user named it.
        source_digest: SHA-256 of its weights and graph, so that two conversions of one model can be told.
        data_digest: SHA-256 of the data that it was calibrated and evaluated on.
        git_revision: Of the user's repository, when there is one; ends in ``-dirty`` with local changes.
        parent: Manifest digest of the bundle that this one was retrained from.
        dataset: Digest of the dataset manifest that it was retrained on.
        recipe: The settings of the conversion.
        tools: Package → version.
    """

    source: str
    source_digest: str
    data_digest: str
    git_revision: str | None = None
    parent: str | None = None
    dataset: str | None = None
    recipe: dict[str, Any] = {}
    tools: dict[str, str] = {}


class Manifest(_Part, frozen=True, kw_only=True):
    """The whole description of a bundle.

    Attributes:
        preprocess: Operators from the caller's inputs to the model's, in order; ``postprocess`` likewise for outputs.
        labels: Class names by index; empty for other models.
        variants: In order of preference.
        files: Relative path → digest and size, of every file but ``manifest.json``.
        golden: Path of the golden vectors, an ``.npz`` with ``input/<name>`` and ``output/<variant>/<name>``, rows first.
        reference: Path of the drift baseline, ``None`` when there is none.
        license: SPDX expression of the model, empty when unknown.
    """

    schema: int = SCHEMA
    name: str
    version: str
    created: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: tuple[Operator, ...] = ()
    postprocess: tuple[Operator, ...] = ()
    labels: tuple[str, ...] = ()
    variants: tuple[Variant, ...]
    files: dict[str, FileEntry]
    golden: str
    reference: str | None = None
    lineage: Lineage
    license: str = ""

    def __post_init__(self) -> None:
        check_name("model", self.name)
        parse_version(self.version)
        for path in self.files:
            check_path(path)
            for directory in PurePosixPath(path).parents:
                if str(directory) in self.files:
                    raise ManifestError(f"files: {str(directory)!r} cannot be a file and the directory of {path!r}")
        self._check_variants()
        for path in filter(None, (self.golden, self.reference)):
            if path not in self.files:
                raise ManifestError(f"{path}: named by the manifest, but not among its files")
        self._check_operators(self.preprocess, {spec.name for spec in self.inputs}, "preprocess")
        self._check_operators(self.postprocess, {spec.name for spec in self.outputs}, "postprocess")

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            ManifestError: There is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise ManifestError(f"{self.name} {self.version}: no variant {name!r}; it has {self._variant_names()}")

    def needed_files(self, variant: Variant) -> frozenset[str]:
        """The files that a device must have to try and to run a variant; paths in the bundle."""
        return frozenset({variant.file, self.golden, *filter(None, [self.reference])})

    def _variant_names(self) -> list[str]:
        return [variant.name for variant in self.variants]

    def _check_variants(self) -> None:
        names = self._variant_names()
        if not names or len(set(names)) != len(names):
            raise ManifestError(f"variants: expected one or more with different names, got {names}")
        for variant in self.variants:
            if variant.file not in self.files:
                raise ManifestError(f"variant {variant.name!r}: file {variant.file!r} is not among the files")
            if set(variant.inputs) != {spec.name for spec in self.inputs}:
                raise ManifestError(f"variant {variant.name!r}: inputs {sorted(variant.inputs)} are not the manifest's")
            if set(variant.outputs) != {spec.name for spec in self.outputs}:
                raise ManifestError(
                    f"variant {variant.name!r}: outputs {sorted(variant.outputs)} are not the manifest's"
                )

    @staticmethod
    def _check_operators(operators: tuple[Operator, ...], names: set[str], where: str) -> None:
        for operator in operators:
            if operator.tensor not in names:
                raise ManifestError(f"{where}: no tensor {operator.tensor!r}; there are {sorted(names)}")


VersionKey = tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]


def parse_version(version: str) -> VersionKey:
    """A key that sorts semantic versions (semver.org, 11: numbers by value, before words; a prerelease before its release).

    >>> sorted(["1.0.0", "1.0.0-10", "1.0.0-9", "1.0.0-rc.1", "0.9.10"], key=parse_version)
    ['0.9.10', '1.0.0-9', '1.0.0-10', '1.0.0-rc.1', '1.0.0']

    Raises:
        ManifestError: It is not ``major.minor.patch`` with an optional ``-prerelease``.
    """
    match = _SEMVER.fullmatch(version)
    if match is None:
        raise ManifestError(f"version {version!r}: expected major.minor.patch, for example 1.2.0")
    major, minor, patch, prerelease = match.groups()
    identifiers = prerelease.split(".") if prerelease else []
    words = tuple((not word.isdigit(), int(word[:18]) if word.isdigit() else 0, word) for word in identifiers)
    return int(major), int(minor), int(patch), not words, words


def check_path(path: str) -> None:
    """Refuse a path that could leave the bundle's directory.

    Raises:
        ManifestError: It is absolute, has ``..`` or a backslash, is empty, or is the manifest itself.
    """
    pure = PurePosixPath(path)
    plain = path == str(pure) and path not in {"", ".", "manifest.json"}
    if not plain or pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path:
        raise ManifestError(f"file {path!r}: expected a plain relative path inside the bundle")


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2)


def decode_manifest(data: bytes, *, where: str = "manifest.json") -> Manifest:
    """Read a manifest.

    Args:
        data: JSON text.
        where: Named in the error.

    Raises:
        ManifestError: The schema is unknown, a key is missing, unknown or of the wrong type, or a rule is broken.
    """
    try:
        schema = msgspec.json.decode(data, type=_SchemaOnly).schema
        if schema != SCHEMA:
            raise ManifestError(f"{where}: schema {schema} is unknown; this release reads schema {SCHEMA}")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, EdgeOpsError) as error:
        if isinstance(error, ManifestError) and str(error).startswith(where):
            raise
        raise ManifestError(f"{where}: {error}") from error


class _SchemaOnly(msgspec.Struct):
    schema: int
