"""The contract between the parts of EdgeOps: bundles, messages and topics.

The device (:mod:`edgeops_runtime`), the workstation (:mod:`edgeops_converters`) and the server (:mod:`edgeops_fleet`) import
this package and never each other.
"""

from importlib.metadata import version

__version__ = version("edgeops")

__all__ = ["__version__"]
