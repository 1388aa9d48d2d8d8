"""The demo's data: the shipped subset is what it says, and held-out images that decide are never those that cameras see."""

from pathlib import Path

import numpy as np
import pytest

from edgeops.errors import ConfigError
from edgeops_demo import images
from edgeops_demo.cameras import overexpose, smear_and_dim
from edgeops_demo.images import Dataset, Split, load_dataset


@pytest.fixture
def subset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Dataset:
    monkeypatch.setattr(images, "WHOLE_SET", tmp_path / "absent")
    return load_dataset()


def test_subset_has_six_thousand_and_two_thousand_images_of_ten_classes(subset: Dataset) -> None:
    assert (len(subset.train), len(subset.field), len(subset.exam)) == (6000, 1000, 1000)
    for split in (subset.train, subset.field, subset.exam):
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (1, 28, 28)
        assert set(np.unique(split.labels)) == set(range(10))


def test_no_exam_image_is_in_the_field_or_in_training(subset: Dataset) -> None:
    def fingerprints(split: Split) -> set[bytes]:
        return {image.tobytes() for image in split.images}

    assert not fingerprints(subset.exam) & (fingerprints(subset.field) | fingerprints(subset.train))


@pytest.mark.skipif(not images.WHOLE_SET.is_dir(), reason="the whole Fashion-MNIST is not on this machine")
def test_subset_is_the_beginning_of_the_whole_set(subset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    whole = load_dataset()
    assert len(whole.train) == 60_000
    assert np.array_equal(whole.train.images[:6000], subset.train.images)
    assert np.array_equal(whole.train.labels[:6000], subset.train.labels)


def test_directory_without_the_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_dataset(tmp_path)


def test_smeared_lens_is_dimmer_and_softer_and_stays_an_image(subset: Dataset) -> None:
    scenes = subset.exam.images[:100]
    seen = smear_and_dim(scenes)
    assert (seen.dtype, seen.shape) == (np.uint8, scenes.shape)
    assert seen.mean() == pytest.approx(0.35 * scenes.mean(), rel=0.05)
    assert np.abs(np.diff(seen.astype(float))).mean() < 0.3 * np.abs(np.diff(scenes.astype(float))).mean()


def test_sun_saturates_nearly_every_pixel(subset: Dataset) -> None:
    assert overexpose(subset.exam.images[:10]).min() >= 253
