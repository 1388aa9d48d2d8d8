"""What one part of EdgeOps lends to the command line, imported on use: a device needs neither torch nor a database."""

import importlib
from typing import Any

from edgeops.errors import MissingExtraError


def from_part(module: str, attribute: str, *, extra: str) -> Any:  # noqa: ANN401 - whatever the part has under that name
    """Import a name from a part that may not be installed.

    Raises:
        MissingExtraError: The part, or a library that it imports, is not installed.
    """
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or module, extra) from error
