"""What the demo's server runs when retraining is requested: train on the labelled samples, convert, compare, publish, roll out.

Reads the CloudEvent on standard input. Everything that it needs is in the workspace that the demo prepared: the weights of the
release that drifted, the release key, and the exam. The new version goes out only when it is better on the drifted images and no
worse than two points on the clean ones, with the variant that devices run.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from edgeops.bundle import Bundle, open_bundle
from edgeops.errors import EdgeOpsError, GateError
from edgeops.files import write_durably
from edgeops.signing import SigningKey
from edgeops_demo.images import Dataset, Split, load_dataset
from edgeops_demo.network import FashionNet, train
from edgeops_demo.people import Operator
from edgeops_demo.release import CALIBRATION_IMAGES, exams, make_release, measure
from edgeops_demo.report import Accuracy
from edgeops_demo.rollouts import order

logger = logging.getLogger(__name__)

VERSION = "1.2.0"
STEPS = 800
LEARNING_RATE = 3e-3
SHARE_OF_SAMPLES = 0.3
"""Of what it sees in training."""
CLEAN_LOSS_ALLOWED = 0.02
"""As a share of images; on a thousand of them, a difference of one point is within the noise."""


class Workspace(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo hands over, as ``workspace.json``.

    Attributes:
        images: Directory of the whole set; ``None`` for the subset.
        weights: State of the network that drifted.
        incumbent: Its bundle; likewise ``release_key`` and ``output``, the directory of the new bundle.
        sites: All sites of the fleet.
        result: Where the outcome is written.
    """

    images: str | None
    weights: str
    incumbent: str
    release_key: str
    output: str
    result: str
    sites: tuple[str, ...]
    server: str
    token: str
    seed: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it, as ``retraining.json``."""

    rollout: str
    digest: str
    accuracy: Accuracy
    lineage: dict[str, str | None]


def retrain(event: Mapping[str, Any], workspace: Workspace) -> Result:
    """Train, convert, compare, publish and roll out.

    Args:
        event: The CloudEvent's document.
        workspace: What the demo handed over.

    Raises:
        GateError: The new version is not better.
    """
    data = event["data"]
    dataset = load_dataset(Path(workspace.images) if workspace.images else None)
    samples = read_samples(Path(data["dataset"]["path"]))
    network = FashionNet()
    network.load_state_dict(torch.load(workspace.weights, weights_only=True))
    logger.info("training on %d labelled samples of %s and %d images", len(samples), data["cohort"], len(dataset.train))
    mixed, weights = mix(dataset.train, samples)
    train(network, mixed, steps=STEPS, learning_rate=LEARNING_RATE, seed=workspace.seed, weights=weights)
    incumbent = open_bundle(Path(workspace.incumbent))
    conversion = make_release(
        network,
        VERSION,
        calibration=calibration(dataset, samples),
        evaluation=evaluation(dataset, sites=workspace.sites, drifted=data["cohort"].partition("=")[2]),
        output=Path(workspace.output),
        key=SigningKey.load(Path(workspace.release_key)),
        parent=incumbent.digest,
        dataset=data["dataset"]["digest"],
        on_step=logger.info,
    )
    found = measure(network, conversion.bundle, dataset)
    check_better(found, incumbent, dataset)
    operator = Operator(workspace.server, workspace.token)
    operator.publish(conversion.bundle)
    rollout = operator.post("/api/v1/rollouts", order(VERSION))["id"]
    lineage = conversion.bundle.manifest.lineage
    return Result(
        rollout=rollout,
        digest=conversion.bundle.digest,
        accuracy=found,
        lineage={"parent": lineage.parent, "dataset": lineage.dataset, "event": event["id"]},
    )


def read_samples(directory: Path) -> Split:
    """The labelled samples of a dataset."""
    with np.load(directory / "samples.npz") as arrays:
        return Split(arrays["image"], arrays["labels"].astype(np.int64))


def mix(images: Split, samples: Split) -> tuple[Split, np.ndarray]:
    """Training images and samples together, with how often each is drawn."""
    mixed = Split(
        np.concatenate([images.images, samples.images.reshape(-1, *images.images.shape[1:])]),
        np.concatenate([images.labels, samples.labels]),
    )
    weights = np.concatenate(
        [
            np.full(len(images), (1 - SHARE_OF_SAMPLES) / len(images)),
            np.full(len(samples), SHARE_OF_SAMPLES / len(samples)),
        ]
    )
    return mixed, weights


def calibration(dataset: Dataset, samples: Split) -> Split:
    """Images of both conditions for the int8 ranges."""
    half = CALIBRATION_IMAGES // 2
    clean, drifted = dataset.train.take(0, half), samples.take(0, half)
    shape = clean.images.shape[1:]
    return Split(
        np.concatenate([clean.images, drifted.images.reshape(-1, *shape)]),
        np.concatenate([clean.labels, drifted.labels]),
    )


def evaluation(dataset: Dataset, *, sites: tuple[str, ...], drifted: str) -> dict[str, np.ndarray]:
    """The exam as each site sees it; the strata of the new drift reference are the sites."""
    clean, smeared = exams(dataset)
    parts = {site: smeared if site == drifted else clean for site in sites}
    return {
        "image": np.concatenate([part.images for part in parts.values()]),
        "labels": np.concatenate([part.labels for part in parts.values()]),
        "stratum": np.concatenate([np.full(len(part), site) for site, part in parts.items()]),
    }


def check_better(found: Accuracy, incumbent: Bundle, dataset: Dataset) -> None:
    """Hold every variant of the new version against the incumbent's.

    Raises:
        GateError: One is not better on drifted images, or lost too much on clean ones.
    """
    before = measure(None, incumbent, dataset)
    for variant, drifted in before.drifted.items():
        clean = before.clean[variant]
        if found.drifted[variant] <= drifted or found.clean[variant] < clean - CLEAN_LOSS_ALLOWED:
            raise GateError(
                f"{variant}: expected more than {drifted:.1%} on drifted and at least {clean - CLEAN_LOSS_ALLOWED:.1%} on "
                f"clean images, got {found.drifted[variant]:.1%} and {found.clean[variant]:.1%}"
            )


def main() -> None:
    """Entry point: ``python -m edgeops_demo.retraining WORKSPACE.json < event.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    workspace = msgspec.json.decode(parser.parse_args().workspace.read_bytes(), type=Workspace)
    try:
        result = retrain(json.load(sys.stdin), workspace)
    except EdgeOpsError as error:
        sys.exit(f"retraining: {error}")
    write_durably(Path(workspace.result), msgspec.json.encode(result))


if __name__ == "__main__":
    main()
