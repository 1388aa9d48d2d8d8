"""The main job of EdgeOps on one machine: train, convert, deploy, break, drift, retrain, roll out again.

Each step is a method, in order; what has to come out of it is a named check. Nothing is simulated that could be real: server and
devices are processes, requests go over HTTP, messages through a broker; only the scene in front of the cameras and the person
who labels samples are played.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch

from edgeops.bundle import Bundle
from edgeops.errors import EdgeOpsError
from edgeops.files import write_durably
from edgeops.signing import SigningKey
from edgeops_converters.targets import has_dot_product
from edgeops_demo.images import Dataset, load_dataset
from edgeops_demo.network import ExposureCompensated, FashionNet, train
from edgeops_demo.people import Labeller, wait_until
from edgeops_demo.processes import Programs
from edgeops_demo.release import CALIBRATION_IMAGES, exams, make_release, measure
from edgeops_demo.report import DriftFigures, Report, RetrainFigures
from edgeops_demo.retraining import VERSION as RETRAINED
from edgeops_demo.retraining import Result, Workspace
from edgeops_demo.rollouts import figures, order
from edgeops_demo.stage import SITES, SMEARED_SITE, Stage, device_names
from edgeops_demo.story import Story
from edgeops_demo.traffic import total

FIRST, BAD = "1.0.0", "1.1.0"
TRAINING_STEPS = 1200
LEARNING_RATE = 5e-3
SAMPLES = 400


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a person can choose.

    Attributes:
        directory: Everything that the run writes; emptied first.
        images: Directory of the whole Fashion-MNIST; ``None`` looks where Debian puts it.
        port: Of the dashboard; 0 takes a free one.
        seed: Of training.
    """

    directory: Path
    images: Path | None = None
    port: int = 0
    seed: int = 20


class Demo:
    """One run.

    Args:
        options: What a person chose.
        story: Where it is told.
        programs: Where processes are started, and ended by the caller.
    """

    def __init__(self, options: Options, story: Story, programs: Programs) -> None:
        self._options, self._story, self._programs = options, story, programs
        self._directory = options.directory
        self.report = Report()
        self._key = SigningKey.load_or_generate(self._directory / "release.key")
        self._network = FashionNet()
        self._bundles: dict[str, Bundle] = {}
        self._dataset: Dataset
        self._stage: Stage

    def run(self) -> None:
        """All steps.

        Raises:
            EdgeOpsError: A step did not come out as told; the report has what was found until then.
        """
        step = self._story.step
        with step("data", "Data"):
            self._load()
        with step("train", "Train a small residual network"):
            self._train()
        with step("convert", f"Convert {FIRST} to float and int8, ONNX and TFLite"):
            self._convert_first()
        with step("fleet", "Start the server, the broker and eight devices"):
            self._start_fleet()
        try:
            with step("rollout", f"Roll out {FIRST} in waves"):
                self._roll_out_first()
            with step("bad_release", f"Break it: {BAD} passes the converter's gate and fails in the sun"):
                self._roll_out_bad()
            with step("drift", f"Drift: the lenses of site {SMEARED_SITE} are smeared and the light is poor"):
                self._drift()
            with step("retrain", f"Retrain on labelled samples of site {SMEARED_SITE}, and roll out {RETRAINED}"):
                self._retrain()
            with step("recover", "Watch the drift clear"):
                self._recover()
        finally:
            self._stop_traffic()
        self.report.outcome = "as told" if all(self.report.checks.values()) else "incomplete"

    def _load(self) -> None:
        self._dataset = load_dataset(self._options.images)
        self.report.data = self._dataset.origin
        self._story.tell(
            f"Fashion-MNIST, {self._dataset.origin}; cameras see {len(self._dataset.field)} of the held-out "
            f"images, {len(self._dataset.exam)} others decide"
        )

    def _train(self) -> None:
        torch.manual_seed(self._options.seed)
        train(
            self._network,
            self._dataset.train,
            steps=TRAINING_STEPS,
            learning_rate=LEARNING_RATE,
            seed=self._options.seed,
            on_progress=self._tell_training,
        )
        torch.save(self._network.state_dict(), self._directory / "network.pt")

    def _tell_training(self, step: int, steps: int, loss: float) -> None:
        self._story.tell(f"step {step} of {steps}, loss {loss:.3f}")

    def _convert(self, network: torch.nn.Module, version: str) -> Bundle:
        clean, _ = exams(self._dataset)
        conversion = make_release(
            network,
            version,
            calibration=self._dataset.train.take(0, CALIBRATION_IMAGES),
            evaluation={"image": clean.images, "labels": clean.labels},
            output=self._directory / "bundles" / f"fashion-{version}",
            key=self._key,
        )
        self._bundles[version] = conversion.bundle
        return conversion.bundle

    def _convert_first(self) -> None:
        bundle = self._convert(self._network, FIRST)
        before = measure(self._network, bundle, self._dataset)
        self.report.accuracy["before"] = before
        for variant in bundle.manifest.variants:
            self.report.size_bytes[variant.name] = bundle.manifest.files[variant.file].size_bytes
            if variant.measured.latency_ms is not None:
                self.report.latency_ms[variant.name] = variant.measured.latency_ms
            self._story.tell(
                f"{variant.name}: {self.report.size_bytes[variant.name] / 1000:.1f} kB, "
                f"{1000 * (variant.measured.latency_ms or 0):.0f} µs, {before.clean[variant.name]:.1%} "
                f"(float in torch: {before.clean['float']:.1%})"
            )
        self._story.tell(f"report: {bundle.file('report.html')}")
        self._check("every int8 variant is smaller, and within half a point of float", self._int8_holds())
        self._check("every int8 variant is faster, where this CPU can tell", self._int8_is_faster())

    def _int8_holds(self) -> bool:
        size, clean = self.report.size_bytes, self.report.accuracy["before"].clean
        return all(size[int8] < size[plain] and clean[int8] >= clean["float"] - 0.005 for int8, plain in _int8_of(size))

    def _int8_is_faster(self) -> bool:
        """As the converter has it: a TFLite file in int8 is no faster on an x86 without an 8-bit dot product."""
        latency = self.report.latency_ms
        return all(
            latency[int8] < latency[plain]
            for int8, plain in _int8_of(latency)
            if has_dot_product() or not int8.startswith("tflite")
        )

    def _start_fleet(self) -> None:
        workspace = self._directory / "workspace.json"
        self._stage = Stage(
            self._directory,
            self._programs,
            release_key=self._key.public.text,
            retrain_command=[sys.executable, "-m", "edgeops_demo.retraining", str(workspace)],
            samples=SAMPLES,
            port=self._options.port,
        )
        operator = self._stage.operator
        self.report.dashboard = operator.url
        write_durably(
            workspace,
            msgspec.json.encode(
                Workspace(
                    images=str(self._options.images) if self._options.images else None,
                    weights=str(self._directory / "network.pt"),
                    incumbent=str(self._bundles[FIRST].path),
                    release_key=str(self._directory / "release.key"),
                    output=str(self._directory / "bundles" / f"fashion-{RETRAINED}"),
                    result=str(self._directory / "retraining.json"),
                    sites=SITES,
                    server=operator.url,
                    token=operator.token,
                    seed=self._options.seed,
                )
            ),
            mode=0o600,
        )
        self._story.tell(f"dashboard {operator.url}  broker {self._stage.broker}")
        self._stage.start_devices()
        self._stage.point_cameras(self._dataset.field)
        self._story.tell(f"{len(device_names())} devices enrolled and online: {', '.join(device_names())}")

    def _roll_out(self, version: str) -> None:
        self._stage.operator.publish(self._bundles[version])
        self._follow(version, self._stage.operator.post("/api/v1/rollouts", order(version))["id"])

    def _follow(self, version: str, rollout_id: str) -> None:
        """Tell what a rollout does until it has ended."""
        begun, told = time.monotonic(), 0

        def has_ended() -> bool:
            nonlocal told
            rollout = self._stage.rollout(rollout_id)
            for entry in rollout["transitions"][told:]:
                self._story.tell(f"{version}: {entry['text']}")
            told = len(rollout["transitions"])
            if rollout["state"] == "paused":
                raise EdgeOpsError(f"{version}: the rollout paused: {rollout['reason']}")
            return rollout["state"] in {"completed", "rolled_back", "aborted"}

        wait_until(has_ended, timeout_s=400, what=f"rollout of {version} ended")
        self.report.rollouts[version] = figures(self._stage.rollout(rollout_id), time.monotonic() - begun)

    def _roll_out_first(self) -> None:
        self._roll_out(FIRST)
        found = self.report.rollouts[FIRST]
        self._check(
            f"{FIRST} is committed on all {len(device_names())} devices",
            found.state == "completed" and found.devices_committed == len(device_names()),
        )
        wait_until(
            lambda: all(camera.tally.judged > 0 for camera in self._stage.cameras.values()),
            timeout_s=60,
            what="every camera has answers",
        )

    def _roll_out_bad(self) -> None:
        self._convert(ExposureCompensated(self._network).eval(), BAD)
        self._story.tell(f"{BAD} passed the converter's gate: the exam has no picture of the sun")
        self._roll_out(BAD)
        found = self.report.rollouts[BAD]
        self._check(
            f"{BAD} was rolled back by its canary, and the rollout stopped by itself",
            found.state == "rolled_back" and found.devices_rolled_back == 1,
        )
        self._check(
            f"no device served {BAD}, and none but the canary was offered it",
            found.devices_that_served_it == 0 and found.devices_committed == 0,
        )
        versions = {device["version"] for device in self._stage.devices().values()}
        self._check(f"every device runs {FIRST}", versions == {FIRST})

    def _drift(self) -> None:
        stage = self._stage
        wait_until(
            lambda: len(stage.drift()) == len(SITES) and all(site["state"] == "ok" for site in stage.drift().values()),
            timeout_s=240,
            what="the detector has enough data and says OK for both sites",
            on_timeout=lambda: json.dumps(stage.drift()),
        )
        before = stage.drift()
        stage.smear_lenses()
        self._story.tell("both sites are OK; now the lenses are smeared")
        wait_until(
            lambda: stage.drift()[SMEARED_SITE]["state"] == "drift",
            timeout_s=300,
            what=f"the detector says DRIFT for site {SMEARED_SITE}",
            on_timeout=lambda: json.dumps(stage.drift()),
        )
        for site, verdict in stage.drift().items():
            self.report.drift[site] = DriftFigures(
                before=before[site]["state"],
                verdict=verdict["state"],
                signal=verdict["signal"],
                windows_to_detect=verdict["windows_to_detect"],
                rows_to_detect=verdict["rows_to_detect"],
            )
            self._story.tell(f"site {site}: {verdict['state'].upper()} {verdict['signal'] or ''}".rstrip())
        others = [site for site in SITES if site != SMEARED_SITE]
        self._check(
            f"DRIFT for site {SMEARED_SITE}, with the signal named",
            self.report.drift[SMEARED_SITE].verdict == "drift" and bool(self.report.drift[SMEARED_SITE].signal),
        )
        self._check(
            f"nothing for site {', '.join(others)}", all(self.report.drift[site].verdict == "ok" for site in others)
        )

    def _retrain(self) -> None:
        stage, result_path = self._stage, self._directory / "retraining.json"
        labeller = Labeller(stage.operator, self._dataset.field.labels)
        labeller.start()
        wait_until(
            lambda: bool(self._retrains()),
            timeout_s=300,
            what="retrain.requested",
            on_timeout=lambda: f"{labeller.labelled} samples labelled; {labeller.failure or ''}",
        )
        labeller.stop()
        event = self._retrains()[0]
        self._story.tell(f"retrain.requested: {event['reason']}")

        def has_result() -> bool:
            if self._retrains()[0]["exit_code"] not in {None, 0}:
                raise EdgeOpsError(f"retraining failed: {self._retrains()[0]['log']}")
            return result_path.exists()

        wait_until(has_result, timeout_s=900, what="retraining")
        result = msgspec.json.decode(result_path.read_bytes(), type=Result)
        self.report.accuracy["after"] = result.accuracy
        self.report.retrain = RetrainFigures(
            events=len(self._retrains()),
            samples=event["samples"],
            labels=event["labels"],
            error_rate=event["error_rate"],
            lineage=result.lineage,
        )
        self._story.tell(f"{RETRAINED} is better on drifted images and holds on clean ones; it goes out")
        self._follow(RETRAINED, result.rollout)
        found = self.report.rollouts[RETRAINED]
        self._check(
            f"{RETRAINED} is committed on all {len(device_names())} devices",
            found.state == "completed" and found.devices_committed == len(device_names()),
        )

    def _retrains(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._stage.operator.get("/api/v1/retrains")["retrains"]
        return found

    def _recover(self) -> None:
        stage = self._stage
        wait_until(
            lambda: all(site["state"] == "ok" and site["version"] == RETRAINED for site in stage.drift().values()),
            timeout_s=300,
            what="the detector says OK for both sites",
            on_timeout=lambda: json.dumps(stage.drift()),
        )
        for site, verdict in stage.drift().items():
            self.report.drift[site].after = verdict["state"]
        self._check(
            "the drift has cleared at both sites", all(site.after == "ok" for site in self.report.drift.values())
        )
        self._check("retraining was requested exactly once", len(self._retrains()) == 1)

    def _stop_traffic(self) -> None:
        self._stage.stop_cameras()
        seen = total(self._stage.tallies())
        self.report.requests, self.report.failed_requests = seen.requests, seen.failed
        self.report.checks[f"none of the {seen.requests} requests failed"] = seen.failed == 0
        if seen.failed:
            self._story.tell(f"{seen.failed} requests failed, one of them: {seen.last_failure}")

    def _check(self, name: str, holds: bool) -> None:
        self.report.checks[name] = holds
        if not holds:
            raise EdgeOpsError(f"expected: {name}")


def prepare(directory: Path) -> None:
    """Make the directory of a run, and empty it when it holds an earlier one.

    Raises:
        EdgeOpsError: It holds something else.
    """
    marker = directory / ".edgeops-demo"
    if directory.exists() and any(directory.iterdir()) and not marker.exists():
        raise EdgeOpsError(f"{directory}: expected an empty directory or one of an earlier run, found other files")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    marker.touch()


def _int8_of(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each int8 variant with the float one of its format."""
    return [(name, name.removesuffix("int8") + "float") for name in names if name.endswith("-int8")]
