"""Whether int8 is better after training through its rounding than after as many steps of plain training, in real int8 files.

``python -m pytest tests/converters/training/test_gain.py --log-cli-level INFO`` prints the figures of ``docs/guides/convert.md``.
"""

import copy
import logging

import numpy as np
import pytest
import torch

from edgeops_converters.sessions import run_rows
from edgeops_converters.training import compress
from edgeops_converters.training.distillation import Teacher
from edgeops_converters.training.recovery import train
from edgeops_converters.training.step import open_step
from edgeops_demo.images import load_dataset

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # each network is trained three times

_QAT_STEPS, _LEARNING_RATE, _DISTILL = 200, 1e-3, 0.5


def plainly_trained(module, step):
    """From the same weights as many steps as the rehearsal has, at its rate, with its batches and its teacher."""
    module = copy.deepcopy(module)
    teacher = Teacher(copy.deepcopy(module), _DISTILL)
    train(module, open_step(step), teacher, name="plain", steps=_QAT_STEPS, learning_rate=_LEARNING_RATE / 10, seed=0)
    return module.eval()


@pytest.mark.parametrize(
    ("name", "first_steps"), [("Spread", 300), ("Spread", 600), ("Excited", 300), ("Residual", 300), ("Grouped", 300)]
)
def test_int8_gains_where_it_loses_much_and_keeps_what_it_has_elsewhere(name, first_steps, trained, step, integers):
    module, dataset = trained(name, first_steps), load_dataset()
    rows = {"image": ((dataset.train.images[:256] / 255 - 0.286) / 0.353).astype(np.float32)}
    images = (np.concatenate([dataset.field.images, dataset.exam.images]) / 255 - 0.286) / 0.353
    labels = np.concatenate([dataset.field.labels, dataset.exam.labels])
    exam = {"image": images.astype(np.float32)}

    def right(one):
        file = integers(one, rows, ["onnx"])["onnx"]
        with torch.no_grad():
            plain = np.concatenate([one(part).argmax(1).numpy() for part in torch.from_numpy(exam["image"]).split(500)])
        answered = run_rows(file.open().run, exam, batch=500)["output"].argmax(axis=1)
        return plain == labels, answered == labels

    before, control = right(module), right(plainly_trained(module, step))
    rehearsed = right(
        compress(
            module, step=step, data=rows, qat_steps=_QAT_STEPS, learning_rate=_LEARNING_RATE, distill=_DISTILL
        ).module
    )
    difference = rehearsed[1].astype(np.float64) - control[1]
    gain, half = difference.mean(), 1.96 * difference.std() / np.sqrt(len(labels))
    accuracies = [
        f"{title} {100 * one[0].mean():.1f} % and {100 * one[1].mean():.1f} %"
        for title, one in (("before", before), ("plain", control), ("rehearsed", rehearsed))
    ]
    logger.info("%s, %d steps, %d rows, float and int8: %s", name, first_steps, len(labels), "; ".join(accuracies))
    logger.info(
        "%s, %d steps, int8 rehearsed over plain: %+.2f ± %.2f points", name, first_steps, 100 * gain, 100 * half
    )
    if name == "Spread":
        assert gain - half > 0.02
    else:
        assert gain + half > -0.005
