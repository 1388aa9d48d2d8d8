"""Rules about what goes in: types, rows, and dimensions that are not fixed."""

from collections.abc import Iterator

from edgeops_converters.doctor.diagnosis import Finding, Level, Where
from edgeops_converters.doctor.subject import Subject

_UNUSUAL = {
    "FP64": ("no integer kernel reads float64", "take float32: .float() in the model and .astype(numpy.float32) in the data"),
    "FP16": ("no integer kernel reads float16", "take float32; int8 is made from it"),
    "INT64": ("twice the memory of int32 on a device, which converts it", "int32 is enough for indices"),
}  # fmt: skip


def examine_interface(subject: Subject) -> Iterator[Finding]:
    """Everything that the inputs say."""
    for spec in subject.inputs:
        if spec.dtype in _UNUSUAL:
            what, change = _UNUSUAL[spec.dtype]
            level = Level.NOTE if spec.dtype == "INT64" else Level.COSTS
            yield Finding(level=level, rule="input-dtype", layer=spec.name, kind="input", what=what, change=change)
        if names := subject.dynamic.get(spec.name):
            yield Finding(
                level=Level.COSTS,
                rule="dynamic-dimension",
                where=Where.LITERT,
                layer=spec.name,
                kind="input",
                what=f"{', '.join(names)} may vary: TFLite gets the size that the data have",
                change="fix the size, or pad to it",
            )
    if subject.batch is not None:
        rows = "one row" if subject.batch == 1 else f"{subject.batch} rows"
        yield Finding(
            level=Level.NOTE,
            rule="fixed-batch",
            what=f"the model takes {rows} at a time, and no other number",
            change="x.shape[0] or -1 in reshapes",
        )
