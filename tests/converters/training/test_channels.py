"""Which channels go together is read from the graph of real networks."""

import pytest

from edgeops_converters.training.channels import OF_THE_CALLER, read_channels
from edgeops_converters.training.tracing import trace


def groups_of(module, rows):
    channels = read_channels(trace(module, rows, is_dynamic=False))
    return {(len(group.channels), group.layers) for group in channels.groups}, channels


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(
            "Residual",
            {
                (16, ("down.0", "expand.0", "project.0", "project.1", "skip", "stem.0", "stem.1")),
                (32, ("depthwise.0", "depthwise.1", "expand.0", "expand.1", "project.0")),
                (32, ("down.0", "down.1", "head", "skip")),
            },
            id="additions make channels one, depthwise convolutions hand them on",
        ),
        pytest.param(
            "Dense",
            {
                (16, ("hidden", "one.0", "one.1", "three.0", "two.0")),
                (16, ("hidden", "three.0", "two.0", "two.1")),
                (24, ("hidden", "three.0", "three.1")),
                (32, ("head", "hidden")),
            },
            id="concatenations keep them apart, flattening repeats them",
        ),
        pytest.param(
            "Excited",
            {(32, ("excite", "head", "scale", "squeeze", "stem.0", "stem.1")), (16, ("excite", "squeeze"))},
            id="a gate and a scale belong to what they multiply",
        ),
        pytest.param(
            "Grouped",
            {(16, ("grouped", "stem.0", "stem.1")), (32, ("grouped", "head"))},
            id="groups and halves are tied place by place",
        ),
        pytest.param(
            "Up",
            {(16, ("again", "stem", "up")), (24, ("last", "up"))},
            id="a layer that is used twice ties what it reads to what it gives",
        ),
        pytest.param("Transformer", {(64, ("narrow", "wide"))}, id="tokens have their channels along the last axis"),
    ],
)
def test_channels_that_depend_on_each_other_are_one_group(nets, rows, name, expected):
    found, _ = groups_of(nets.seeded(getattr(nets, name)), rows)
    assert found == expected


def test_what_is_not_known_is_left_alone_with_the_layer_and_the_operator(nets, rows):
    _, channels = groups_of(nets.seeded(nets.Transformer), rows)
    reasons = {reason for _, reason in channels.fixed}
    assert reasons == {
        OF_THE_CALLER,
        "norm (LayerNorm): nothing is known of channels through layer_norm",
        "attention (MultiheadAttention): nothing is known of channels through unflatten",
    }


def test_inputs_and_outputs_stay(nets, rows):
    _, channels = groups_of(nets.seeded(nets.Residual), rows)
    assert {(len(group.channels), group.layers) for group, _ in channels.fixed} == {(1, ("stem.0",)), (10, ("head",))}
