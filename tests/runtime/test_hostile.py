"""Models that end, hang or lie, and bundles that are not what they should be, one after the other under one living agent.

The version that serves answers every request of a caller who asks without pause; what is bad is rolled back or rejected, never
runs again, also after a restart, and nothing of it stays. Workers are scripted; their ends are real.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edgeops.bundle import MANIFEST_FILE, Bundle
from edgeops.files import digest_bytes
from edgeops.messages import ReasonClass, RolloutOrder, Target, Trial
from edgeops.signing import MANIFEST, SigningKey, seal, unseal

sys.path.insert(0, str(Path(__file__).parent))  # The folder is no package, and this module is only for its tests.

from agent_parts import Hammer, Station, eventually, scripted_bundle


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def station(directory: Path, release_key: SigningKey) -> Iterator[Station]:
    """A device that serves 1.0.0, and goes on doing so through all of this module."""
    station = Station(directory, release_key)
    station.start()
    station.install(scripted_bundle(directory / "bundles", "1.0.0", release_key))
    yield station
    station.close()


@pytest.fixture(scope="module")
def new_bundle(directory: Path, release_key: SigningKey) -> Callable[..., Bundle]:
    """Signed bundles, each with a version and a model file of its own: files that are alike are one file on the device."""
    numbers = itertools.count(1)

    def make(**script) -> Bundle:
        version = f"1.{next(numbers)}.0"
        return scripted_bundle(directory / "bundles", version, release_key, serial=version, **script)

    return make


def later(*values: object) -> object:
    """A case for the long run of the tests."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def hammer(station: Station) -> Iterator[Hammer]:
    """Asks all the while; in the end the first version still answers, and nobody else has."""
    with Hammer(station) as hammer:
        yield hammer
        answered = len(hammer.answers)
        eventually(lambda: len(hammer.answers) > answered + 3)
        assert hammer.answers[-1] == "1.0.0"
    assert hammer.failures == []


TRIAL = Trial(shadow_requests=2, min_agreement=0.9, probation_requests=3, probation_s=0.2, attempts=1, deadline_s=60)


@pytest.mark.parametrize(
    ("at", "by", "reason"),
    [
        ("load", "SIGILL", "ended by SIGILL"),
        later("load", "exit", "exited with code 0"),
        later("golden", "SIGSEGV", "ended by SIGSEGV"),
        later("golden", "exit", "exited with code 0"),
        ("shadow", "SIGBUS", "ended by SIGBUS"),
        later("shadow", "SIGKILL", "ended by SIGKILL"),  # As by the kernel, when memory has run out.
    ],
)
def test_model_that_ends_its_worker_never_serves(station, new_bundle, hammer, *, at, by, reason):
    bad = new_bundle(ends={"at": at, "by": by})
    station.desire(station.target(None, rollout=bad, trial=TRIAL))
    end = station.wait_for(bad.manifest.version, "rolled_back")
    assert end.reason_class is ReasonClass.DEFECT
    assert reason in end.reason
    assert bad.digest in station.agent._store.slots.quarantine
    assert set(hammer.answers) == {"1.0.0"}


@pytest.mark.parametrize("at", [later("load"), "golden", later("shadow")])
def test_model_that_hangs_is_given_up_and_its_worker_ended(station, new_bundle, hammer, monkeypatch, at):
    monkeypatch.setattr("edgeops_runtime.deployment.STEP_TIMEOUT_S", 3.0)
    bad = new_bundle(ends={"at": at, "by": "hang"})
    station.desire(station.target(None, rollout=bad, trial=TRIAL))
    end = station.wait_for(bad.manifest.version, "rolled_back")
    assert end.reason_class is ReasonClass.DEFECT
    assert "no answer for 3 s" in end.reason
    eventually(lambda: station.agent._crew.size == 1)
    assert set(hammer.answers) == {"1.0.0"}


@pytest.mark.parametrize(("by", "after"), [("SIGILL", 0), later("exit", 2)])
def test_model_that_ends_on_a_live_request_loses_no_other(station, new_bundle, by, after):
    bad = new_bundle(ends={"at": "request", "by": by, "after": after})
    trial = msgspec.structs.replace(TRIAL, probation_requests=50, probation_s=60.0, deadline_s=120.0)
    with Hammer(station) as hammer:
        station.desire(station.target(None, rollout=bad, trial=trial))
        end = station.wait_for(bad.manifest.version, "rolled_back")
        answered = len(hammer.answers)
        eventually(lambda: len(hammer.answers) > answered + 3)
    assert end.reason_class is ReasonClass.DEFECT
    assert end.reason.startswith("probation: the worker")
    assert len(hammer.failures) <= 1  # The one that it had in its hands; the caller asks one at a time.
    assert hammer.answers[-1] == "1.0.0"


def test_what_was_bad_is_not_tried_again_after_a_restart(station, new_bundle):
    bad = new_bundle(golden=False)
    station.desire(station.target(None, rollout=bad, trial=TRIAL))
    station.wait_for(bad.manifest.version, "rolled_back")
    barred = dict(station.agent._store.slots.quarantine)
    station.stop()
    station.start()
    station.desire(station.target(None, rollout=bad, trial=TRIAL))
    eventually(lambda: station.births[-1].generation == station.generation, lambda: station.births[-1])
    assert station.agent._store.slots.quarantine == barred
    assert station.states(bad.manifest.version).count("offered") == 1
    assert station.answer() == "1.0.0"


# ---- bundles ---------------------------------------------------------------------------------------------------------


def altered(bundle: Bundle, key: SigningKey | None, **changes) -> bytes:
    """The manifest with other values, signed as it should be or by nobody."""
    envelope = (bundle.path / MANIFEST_FILE).read_bytes()
    payload = json.loads(unseal(envelope, kind=MANIFEST, keys=None))
    return seal(msgspec.json.encode(payload | changes), kind=MANIFEST, keys=[key] if key else [])


def renamed(bundle: Bundle, name: str) -> dict:
    """Changes that give the model's file another name."""
    manifest = msgspec.to_builtins(bundle.manifest)
    files = {name if file == "model.onnx" else file: entry for file, entry in manifest["files"].items()}
    return {"files": files, "variants": [{**manifest["variants"][0], "file": name}]}


def flipped(data: bytes, place: float) -> bytes:
    index = min(int(len(data) * place), len(data) - 1)
    return data[:index] + bytes([data[index] ^ 0x20]) + data[index + 1 :]


def offer(station: Station, bundle: Bundle, envelope: bytes, **files: bytes) -> str:
    """Have a manifest wanted, by its own digest; files may be other than they should."""
    station.blobs.add(bundle)
    digest = digest_bytes(envelope)
    station.blobs.blobs[digest] = envelope
    for name, data in files.items():
        station.blobs.blobs[bundle.manifest.files[name.replace("__", ".")].digest] = data
    version = bundle.manifest.version
    order = RolloutOrder(id=f"r-{version}", version=version, digest=digest, percent=100, trial=TRIAL)
    station.desire(Target(model="digits", version=None, digest=None, url="/blobs", rollout=order))
    return digest


def check_refused(station: Station, version: str, digest: str, reason_class: ReasonClass, state: str = "rejected"):
    end = station.wait_for(version, state)
    assert end.reason_class is reason_class, end
    assert not station.agent._blobs.has_bundle(digest)
    outside = {path.name for path in station.directory.iterdir()} | {path.name for path in station.data.iterdir()}
    assert "escaped" not in outside
    return end


@pytest.mark.parametrize(
    "name",
    [
        "../escaped",
        "/tmp/escaped",
        "golden.npz/escaped",
        *map(
            later, ("../../escaped", "a/../../escaped", "a\\..\\escaped", "escaped\0", "./escaped", "", "manifest.json")
        ),
    ],
)
def test_path_that_leaves_the_bundle_is_refused_though_it_is_signed(station, new_bundle, release_key, hammer, name):
    bundle = new_bundle()
    digest = offer(station, bundle, altered(bundle, release_key, **renamed(bundle, name)))
    check_refused(station, bundle.manifest.version, digest, ReasonClass.INCOMPATIBLE)


@pytest.mark.parametrize("signer", ["nobody", "another", "another with our name", "for another kind"])
def test_bundle_that_the_release_key_did_not_sign_is_refused(station, new_bundle, release_key, hammer, signer):
    bundle = new_bundle()
    foreign = SigningKey.generate()
    if signer == "for another kind":
        envelope = seal(unseal((bundle.path / MANIFEST_FILE).read_bytes(), kind=MANIFEST, keys=None), kind="desired",
                        keys=[release_key])  # fmt: skip
    else:
        envelope = altered(bundle, None if signer == "nobody" else foreign)
    if signer == "another with our name":
        envelope = envelope.replace(foreign.public.id.encode(), release_key.public.id.encode())
    digest = offer(station, bundle, envelope)
    check_refused(station, bundle.manifest.version, digest, ReasonClass.SECURITY)


@pytest.mark.parametrize("place", [later(0.0), 0.3, later(0.6), later(0.999)])
@pytest.mark.parametrize("what", ["manifest", "model__onnx", "golden__npz"])
def test_byte_that_was_changed_anywhere_is_refused(station, new_bundle, hammer, what, place):
    bundle = new_bundle()
    envelope = (bundle.path / MANIFEST_FILE).read_bytes()
    if what == "manifest":
        # The director wants the changed one; the signature is still that of the other.
        digest = offer(station, bundle, flipped(envelope, place))
    else:
        data = bundle.file(what.replace("__", ".")).read_bytes()
        digest = offer(station, bundle, envelope, **{what: flipped(data, place)})
    check_refused(station, bundle.manifest.version, digest, ReasonClass.SECURITY)


@pytest.mark.parametrize("fields", [{"version": "9.9.9"}, {"name": "other"}])
def test_bundle_that_is_another_than_it_was_announced_as_is_refused(station, new_bundle, release_key, hammer, fields):
    bundle = new_bundle()
    digest = offer(station, bundle, altered(bundle, release_key, **fields))
    check_refused(station, bundle.manifest.version, digest, ReasonClass.SECURITY)


@pytest.mark.parametrize("fields", [{"schema": 99}, {"files": {}}, {"variants": []}, {"inputs": "none"}])
def test_signed_manifest_that_makes_no_sense_is_refused(station, new_bundle, release_key, hammer, fields):
    bundle = new_bundle()
    digest = offer(station, bundle, altered(bundle, release_key, **fields))
    check_refused(station, bundle.manifest.version, digest, ReasonClass.INCOMPATIBLE)


def test_manifest_without_end_is_refused_before_it_fills_the_disk(station, new_bundle, release_key, hammer):
    bundle = new_bundle()
    digest = offer(station, bundle, altered(bundle, release_key) + b" " * (4 << 20))
    end = check_refused(station, bundle.manifest.version, digest, ReasonClass.SECURITY)
    assert "expected at most" in end.reason
    assert station.agent._blobs.partial(digest).size_bytes == 0


def test_model_that_hangs_on_live_requests_gives_the_traffic_back(station, new_bundle, monkeypatch):
    monkeypatch.setattr("edgeops_runtime.deployment.STEP_TIMEOUT_S", 3.0)
    bad = new_bundle(ends={"at": "request", "by": "hang"})
    trial = msgspec.structs.replace(TRIAL, shadow_requests=0)
    with Hammer(station) as hammer:
        station.desire(station.target(None, rollout=bad, trial=trial))
        end = station.wait_for(bad.manifest.version, "rolled_back")
        answered = len(hammer.answers)
        eventually(lambda: len(hammer.answers) > answered + 3)
    assert end.reason_class is ReasonClass.DEFECT
    assert "a request has been under way for" in end.reason
    assert hammer.answers[-1] == "1.0.0"
