"""A pruned module has smaller shapes and answers as the module in which nothing reads the channels."""

import numpy as np
import pytest
import torch

from edgeops.errors import RecipeError
from edgeops_converters.training.channels import read_channels
from edgeops_converters.training.pruning import (
    choose,
    cut,
    cut_layers,
    difference,
    importance,
    masked,
    multiply_accumulates,
    shapes_of,
    tried,
)
from edgeops_converters.training.step import open_step
from edgeops_converters.training.tracing import trace

NETS = ["Residual", "Dense", "Excited", "Grouped", "Up", "Transformer", "Written"]


def opened(nets, name, rows):
    module = nets.seeded(getattr(nets, name))
    return module, tried(module, read_channels(trace(module, rows, is_dynamic=False)), rows)


def scores(channels):
    count = 1 + max(int(ids.max()) for ids in channels.axes.values())
    return np.random.default_rng(0).random(count)


@pytest.mark.parametrize("name", NETS)
def test_the_pruned_module_is_smaller_and_answers_as_the_masked_one(nets, rows, name):
    module, channels = opened(nets, name, rows)
    share = {"Transformer": 0.1, "Written": 0.3}.get(name, 0.4)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    gone = choose(channels, shapes_of(module), scores(channels), share=share)

    smaller = cut(module, channels, gone)

    image = torch.from_numpy(rows["image"])
    with torch.no_grad():
        expected, answered = masked(module, channels, gone)(image), smaller(image)
        assert not torch.allclose(module(image), answered, atol=1e-3), "the channels had no say"
    torch.testing.assert_close(answered, expected, rtol=1e-5, atol=1e-5)
    costs = [multiply_accumulates(channels.products, shapes_of(one)) for one in (module, smaller)]
    assert costs[1] <= (1 - share) * costs[0]
    for layer in cut_layers(channels, module, smaller):
        assert all(after <= size for after, size in zip(layer.after, layer.before, strict=True))
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items()), "the original changed"


@pytest.mark.parametrize("name", NETS)
def test_what_is_left_of_every_group_is_a_multiple_of_eight(nets, rows, name):
    module, channels = opened(nets, name, rows)
    gone = choose(channels, shapes_of(module), scores(channels), share=0.1)
    left = [
        int((~np.isin(group.channels, gone)).sum()) for group in channels.groups if np.isin(group.channels, gone).any()
    ]
    assert left
    assert all(count % 8 == 0 and count > 0 for count in left)


def test_no_block_goes_that_need_not(nets, rows):
    module, channels = opened(nets, "Residual", rows)
    shapes = shapes_of(module)
    gone = choose(channels, shapes, scores(channels), share=0.5)
    for group in channels.groups:
        lost = group.channels[np.isin(group.channels, gone)]
        if len(lost):
            back = cut(module, channels, np.setdiff1d(gone, lost[np.argsort(scores(channels)[lost])][-8:]))
            costs = [multiply_accumulates(channels.products, shapes_of(one)) for one in (module, back)]
            assert costs[1] > costs[0] / 2, group.layers


def test_the_layers_say_their_new_sizes(nets, rows):
    module, channels = opened(nets, "Residual", rows)
    smaller = cut(module, channels, choose(channels, shapes_of(module), scores(channels), share=0.6))
    depthwise = smaller.depthwise[0]
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels == depthwise.weight.shape[0] < 32
    assert smaller.head.in_features == smaller.head.weight.shape[1] == smaller.down[1].num_features < 32


def test_a_size_that_is_written_out_is_named_and_its_layers_stay(nets, rows):
    _, channels = opened(nets, "Written", rows)
    (reason,) = [reason for group, reason in channels.fixed if "fixed.0" in group.layers and "head" in group.layers]
    assert "forward has sizes written out" in reason
    assert "'head' (Linear)" in reason
    assert [group.layers for group in channels.groups] == [("fixed.0", "free.0", "free.1")]


def test_a_cut_that_a_forward_does_not_follow_is_seen(nets, rows):
    module = nets.seeded(nets.Written)
    channels = read_channels(trace(module, rows, is_dynamic=False))
    (group,) = [group for group in channels.groups if "head" in group.layers]
    assert "mat1 and mat2" in difference(module, channels, group.channels[:8], rows)


def test_more_than_can_go_is_refused_with_what_could(nets, rows):
    module, channels = opened(nets, "Written", rows)
    with pytest.raises(
        RecipeError, match=r"99% of the multiply-accumulates cannot go; .* would; left alone: fixed\.0.*head"
    ):
        choose(channels, shapes_of(module), scores(channels), share=0.99)


def test_a_module_without_layers_to_cut_is_refused(rows):
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = torch.nn.GRU(28, 32, batch_first=True)

        def forward(self, image):
            return self.cell(image[:, 0])[0][:, -1]

    module = Recurrent().eval()
    channels = read_channels(trace(module, rows, is_dynamic=False))
    with pytest.raises(RecipeError, match="no convolution and no linear layer"):
        choose(channels, shapes_of(module), np.zeros(1), share=0.1)


def test_multiply_accumulates_are_those_of_the_formula(nets, rows):
    module, channels = opened(nets, "Excited", rows)
    by_hand = 14 * 14 * 32 * 9 + 32 * 16 + 16 * 32 + 32 * 10
    assert multiply_accumulates(channels.products, shapes_of(module)) == by_hand


def test_a_channel_that_nothing_hears_is_the_least_important(nets, rows, step):
    module, channels = opened(nets, "Residual", rows)
    with torch.no_grad():
        module.head.weight[:, 5] = 0
    found = importance(module, channels, open_step(step))
    group = next(group for group in channels.groups if "head" in group.layers)
    silent = channels.axes["head.weight", 1][5]
    assert found[silent] == 0
    assert (found[group.channels] > 0).sum() > len(group.channels) / 2
    assert all(parameter.grad is None for parameter in module.parameters())
