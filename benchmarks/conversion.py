"""The converter: its time, and what int8 costs and gives against float in the same format."""

from benchmarks.figures import Figure, interleaved_us
from benchmarks.subject import Subject
from edgeops_runtime import load


def measure(subject: Subject, rounds: int) -> list[Figure]:
    """Time of a conversion; latency, accuracy and size of int8 against float."""
    figures = [Figure("conversion to four variants, with evaluation and report", subject.conversion_s, "s")]
    row = {"image": subject.dataset.exam.images[:1]}
    bundle = subject.bundle
    for format_name in ("onnx", "tflite"):
        names = {precision: f"{format_name}-{precision}" for precision in ("int8", "float")}
        models = {name: load(bundle.path, variant=name) for name in names.values()}
        medians = interleaved_us({name: lambda model=model: model.infer(row) for name, model in models.items()}, rounds)
        sizes = {name: bundle.manifest.files[bundle.manifest.variant(name).file].size_bytes for name in names.values()}
        clean = subject.accuracy.clean
        ours, other = names["int8"], names["float"]
        figures += [
            Figure(f"{ours}: one call", medians[ours], "µs", other, medians[other]),
            Figure(f"{ours}: exam accuracy", 100 * clean[ours], "%", "float in torch", 100 * clean["float"]),
            Figure(f"{ours}: file", sizes[ours] / 1000, "kB", other, sizes[other] / 1000),
        ]
        for model in models.values():
            model.close()
    return figures
