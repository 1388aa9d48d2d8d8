"""What happens to an image between the scene and the sensor: a clean lens, a smeared one in poor light, a flash of sun.

Pure numpy on uint8 images of shape ``(n, 1, h, w)``.
"""

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]

BLUR_SIGMA_PIXELS = 1.2
DIM_FACTOR = 0.35


def smear_and_dim(images: Images) -> Images:
    """A smeared lens in poor light: Gaussian blur, then a third of the brightness."""
    radius = 4
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / BLUR_SIGMA_PIXELS) ** 2)
    taps /= taps.sum()
    blurred = _convolve(_convolve(images.astype(np.float32), taps, axis=2), taps, axis=3)
    return np.round(blurred * DIM_FACTOR).astype(np.uint8)


def overexpose(images: Images) -> Images:
    """Sun in the lens: nearly every pixel is saturated."""
    return np.maximum(images, 253).astype(np.uint8)


def _convolve(images: NDArray[np.float32], taps: NDArray[np.float64], *, axis: int) -> NDArray[np.float32]:
    radius = len(taps) // 2
    widths = [(0, 0)] * images.ndim
    widths[axis] = (radius, radius)
    padded = np.pad(images, widths)
    size = images.shape[axis]
    total = np.zeros_like(images)
    for offset, tap in enumerate(taps):
        total += tap * np.take(padded, range(offset, offset + size), axis=axis)
    return total
