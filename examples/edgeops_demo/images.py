"""The demo's images: Fashion-MNIST, whole when it is on the machine, otherwise the subset that comes with the package.

Images are uint8, shape ``(n, 1, 28, 28)``; labels int64, shape ``(n,)``. Held-out images are split once: those that the cameras
see (*field*, from which samples are labelled and trained on) and those that decide (*exam*, never trained on).
"""

import gzip
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeops.errors import ConfigError

WHOLE_SET = Path("/usr/share/datasets/fashion-mnist")
SUBSET = Path(__file__).parent / "data" / "fashion-subset.npz"
LABELS = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")
SIDE = 28

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Split(msgspec.Struct, frozen=True):
    """Images with their labels."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, start: int, stop: int) -> "Split":
        """The images from ``start`` up to ``stop``."""
        return Split(self.images[start:stop], self.labels[start:stop])


class Dataset(msgspec.Struct, frozen=True):
    """Training images, what the cameras see, and what decides."""

    origin: str
    train: Split
    field: Split
    exam: Split


def load_dataset(directory: Path | None = None) -> Dataset:
    """Load the whole set from a directory, or where Debian's package puts it, or the subset of the package.

    Raises:
        ConfigError: A directory was given, and the four files are not in it.
    """
    if directory is None and not WHOLE_SET.is_dir():
        return _load_subset()
    directory = directory or WHOLE_SET
    try:
        train = Split(*_read_pair(directory, "train"))
        held_out = Split(*_read_pair(directory, "t10k"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory}: expected Fashion-MNIST as four .gz files in IDX format: {error}") from error
    return _split(f"whole set, {len(train)} + {len(held_out)} images", train, held_out)


def write_subset(whole: Path, target: Path, *, train: int = 6000, held_out: int = 2000) -> None:
    """Write the first images of the whole set as the subset that the package ships."""
    train_images, train_labels = _read_pair(whole, "train")
    test_images, test_labels = _read_pair(whole, "t10k")
    np.savez_compressed(
        target,
        train_images=train_images[:train],
        train_labels=train_labels[:train].astype(np.uint8),
        test_images=test_images[:held_out],
        test_labels=test_labels[:held_out].astype(np.uint8),
    )


def _load_subset() -> Dataset:
    with np.load(SUBSET) as arrays:
        train = Split(arrays["train_images"], arrays["train_labels"].astype(np.int64))
        held_out = Split(arrays["test_images"], arrays["test_labels"].astype(np.int64))
    return _split(f"subset, {len(train)} + {len(held_out)} images", train, held_out)


def _split(origin: str, train: Split, held_out: Split) -> Dataset:
    half = len(held_out) // 2
    return Dataset(origin, train, held_out.take(0, half), held_out.take(half, len(held_out)))


def _read_pair(directory: Path, prefix: str) -> tuple[Images, Labels]:
    with gzip.open(directory / f"{prefix}-images-idx3-ubyte.gz") as stream:
        images = np.frombuffer(stream.read(), dtype=np.uint8, offset=16).reshape(-1, 1, SIDE, SIDE)
    with gzip.open(directory / f"{prefix}-labels-idx1-ubyte.gz") as stream:
        labels = np.frombuffer(stream.read(), dtype=np.uint8, offset=8).astype(np.int64)
    if len(images) != len(labels):
        raise ValueError(f"{prefix}: {len(images)} images, {len(labels)} labels")
    return images, labels
