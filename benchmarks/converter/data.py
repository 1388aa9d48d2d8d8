"""What the benchmark trains and measures on: Fashion-MNIST, and data that is made here.

Everything is split three ways: to train (some of these rows calibrate as well, as a user would have it), to choose among
candidates (*search*), and to measure once at the end (*test*). No row is in two of the three.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeops_demo.images import load_dataset

Floats = NDArray[np.float32]
Classes = NDArray[np.int64]

CALIBRATION_ROWS = 300
"""What NNCF takes by default; every tool gets the same."""


@dataclass(frozen=True)
class Part:
    """Rows of the one input with their labels; ``labels`` of shape ``(n,)``."""

    rows: Floats
    labels: Classes

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, start: int, stop: int) -> "Part":
        """The rows from ``start`` up to ``stop``."""
        return Part(self.rows[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class Splits:
    """One data set in parts.

    Attributes:
        origin: What it is, for the report.
        calibration: Taken from the training rows, as a user would.
        search: Held out; candidates may be compared on it.
        test: Held out; read once.
    """

    origin: str
    train: Part
    calibration: Part
    search: Part
    test: Part


def fashion() -> Splits:
    """Fashion-MNIST in [0, 1], shape ``(n, 1, 28, 28)``: the whole set of Debian's package, else the demo's subset.

    The last twelfth of the training images is to search on, so that every held-out image is left to test on.
    """
    found = load_dataset()
    train = Part((found.train.images / 255).astype(np.float32), found.train.labels)
    held_out = Part(
        (np.concatenate([found.field.images, found.exam.images]) / 255).astype(np.float32),
        np.concatenate([found.field.labels, found.exam.labels]),
    )
    kept = len(train) * 11 // 12
    return Splits(
        origin=f"Fashion-MNIST, {found.origin}",
        train=train.take(0, kept),
        calibration=train.take(0, CALIBRATION_ROWS),
        search=train.take(kept, len(train)),
        test=held_out,
    )


def keywords() -> Splits:
    """Made words in MLPerf Tiny's shape: 49 frames of 10 cepstral features, ``(n, 1, 49, 10)``, 12 classes.

    A word is a path through two to five sounds, each a point in cepstral space. A speaker shifts all sounds, speaks faster or
    slower, louder or softer, and begins when it pleases; a room adds noise. Ten words are classes of their own, thirty others
    are *unknown*, and there is *silence*.
    """
    random = np.random.default_rng(10)
    spread = 1 / (1 + 0.35 * np.arange(10))  # cepstra fall off with their index
    sounds = random.normal(size=(14, 10)) * spread
    words = [random.integers(0, len(sounds), random.integers(2, 6)) for _ in range(40)]

    def part(count: int) -> Part:
        labels = random.integers(0, 12, count)
        rows = np.stack([_utterance(int(label), words, sounds, spread, random) for label in labels])
        return Part(rows[:, None].astype(np.float32), labels.astype(np.int64))

    train = part(12_000)
    return Splits("made words", train, train.take(0, CALIBRATION_ROWS), part(2000), part(5000))


def _utterance(
    label: int, words: list[NDArray[np.int64]], sounds: Floats, spread: Floats, random: np.random.Generator
) -> NDArray[np.float64]:
    """One row, shape ``(49, 10)``; classes 0 to 9 are words, 10 is unknown, 11 silence."""
    frames, unknown, silence = 49, 10, 11
    noise = random.normal(size=(frames, 10)) * spread * random.uniform(0.6, 1.8)
    if label == silence:
        return noise
    word = words[int(random.integers(unknown, len(words))) if label == unknown else label]
    targets = sounds[word] + random.normal(size=10) * spread * 0.5  # the speaker
    targets = targets + random.normal(size=targets.shape) * spread * 0.45  # how it is said this time
    length = int(random.uniform(0.45, 0.95) * frames)
    begin = int(random.integers(0, frames - length + 1))
    # Sounds of uneven length that glide into each other.
    ends = np.cumsum(random.uniform(0.6, 1.4, len(word)))
    places = np.linspace(0, ends[-1], length)
    middles = ends - np.diff(ends, prepend=0) / 2
    path = np.stack([np.interp(places, middles, column) for column in targets.T], axis=1)
    loudness = np.sin(np.linspace(0.15, np.pi - 0.15, length))[:, None] ** 0.5 * random.uniform(0.7, 1.3)
    noise[begin : begin + length] += path * loudness
    return noise


def machine_sounds() -> Splits:
    """Made log spectra of a machine in MLPerf Tiny's shape: five frames of 128 bands, ``(n, 640)``; the label is 1 for a fault.

    A healthy machine hums at a speed and a load: harmonics of the speed, a broad hum that grows with the load, noise. A fault
    adds weak side bands to the harmonics, lets one harmonic wander, or rattles in a band that is quiet otherwise. Training rows
    are healthy.
    """
    random = np.random.default_rng(11)
    train = _sounds(10_000, 0.0, random)
    return Splits(
        "made machine sounds",
        train,
        train.take(0, CALIBRATION_ROWS),
        _sounds(2000, 0.5, random),
        _sounds(5000, 0.5, random),
    )


def _sounds(count: int, faulty: float, random: np.random.Generator) -> Part:
    frames, bands, harmonics = 5, 128, 12
    labels = (random.random(count) < faulty).astype(np.int64)
    kind = np.where(labels == 1, random.integers(1, 4, count), 0)  # 0 healthy, 1 side bands, 2 wandering, 3 rattle
    speed = random.uniform(7, 10, (count, 1)) + np.cumsum(random.normal(size=(count, frames)) * 0.02, axis=1)
    load = random.uniform(0.3, 1, (count, 1, 1))
    severity = random.uniform(0.1, 0.6, (count, 1, 1))
    axis = np.arange(bands)[None, None]
    power = 0.02 + 0.3 * load * np.exp(-axis / 40)
    for index in range(1, harmonics + 1):
        wander = np.where((kind == 2) & (index == 3), random.normal(size=count) * 1.5, 0)[:, None]
        centre = (speed * index + wander)[:, :, None]
        height = load / index**0.7
        power = power + height * np.exp(-((axis - centre) ** 2) / 1.5)
        side = np.where(kind == 1, severity[:, 0, 0], 0)[:, None, None]
        power = power + side * height * np.exp(-((np.abs(axis - centre) - 3.5) ** 2) / 1.5)
    rattle = np.where(kind == 3, severity[:, 0, 0], 0)[:, None, None] * random.random((count, frames, 1))
    power = power + 0.35 * rattle * np.exp(-((axis - 112) ** 2) / 60)
    # Log of a power that fluctuates as that of an averaged periodogram does.
    spectra = np.log(power * random.gamma(12, 1 / 12, power.shape))
    return Part(((spectra + 2) / 1.5).reshape(count, -1).astype(np.float32), labels)
