"""NNCF on one ONNX file, in a process of its own: ``nncf_process SITE SOURCE ROWS TARGET [--best]``; prints the seconds as JSON.

Loading the libraries and the file is not counted.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx


@click.command()
@click.argument("site", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("rows", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--best", is_flag=True, help="Full bias correction, and what onnxruntime has integer kernels for.")
def main(site: Path, source: Path, rows: Path, target: Path, *, best: bool) -> None:
    """Quantise SOURCE, calibrated on the arrays in ROWS, to TARGET."""
    sys.path.append(str(site))  # after this environment's own, so that numpy and onnxruntime are the same for all
    nncf = importlib.import_module("nncf")
    with np.load(rows) as arrays:
        given = dict(arrays)
    count = len(next(iter(given.values())))
    model = onnx.load(source)
    is_transformer = any(node.op_type == "Softmax" for node in model.graph.node)
    advanced = _for_onnxruntime() if best else None
    begun = time.perf_counter()
    dataset = nncf.Dataset([{name: array[i : i + 1] for name, array in given.items()} for i in range(count)])
    made = nncf.quantize(
        model,
        dataset,
        subset_size=count,
        fast_bias_correction=not best,
        model_type=nncf.ModelType.TRANSFORMER if best and is_transformer else None,  # as its documentation advises
        advanced_parameters=advanced,
    )
    seconds = time.perf_counter() - begun
    onnx.save(made, target)
    print(json.dumps({"seconds": seconds}))


def _for_onnxruntime() -> Any:  # noqa: ANN401 - a library that is no dependency
    """The default gives inputs of depthwise convolutions a scale a channel, which onnxruntime runs in float or refuses."""
    parameters = importlib.import_module("nncf.quantization.advanced_parameters")
    return parameters.AdvancedQuantizationParameters(
        activations_quantization_params=parameters.QuantizationParameters(per_channel=False),
    )


if __name__ == "__main__":
    main()
