"""The contract between the parts of EdgeOps: bundles, messages and topics.

The device (:mod:`edgeops_runtime`), the workstation (:mod:`edgeops_converters`) and the server (:mod:`edgeops_fleet`) import
this package and never each other.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
