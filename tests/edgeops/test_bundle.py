"""Bundles on disk: what is written opens, and whatever is changed is refused by name."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from edgeops.bundle import MANIFEST_FILE, Bundle, open_bundle, pack, unpack, write_bundle
from edgeops.errors import ConflictError, ManifestError, TransientError, UntrustedError
from edgeops.manifest import Manifest
from edgeops.signing import SigningKey


def test_written_bundle_opens_with_its_key(bundle: Bundle, key: SigningKey) -> None:
    opened = open_bundle(bundle.path, keys=[key.public])
    assert opened == bundle
    assert set(opened.manifest.files) == {"model.onnx", "golden.npz", "parts/reference.json"}


def test_bundle_of_another_key_is_untrusted(bundle: Bundle) -> None:
    with pytest.raises(UntrustedError, match="expected a valid signature by one of the keys"):
        open_bundle(bundle.path, keys=[SigningKey.generate().public])


def test_unsigned_bundle_is_untrusted_when_a_key_is_asked_for(
    tmp_path: Path, manifest: Manifest, bundle: Bundle
) -> None:
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    unsigned = write_bundle(tmp_path / "unsigned", manifest, files)
    assert open_bundle(unsigned.path).digest == unsigned.digest
    with pytest.raises(UntrustedError, match="by nobody"):
        open_bundle(unsigned.path, keys=[SigningKey.generate().public])


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "parts/reference.json"])
def test_changed_byte_is_refused_by_name(bundle: Bundle, name: str) -> None:
    data = bytearray(bundle.file(name).read_bytes())
    data[len(data) // 2] ^= 1
    bundle.file(name).write_bytes(data)
    with pytest.raises(ManifestError, match=name):
        open_bundle(bundle.path)


def test_every_changed_byte_of_the_manifest_is_refused(bundle: Bundle, key: SigningKey) -> None:
    path = bundle.file(MANIFEST_FILE)
    original = path.read_bytes()
    for position in range(0, len(original), 7):
        changed = bytearray(original)
        changed[position] ^= 1
        path.write_bytes(changed)
        with pytest.raises((UntrustedError, ManifestError)):
            open_bundle(bundle.path, keys=[key.public])


@pytest.mark.parametrize("size", [0, 1, 100, 4999])
def test_truncated_file_is_refused_with_both_sizes(bundle: Bundle, size: int) -> None:
    os.truncate(bundle.file("model.onnx"), size)
    with pytest.raises(ManifestError, match=rf"model\.onnx: expected 5000 bytes, found {size}"):
        open_bundle(bundle.path)


def test_missing_file_is_refused_unless_the_bundle_is_partial(bundle: Bundle) -> None:
    bundle.file("golden.npz").unlink()
    with pytest.raises(ManifestError, match=r"golden\.npz"):
        open_bundle(bundle.path)
    assert open_bundle(bundle.path, partial=True).digest == bundle.digest


def test_link_in_place_of_a_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(bundle.file("model.onnx").read_bytes())
    bundle.file("model.onnx").unlink()
    bundle.file("model.onnx").symlink_to(outside)
    for partial in (False, True):
        with pytest.raises(ManifestError, match="link"):
            open_bundle(bundle.path, partial=partial)


def test_existing_directory_is_never_overwritten(bundle: Bundle, manifest: Manifest) -> None:
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    with pytest.raises(ConflictError, match="exists already"):
        write_bundle(bundle.path, manifest, files)


def test_failed_write_leaves_nothing_behind(tmp_path: Path, manifest: Manifest, bundle: Bundle) -> None:
    target = tmp_path / "out" / "fashion-1.0.0"
    files = {"model.onnx": bundle.file("model.onnx"), "golden.npz": tmp_path / "absent"}
    with pytest.raises(TransientError, match="absent"):
        write_bundle(target, manifest, files)
    assert list(target.parent.iterdir()) == []


def test_tar_round_trip_keeps_the_digest_and_is_reproducible(bundle: Bundle, tmp_path: Path, key: SigningKey) -> None:
    pack(bundle, tmp_path / "a.tar")
    pack(bundle, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert unpack(tmp_path / "a.tar", tmp_path / "unpacked", keys=[key.public]).digest == bundle.digest


def test_every_truncation_of_a_tar_is_refused_and_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "whole.tar")
    whole = (tmp_path / "whole.tar").read_bytes()
    last = whole.rstrip(b"\0")
    for size in range(0, len(last), 331):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(ManifestError):
            unpack(tmp_path / "cut.tar", tmp_path / "out" / "bundle")
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape"])
def test_tar_cannot_write_outside_its_directory(bundle: Bundle, tmp_path: Path, name: str) -> None:
    pack(bundle, tmp_path / "good.tar")
    with tarfile.open(tmp_path / "good.tar", "a") as archive:
        info = tarfile.TarInfo(name)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    unpacked = unpack(tmp_path / "good.tar", tmp_path / "deep" / "deeper" / "bundle")
    found = {str(path.relative_to(unpacked.path)) for path in unpacked.path.rglob("*") if path.is_file()}
    assert found == {MANIFEST_FILE, "model.onnx", "golden.npz", "parts/reference.json"}
    assert not list(tmp_path.rglob("escape"))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (tarfile.SYMTYPE, "model.onnx"),
        (tarfile.LNKTYPE, "model.onnx"),
        (tarfile.FIFOTYPE, "model.onnx"),
        (tarfile.CHRTYPE, "golden.npz"),
        (tarfile.DIRTYPE, "golden.npz"),
        (tarfile.SYMTYPE, MANIFEST_FILE),
        (tarfile.LNKTYPE, MANIFEST_FILE),
    ],
)
def test_tar_member_that_is_no_plain_file_is_refused_and_leaves_nothing(
    bundle: Bundle, tmp_path: Path, kind: bytes, name: str
) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        for each in (MANIFEST_FILE, *bundle.manifest.files):
            if each != name:
                archive.add(bundle.file(each), each)
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, str(bundle.file(name))
        archive.addfile(info)
    with pytest.raises(ManifestError, match=name):
        unpack(tmp_path / "bad.tar", tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_second_member_of_a_name_that_lies_about_its_content_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "twice.tar")
    with tarfile.open(tmp_path / "twice.tar", "a") as archive:
        info = tarfile.TarInfo("model.onnx")
        info.size = bundle.manifest.files["model.onnx"].size_bytes
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(ManifestError, match=r"model\.onnx: expected sha256"):
        unpack(tmp_path / "twice.tar", tmp_path / "out" / "bundle")


def test_link_in_place_of_a_directory_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.file("parts").rename(tmp_path / "elsewhere")
    bundle.file("parts").symlink_to(tmp_path / "elsewhere")
    for partial in (False, True):
        with pytest.raises(ManifestError, match="found a link"):
            open_bundle(bundle.path, partial=partial)


def test_manifest_without_end_is_refused_before_it_fills_memory(bundle: Bundle) -> None:
    with bundle.file(MANIFEST_FILE).open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ManifestError, match="expected at most"):
        open_bundle(bundle.path)


def test_wrong_signature_names_the_file(bundle: Bundle) -> None:
    with pytest.raises(UntrustedError, match=r"fashion-1\.0\.0/manifest\.json"):
        open_bundle(bundle.path, keys=[SigningKey.generate().public])


def test_unwritable_target_is_a_clear_error_and_leaves_nothing(
    bundle: Bundle, manifest: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "plain").touch()
    files = {name: bundle.file(name) for name in bundle.manifest.files}
    with pytest.raises(TransientError, match="plain"):
        write_bundle(tmp_path / "plain" / "below", manifest, files)
    with pytest.raises(TransientError, match="plain"):
        pack(bundle, tmp_path / "plain" / "below.tar")
    with pytest.raises(TransientError, match="plain"):
        unpack(tmp_path / "absent.tar", tmp_path / "plain" / "below")
