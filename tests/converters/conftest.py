"""One trained model, its data, and one conversion of it that all tests read."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgeops.manifest import Scale, Softmax
from edgeops.signing import SigningKey
from edgeops_converters import Conversion, convert
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.sources import open_model

TINY = Path(__file__).parents[2] / "examples" / "convert" / "tiny.py"
NAMES = ("north west", "north east", "south west", "south east")


def load_file(path):
    spec = importlib.util.spec_from_file_location(f"converters_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny():
    """The example's module: ``quarters`` makes data."""
    return load_file(TINY)


@pytest.fixture(scope="session")
def models():
    """The models of ``models.py``."""
    return load_file(Path(__file__).with_name("models.py"))


@pytest.fixture(scope="session")
def network(tiny):
    """The trained model."""
    return tiny.tiny()


@pytest.fixture(scope="session")
def calibration(tiny):
    return {"image": tiny.quarters(64, seed=1)[0]}


@pytest.fixture(scope="session")
def evaluation(tiny):
    images, labels = tiny.quarters(500, seed=2)
    return {"image": images, "labels": labels}


@pytest.fixture(scope="session")
def signing_key():
    return SigningKey.generate()


def as_bytes(data):
    """The images as a camera gives them; ``BYTES`` undoes it."""
    return {**data, "image": np.clip(np.round((data["image"] + 1) * 80), 0, 255).astype(np.uint8)}


@pytest.fixture(scope="session")
def byte_calibration(calibration):
    """The calibration data as the bundle of ``conversion`` takes it."""
    return as_bytes(calibration)


@pytest.fixture(scope="session")
def byte_evaluation(evaluation):
    """The evaluation data as the bundle of ``conversion`` takes it."""
    return as_bytes(evaluation)


@pytest.fixture(scope="session")
def onnx_source(network, evaluation, tmp_path_factory):
    """The trained model as an ``.onnx`` file, which converts in a fraction of the time."""
    target = tmp_path_factory.mktemp("sources") / "quarters.onnx"
    rows = {"image": evaluation["image"][:4]}
    return EXPORTERS["onnx"].export(open_model(network, rows), rows, target).path


BYTES = Scale(tensor="image", factor=1 / 80, offset=-1.0)


@pytest.fixture(scope="session")
def conversion(network, calibration, evaluation, signing_key, tmp_path_factory) -> Conversion:
    """All four variants, with pre- and post-processing, labels, strata and a signature."""
    sites = np.where(np.arange(len(evaluation["labels"])) % 3 == 0, "harbour", "market")
    return convert(
        network,
        data=as_bytes(calibration),
        evaluation={**as_bytes(evaluation), "stratum": sites},
        name="quarters",
        version="1.0.0",
        output=tmp_path_factory.mktemp("bundles") / "quarters-1.0.0",
        labels=NAMES,
        preprocess=(BYTES,),
        postprocess=(Softmax(tensor="output"),),
        keys=(signing_key,),
        stratum_attribute="site",
        parent="sha256:" + "a" * 64,
        dataset="sha256:" + "b" * 64,
        license="Apache-2.0",
        force=True,  # a busy machine is not what these tests are about
    )
