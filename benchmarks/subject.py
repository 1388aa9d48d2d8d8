"""What is measured: the demo's network, trained briefly and converted once, and its bundle.

``python -m benchmarks.subject DIRECTORY`` leaves the bundle there.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from edgeops.bundle import Bundle, open_bundle
from edgeops.signing import SigningKey
from edgeops_demo.images import Dataset, load_dataset
from edgeops_demo.network import FashionNet, train
from edgeops_demo.release import CALIBRATION_IMAGES, exams, make_release, measure
from edgeops_demo.report import Accuracy

STEPS = 800


@dataclass(frozen=True)
class Subject:
    """The bundle with what is known of it.

    Attributes:
        conversion_s: How long the conversion to all four variants took, evaluation and report included.
    """

    bundle: Bundle
    dataset: Dataset
    accuracy: Accuracy
    conversion_s: float


def prepare(directory: Path) -> Subject:
    """Train, or take the weights of the last run, and convert."""
    directory.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset()
    weights = directory / f"network-{STEPS}-{len(dataset.train)}.pt"
    network = FashionNet()
    if weights.exists():
        network.load_state_dict(torch.load(weights, weights_only=True))
        network.eval()
    else:
        torch.manual_seed(1)
        train(network, dataset.train, steps=STEPS, learning_rate=6e-3, seed=1)
        torch.save(network.state_dict(), weights)
    clean, _ = exams(dataset)
    output = directory / f"fashion-{time.time_ns()}"
    begun = time.perf_counter()
    make_release(
        network,
        "1.0.0",
        calibration=dataset.train.take(0, CALIBRATION_IMAGES),
        evaluation={"image": clean.images, "labels": clean.labels},
        output=output,
        key=SigningKey.load_or_generate(directory / "release.key"),
    )
    seconds = time.perf_counter() - begun
    bundle = open_bundle(output)
    return Subject(bundle, dataset, measure(network, bundle, dataset), seconds)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
