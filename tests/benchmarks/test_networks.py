import torch
from torch import nn

from benchmarks.converter.networks import DepthwiseNet, rescale_channels


def test_rescaled_channels_differ_a_thousandfold_and_answers_stay() -> None:
    torch.manual_seed(0)
    network = DepthwiseNet(nn.ReLU, is_residual=False).eval()
    images = torch.rand(8, 1, 28, 28)
    with torch.inference_mode():
        before, narrow = network(images), network.stem(images)
        rescale_channels(network, generator=torch.Generator().manual_seed(4))
        after, wide = network(images), network.stem(images)

    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)
    peaks = (wide.amax((0, 2, 3)) / narrow.amax((0, 2, 3))).nan_to_num(nan=1)
    assert peaks.max() / peaks.min() > 1000
