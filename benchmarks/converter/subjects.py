"""The models that are measured: each with what it was trained on, what to calibrate with, and how its answers are judged."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.converter import data, networks, photographs
from benchmarks.converter.data import Classes, Part, Splits
from benchmarks.converter.training import Course, class_loss, copy_loss, trained
from edgeops.processing import Tensors

CACHE = Path("build/converter")
"""Where trained weights are kept; without it they are trained anew."""


class Task(StrEnum):
    """What an answer is worth."""

    CLASSES = "classes"
    """The top class is the label or is not."""
    FIDELITY = "fidelity"
    """There are no labels; the float model's top class is what counts."""
    ANOMALIES = "anomalies"
    """The error of reconstruction tells faults from health; area under the ROC curve."""


class LeftOutError(Exception):
    """What a subject or a rival needs is not installed; the message says how to."""


@dataclass(frozen=True)
class Rows:
    """Rows of every input, and the labels where there are any."""

    inputs: Tensors
    labels: Classes | None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Subject:
    """A model that is ready to be converted.

    Attributes:
        name: Short, for the command line.
        title: What it is.
        module: In eval mode.
        task: How it is judged.
        calibration: Rows of every input.
        search: Rows that candidates may be compared on.
        test: Rows that are read once, after everything has been decided.
        origin: Of the rows.
    """

    name: str
    title: str
    module: nn.Module
    task: Task
    calibration: Tensors
    search: Rows
    test: Rows
    origin: str

    @property
    def weights(self) -> int:
        """Entries of weight matrices and kernels: the least number of bytes that int8 can have."""
        return sum(value.numel() for value in self.module.parameters() if value.ndim > 1)


def prepare(name: str) -> Subject:
    """Train a subject, or take its weights from an earlier run.

    Raises:
        LeftOutError: It needs what is not installed.
    """
    return SUBJECTS[name](name)


def _fashion(
    name: str, *, title: str, make: Callable[[], nn.Module], course: Course, finish: Callable[[nn.Module], None] | None = None
) -> Subject:  # fmt: skip
    splits = data.fashion()
    module = trained(name.removesuffix("-rescaled"), make, splits.train, course, class_loss, cache=CACHE)
    if finish is not None:
        finish(module)
    return _subject(name, title, module, task=Task.CLASSES, wire="image", splits=splits)


def _keywords(name: str) -> Subject:
    splits = data.keywords()
    course = Course(steps=700, rate=4e-3)
    module = trained(name, networks.KeywordNet, splits.train, course, class_loss, cache=CACHE)
    return _subject(
        name, "DS-CNN for keywords, MLPerf Tiny's shape", module, task=Task.CLASSES, wire="features", splits=splits
    )


def _autoencoder(name: str) -> Subject:
    splits = data.machine_sounds()
    course = Course(steps=4000, rate=3e-3, batch=128, weight_decay=1e-4)
    module = trained(name, networks.Autoencoder, splits.train, course, copy_loss, cache=CACHE)
    return _subject(
        name,
        "fully connected autoencoder, MLPerf Tiny's shape",
        module,
        task=Task.ANOMALIES,
        wire="spectrum",
        splits=splits,
    )


def _efficientnet(name: str) -> Subject:
    gone = photographs.missing()
    if gone:
        raise LeftOutError(f"{photographs.SITE} has no {', '.join(gone)}; {photographs.INSTALL}")
    calibrated = 100
    rows = photographs.crops(300, seed=0)
    return Subject(
        name=name,
        title="EfficientNet-Lite0, ImageNet weights",
        module=photographs.efficientnet(),
        task=Task.FIDELITY,
        calibration={"image": rows[:calibrated]},
        search=Rows({"image": photographs.crops(100, seed=1)}, None),
        test=Rows({"image": rows[calibrated:]}, None),
        origin="crops of the pictures in scikit-image",
    )


def _subject(name: str, title: str, module: nn.Module, *, task: Task, wire: str, splits: Splits) -> Subject:
    def rows(part: Part) -> Rows:
        return Rows({wire: part.rows}, part.labels)

    return Subject(
        name=name,
        title=title,
        module=module,
        task=task,
        calibration={wire: splits.calibration.rows},
        search=rows(splits.search),
        test=rows(splits.test),
        origin=splits.origin,
    )


def _rescale(module: nn.Module) -> None:
    """As :func:`benchmarks.converter.networks.rescale_channels`, always with the same factors."""
    networks.rescale_channels(module, generator=torch.Generator().manual_seed(4))


def _plain() -> nn.Module:
    return networks.DepthwiseNet(nn.ReLU, is_residual=False)


def _residual() -> nn.Module:
    return networks.DepthwiseNet(nn.ReLU6, is_residual=True)


_COURSE = Course(steps=1300, rate=6e-3)

SUBJECTS: dict[str, Callable[[str], Subject]] = {
    "depthwise": partial(_fashion, title="residual depthwise net, ReLU6", make=_residual, course=_COURSE),
    "resnet": partial(_fashion, title="small ResNet", make=networks.SmallResNet, course=_COURSE),
    "transformer": partial(
        _fashion,
        title="small vision transformer",
        make=networks.SmallVisionTransformer,
        course=Course(steps=3600, rate=2e-3),
    ),
    "mobilenetv3": partial(
        _fashion,
        title="MobileNetV3-like net, HardSwish and SE",
        make=networks.MobileNetV3Like,
        course=Course(steps=1000, rate=4e-3),
    ),
    "plain": partial(_fashion, title="depthwise net, ReLU, before it is rescaled", make=_plain, course=_COURSE),
    "plain-rescaled": partial(
        _fashion, title="the same, channels rescaled by 10^U(-2, 2)", make=_plain, course=_COURSE, finish=_rescale
    ),
    "keywords": _keywords,
    "autoencoder": _autoencoder,
    "efficientnet": _efficientnet,
}
"""Name → what makes it ready; in the order of the report."""
