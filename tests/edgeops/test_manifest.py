"""The rules of a manifest; each broken one is named."""

import json

import msgspec
import pytest

from edgeops.errors import ManifestError
from edgeops.manifest import Manifest, Normalize, Scale, check_path, decode_manifest, encode_manifest, parse_version


def test_manifest_survives_encoding(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest)) == manifest


def changed(manifest: Manifest, **values: object) -> bytes:
    document = json.loads(encode_manifest(manifest))
    document.update(values)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schema": 2}, "schema 2 is unknown; this release reads schema 1"),
        ({"version": "1.0"}, "expected major.minor.patch"),
        ({"name": "a/b"}, "model 'a/b'"),
        ({"surprise": 1}, "surprise"),
        ({"variants": []}, "expected one or more"),
        ({"golden": "absent.npz"}, "absent.npz: named by the manifest"),
        ({"files": {"../x": {"digest": "sha256:" + "0" * 64, "size_bytes": 1}}}, "plain relative path"),
        ({"files": {"model.onnx": {"digest": "md5:0", "size_bytes": 1}}}, "expected 'sha256:<64 hex>'"),
        ({"preprocess": [{"op": "python", "tensor": "image"}]}, "Invalid value 'python'"),
        ({"preprocess": [{"op": "scale", "tensor": "sound", "factor": 1.0}]}, "no tensor 'sound'"),
        ({"inputs": [{"name": "image", "dtype": "FLOAT", "shape": [1]}]}, "dtype 'FLOAT'"),
        ({"variants": "onnx"}, "variants"),
    ],
)
def test_broken_rule_is_named(manifest: Manifest, values: dict[str, object], message: str) -> None:
    with pytest.raises(ManifestError, match=message.replace("(", r"\(")) as caught:
        decode_manifest(changed(manifest, **values), where="here.json")
    assert "here.json" in str(caught.value)


def test_missing_key_is_named(manifest: Manifest) -> None:
    document = json.loads(encode_manifest(manifest))
    del document["lineage"]
    with pytest.raises(ManifestError, match="lineage"):
        decode_manifest(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": "1"}'])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        decode_manifest(data)


@pytest.mark.parametrize("path", ["", ".", "/a", "../a", "a/../b", "a//b", "a\\b", "manifest.json", "a\0"])
def test_path_that_could_leave_the_directory_is_refused(path: str) -> None:
    with pytest.raises(ManifestError):
        check_path(path)


def test_versions_sort_as_semantic_versions_do() -> None:
    versions = ["1.10.0", "1.2.0", "1.2.0-rc1", "0.9.9", "2.0.0"]
    assert sorted(versions, key=parse_version) == ["0.9.9", "1.2.0-rc1", "1.2.0", "1.10.0", "2.0.0"]


@pytest.mark.parametrize(
    "version", ["", "1", "1.0", "01.0.0", "1.0.0\n", "1.0.0-", "1.0.0-a..b", "1.0.0+build", f"{'9' * 5000}.0.0"]
)
def test_what_is_no_semantic_version_is_refused(version: str) -> None:
    with pytest.raises(ManifestError, match=r"expected major\.minor\.patch"):
        parse_version(version)


def test_file_cannot_be_the_directory_of_another(manifest: Manifest) -> None:
    entry = {"digest": "sha256:" + "0" * 64, "size_bytes": 1}
    files = json.loads(encode_manifest(manifest))["files"] | {"a": entry, "a/b": entry}
    with pytest.raises(ManifestError, match="directory of 'a/b'"):
        decode_manifest(changed(manifest, files=files))


def test_operators_keep_their_kind(manifest: Manifest) -> None:
    operators = (Scale(tensor="image", factor=1 / 255), Normalize(tensor="image", mean=(0.5,), std=(0.25,)))
    again = decode_manifest(encode_manifest(msgspec.structs.replace(manifest, preprocess=operators)))
    assert again.preprocess == operators


@pytest.mark.parametrize("std", [(0.0,), (-1.0,), (float("nan"),), (1.0, 2.0), ()])
def test_normalize_refuses_a_std_it_cannot_divide_by(std: tuple[float, ...]) -> None:
    with pytest.raises(ManifestError, match="std"):
        Normalize(tensor="image", mean=(0.0,), std=std)
