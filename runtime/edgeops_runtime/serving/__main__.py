"""``python -m edgeops_runtime.serving``: the way into :mod:`edgeops_runtime.serving.worker`, with the imports on the fast lane.

They make a hundred thousand objects that stay, and looking through them for garbage again and again is a seventh of a start.
"""

import gc
import sys


def main() -> None:
    """Run a worker; see :func:`edgeops_runtime.serving.worker.main`, which has the garbage collected again once it is ready."""
    gc.disable()
    from edgeops_runtime.serving.worker import main as work  # noqa: PLC0415 - see above

    work(*sys.argv[1:])


if __name__ == "__main__":
    main()
