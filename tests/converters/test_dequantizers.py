"""Conformance of every dequantizer: the float form answers nearly what the int8 file answers, with no integers left."""

import pytest

from edgeops.errors import ExportError
from edgeops_converters.audit import audit
from edgeops_converters.dequantizers import DEQUANTIZERS
from edgeops_converters.exporters import EXPORTERS
from edgeops_converters.fidelity import sqnr_db
from edgeops_converters.quantization import quantize
from edgeops_converters.sessions import run_rows
from edgeops_converters.sources import READERS, as_float, in_float, open_model
from edgeops_converters.targets import Target


@pytest.fixture(scope="module", params=DEQUANTIZERS)
def quantized(request, network, evaluation, tmp_path_factory):
    """The trained network as an int8 file, and the rows it was calibrated with."""
    folder, form = tmp_path_factory.mktemp("quantized"), request.param
    rows = {"image": evaluation["image"][:100]}
    exported = EXPORTERS[form].export(open_model(network, rows), rows, folder / f"float.{form}")
    made = quantize(exported, rows, folder / f"int8.{form}", cpu=Target.X86)
    return made.path, rows, run_rows(exported.open().run, rows, batch=exported.batch)["output"]


def test_the_float_form_answers_as_the_integers_do(quantized, tmp_path):
    path, rows, original = quantized
    file = READERS[path.suffix](path)
    assert file.precision == "int8"
    form = DEQUANTIZERS[file.format](file)
    assert form.precision == "float32"
    assert READERS[path.suffix](form.write(tmp_path / path.name).path).precision == "float32"
    assert audit(form.write(tmp_path / path.name)).integer == 0
    model = open_model(path, rows)
    given = run_rows(in_float(model, rows).answer, rows, batch=model.batch)
    name = next(iter(given))
    assert sqnr_db(run_rows(model.answer, rows, batch=model.batch), given) > 20
    assert sqnr_db({name: original}, given) > 20


def test_a_float_form_can_be_quantised_anew(quantized, tmp_path):
    path, rows, original = quantized
    model = open_model(path, rows)
    exported = EXPORTERS[model.file.format].export(in_float(model, rows), rows, tmp_path / "float")
    again = quantize(exported, rows, tmp_path / "int8", cpu=Target.X86)
    given = run_rows(again.open().run, rows, batch=again.batch)
    assert sqnr_db({next(iter(given)): original}, given) > 20


def test_a_float_file_has_nothing_to_take_apart(quantized, tmp_path):
    path, rows, _ = quantized
    model = open_model(path, rows)
    plain = open_model(as_float(model, rows).write(tmp_path / f"float{path.suffix}").path, rows)
    with pytest.raises(ExportError, match="is float already; there is nothing to quantise anew"):
        in_float(plain, rows)
