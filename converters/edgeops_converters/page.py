"""The HTML report; replaced below."""

from edgeops.signals import Reference
from edgeops_converters.report import Report


def render_page(report: Report, reference: Reference) -> str:
    return "<html></html>"
