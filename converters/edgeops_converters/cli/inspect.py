"""``edgeops inspect FILE.onnx`` and ``FILE.tflite``: what the command of the contract hands on to the converter."""

from pathlib import Path

import click
import msgspec

from edgeops_converters.audit import Audit
from edgeops_converters.inspection import End, Inspection
from edgeops_converters.rehearsal import inspect_apart


def show_model_file(path: Path, *, as_json: bool) -> None:
    """Show a model file on standard output.

    Raises:
        ExportError: It is damaged.
    """
    inspection = inspect_apart(path)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(inspection), indent=2))
        return
    for line in _describe(inspection):
        click.echo(line)


def _describe(inspection: Inspection) -> list[str]:
    sizes = inspection.sizes_bytes
    parts = ("weights", "biases", "constants", "rest")
    lines = [
        inspection.path,
        f"  digest      {inspection.digest}",
        f"  size        {inspection.size_bytes / 1000:.1f} kB",
        *(f"  {name:<11} {version}" for name, version in inspection.versions.items() if version),
        *(f"  external    {name}: {size / 1000:.1f} kB" for name, size in inspection.external_data.items()),
        *(f"  input       {_end(end)}" for end in inspection.inputs),
        *(f"  output      {_end(end)}" for end in inspection.outputs),
        "  bytes       " + ", ".join(f"{getattr(sizes, part) / 1000:.1f} kB {part}" for part in parts),
        "  operators   " + ", ".join(f"{count} {name}" for name, count in inspection.operators.items()),
        f"  engine      {inspection.engine}",
    ]
    lines += [f"  audit       {_audited(inspection.audit)}"] if inspection.audit is not None else []
    return lines + [f"  remark      {remark}" for remark in inspection.remarks]


def _audited(audit: Audit) -> str:
    """A float file has every layer in float; no need to name them all."""
    return audit.text if audit.integer else f"all {audit.total} convolutions and matrix products in float"


def _end(end: End) -> str:
    shape = ", ".join(str(size) for size in end.shape)
    scale = f", (x - {end.zero_point or 0}) * {end.scale:.6g}" if end.scale is not None else ""
    return f"{end.name}: {end.dtype} [{shape}]{scale}"
