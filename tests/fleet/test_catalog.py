import shutil
import urllib.request

import pytest
from fleet_rig import archive

from edgeops.bundle import open_bundle
from edgeops.files import digest_bytes
from edgeops.signing import SigningKey
from edgeops_fleet.api.bundles import parse_range


def upload(rig, data, **headers):
    return rig.api.call("POST", "/api/v1/bundles", raw=data, **headers)


@pytest.fixture
def tar(rig, make_bundle):
    return archive(make_bundle("1.0.0"), rig.directory)


def test_a_bundle_is_published_and_its_files_can_be_fetched_by_digest(rig, tar, make_bundle):
    bundle = make_bundle("1.0.0")
    status, answer = upload(rig, tar)
    assert (status, answer["digest"], answer["version"]) == (201, bundle.digest, "1.0.0")
    for digest in [bundle.digest, *(entry.digest for entry in bundle.manifest.files.values())]:
        with urllib.request.urlopen(f"{rig.server.url}/blobs/{digest}") as response:
            assert digest_bytes(response.read()) == digest


def test_the_same_upload_again_changes_nothing(rig, tar):
    first = upload(rig, tar)[1]
    assert upload(rig, tar) == (200, first)
    assert len(rig.api.get("/api/v1/bundles")["bundles"]) == 1


def test_a_form_is_taken_too(rig, tar):
    body = (
        b'--x\r\nContent-Disposition: form-data; name="bundle"; filename="b.tar"\r\n'
        b"Content-Type: application/x-tar\r\n\r\n" + tar + b"\r\n--x--\r\n"
    )
    assert upload(rig, body, Content_Type="multipart/form-data; boundary=x")[0] == 201


def test_another_bundle_under_a_known_version_is_a_conflict(rig, tar, make_bundle):
    upload(rig, tar)
    status, answer = upload(rig, archive(make_bundle("1.0.0", "wrong"), rig.directory))
    assert status == 409
    assert "choose a new one" in answer["error"]


def test_a_bundle_signed_by_a_stranger_is_refused(make_rig, make_bundle):
    rig = make_rig()
    rig.server.catalog._keys = (SigningKey.generate().public,)
    status, answer = upload(rig, archive(make_bundle("1.0.0"), rig.directory))
    assert (status, "signature" in answer["error"]) == (403, True)


def test_damaged_uploads_are_refused_and_leave_nothing(rig, tar, make_bundle):
    bundle = make_bundle("1.0.0")
    model = bundle.file(bundle.manifest.variants[0].file).read_bytes()
    flipped = tar.replace(model[-200:], bytes(200))
    for damaged in (tar[: len(tar) // 2], flipped, b"no tar at all", b""):
        status, answer = upload(rig, damaged)
        assert status in {400, 422}, answer
    assert rig.api.get("/api/v1/bundles")["bundles"] == []
    assert rig.api.call("HEAD", f"/blobs/{bundle.digest}")[0] == 404
    assert list((rig.directory / "scratch").iterdir()) == []


def test_an_upload_that_is_too_large_is_refused(make_rig, make_bundle):
    rig = make_rig(max_bundle_bytes=1000)
    status, answer = upload(rig, archive(make_bundle("1.0.0"), rig.directory))
    assert (status, "at most 1000 bytes" in answer["error"]) == (400, True)


def fetch(rig, path, method="GET", **headers):
    request = urllib.request.Request(rig.server.url + path, method=method)
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def test_a_download_resumes_by_range(rig, tar, make_bundle):
    upload(rig, tar)
    bundle = make_bundle("1.0.0")
    name = bundle.manifest.variants[0].file
    whole = bundle.file(name).read_bytes()
    path = f"/blobs/{bundle.manifest.files[name].digest}"
    status, body, headers = fetch(rig, path)
    assert (status, body, headers["Accept-Ranges"]) == (200, whole, "bytes")
    etag = headers["ETag"]
    status, rest, headers = fetch(rig, path, Range="bytes=1000-", If_Range=etag)
    assert (status, whole[:1000] + rest) == (206, whole)
    assert headers["Content-Range"] == f"bytes 1000-{len(whole) - 1}/{len(whole)}"
    assert fetch(rig, path, Range="bytes=-10")[1] == whole[-10:]
    assert fetch(rig, path, Range="bytes=1000-", If_Range='"other"')[:2] == (200, whole)
    assert fetch(rig, path, Range=f"bytes={len(whole)}-")[0] == 416
    assert fetch(rig, path, If_None_Match=etag)[0] == 304
    status, body, headers = fetch(rig, path, method="HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(whole)))
    assert fetch(rig, "/blobs/sha256:" + "0" * 64)[0] == 404
    assert fetch(rig, "/blobs/..%2Ffleet.db")[0] == 404


@pytest.mark.parametrize("header", ["", "items=0-1", "bytes=", "bytes=-", "bytes=5-2", "bytes=0-1,3-4", "bytes=a-b"])
def test_ranges_that_are_not_understood_give_the_whole(header):
    assert parse_range(header, 10) is None


def test_what_was_published_survives_a_restart(rig, tar, make_bundle):
    upload(rig, tar)
    rig.restart()
    assert rig.api.get("/api/v1/bundles")["bundles"][0]["digest"] == make_bundle("1.0.0").digest


def test_the_fixture_bundle_is_whole(make_bundle, tmp_path):
    bundle = make_bundle("1.0.0")
    shutil.copytree(bundle.path, tmp_path / "copy")
    assert open_bundle(tmp_path / "copy").digest == bundle.digest
