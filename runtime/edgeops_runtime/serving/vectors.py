"""Arrays in files of a bundle: golden vectors and the requests that a candidate is shown."""

from pathlib import Path

import numpy as np

from edgeops.bundle import Bundle
from edgeops.errors import ManifestError
from edgeops_runtime.engines.engine import Tensors


def read_golden(bundle: Bundle) -> Tensors | None:
    """The arrays of the golden vectors; ``None`` where the file is not there.

    Raises:
        ManifestError: The file is no ``.npz``, or lacks an input.
    """
    path = bundle.file(bundle.manifest.golden)
    if not path.exists():
        return None
    arrays = read_arrays(path)
    missing = [spec.name for spec in bundle.manifest.inputs if f"input/{spec.name}" not in arrays]
    if missing:
        raise ManifestError(f"{path}: expected the arrays input/<name> of every input; {missing} are missing")
    return arrays


def read_arrays(path: Path) -> Tensors:
    """The arrays of an ``.npz``; pickled objects are refused.

    Raises:
        ManifestError: It is none.
    """
    try:
        # Opened here: numpy leaves the file of a damaged archive open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy, zipfile and zlib have a dozen ways to say that a file is damaged
        raise ManifestError(f"{path}: expected an .npz of arrays: {error}") from error
