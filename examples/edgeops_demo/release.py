"""From a network to a release: train, convert, and measure on the exam under both conditions of the cameras."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgeops.bundle import Bundle
from edgeops.manifest import Scale
from edgeops.signing import SigningKey
from edgeops_converters import Conversion, convert, evaluate
from edgeops_demo.cameras import smear_and_dim
from edgeops_demo.images import LABELS, Dataset, Split
from edgeops_demo.network import accuracy
from edgeops_demo.report import Accuracy

MODEL = "fashion"
CALIBRATION_IMAGES = 300
EXAM_IMAGES = 2000

Arrays = Mapping[str, NDArray[np.generic]]


def exams(dataset: Dataset) -> tuple[Split, Split]:
    """Held-out images as a clean camera sees them, and as a smeared one does."""
    clean = dataset.exam.take(0, EXAM_IMAGES)
    return clean, Split(smear_and_dim(clean.images), clean.labels)


def make_release(
    network: nn.Module,
    version: str,
    *,
    calibration: Split,
    evaluation: Mapping[str, NDArray[np.generic]],
    output: Path,
    key: SigningKey,
    parent: str | None = None,
    dataset: str | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Conversion:
    """Convert a network to a signed bundle with float and int8 variants for both runtimes.

    Args:
        network: Takes images in [0, 1]; the bundle takes uint8.
        version: Of the bundle.
        calibration: Images that set the int8 ranges.
        evaluation: ``image``, ``labels`` and optionally ``stratum`` (site) of held-out images.
        output: The bundle's directory.
        key: The release key.
        parent: Manifest digest of the bundle that it was retrained from.
        dataset: Digest of the dataset manifest that it was retrained on.
        on_step: Told what the converter is doing.

    Raises:
        GateError: A variant is slower than float or lost too much.
    """
    return convert(
        network,
        data={"image": calibration.images},
        evaluation=evaluation,
        name=MODEL,
        version=version,
        output=output,
        labels=LABELS,
        preprocess=(Scale(tensor="image", factor=1 / 255),),
        keys=(key,),
        stratum_attribute="site" if "stratum" in evaluation else "",
        parent=parent,
        dataset=dataset,
        on_step=on_step,
        license="Apache-2.0",
    )


def measure(network: nn.Module | None, bundle: Bundle, dataset: Dataset) -> Accuracy:
    """Exam accuracy of the network, where it is given, and of every variant, clean and drifted."""
    clean, drifted = exams(dataset)
    return Accuracy(clean=_measure(network, bundle, clean), drifted=_measure(network, bundle, drifted))


def _measure(network: nn.Module | None, bundle: Bundle, exam: Split) -> dict[str, float]:
    figures = {"float": accuracy(network, exam)} if network is not None else {}
    for name, result in evaluate(bundle, {"image": exam.images, "labels": exam.labels}).items():
        if result.accuracy is not None:
            figures[name] = result.accuracy.value
    return figures
