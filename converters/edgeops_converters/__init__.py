"""The workstation: from a trained model to a signed bundle.

:func:`convert` compresses, measures, gates and writes; :func:`evaluate` measures an existing bundle on other rows. Heavy
libraries are imported when they are first needed.
"""

from edgeops_converters.convert import Conversion, convert
from edgeops_converters.evaluation import Score, evaluate
from edgeops_converters.report import Report, VariantReport

__all__ = ["Conversion", "Report", "Score", "VariantReport", "convert", "evaluate"]
