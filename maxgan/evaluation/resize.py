"""The ways in which evaluations bring images to what a network looks at; scores of different ways differ.

- `clean`: bicubic, antialiased, clamped, as clean-fid does with PIL (arXiv 2104.11222).
- `tf1`: bilinear with TensorFlow 1's grid, no antialiasing, as in the graph of the 2015 Inception.
- `tf2`: bilinear with half-pixel centres, no antialiasing, as `tf.image.resize` of TensorFlow 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 255.0
# ITU-R BT.601, as PIL converts to grey.
LUMA = (0.299, 0.587, 0.114)


def clean(x: Tensor, side: int) -> Tensor:
    """Grey levels 0..255, float `(N, C, H, W)`, as `(N, C, side, side)`: PIL's bicubic of float images, clamped."""
    if x.shape[-2:] == (side, side):
        return x
    resized = F.interpolate(x, (side, side), mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp_(0, LEVELS)


def tf1(x: Tensor, side: int) -> Tensor:
    """Float `(N, C, H, W)` as `(N, C, side, side)`: pixel i of the result lies at i * H / side of the image.

    Bit for bit what `tf.image.resize_bilinear(align_corners=False)` of TensorFlow 1 computes: rows first.
    """
    taps = [_taps(given, side) for given in x.shape[-2:]]
    # On a CPU one image after the other, which its cache holds: three to eight times as fast as all at once.
    parts = x.split(1 if x.device.type == "cpu" else len(x))
    return torch.cat([_blend(_blend(part, 3, *taps[1]), 2, *taps[0]) for part in parts])


def _taps(given: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each of `side` pixels, the two of `given` that it lies between, and the share of the second."""
    position = torch.arange(side, dtype=torch.float32) * torch.tensor(given / side, dtype=torch.float32)
    low = position.long()
    return low, (low + 1).clamp_max(given - 1), position - low


def _blend(x: Tensor, axis: int, low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    left = x.index_select(axis, low.to(x.device))
    step = x.index_select(axis, high.to(x.device)).sub_(left)
    return step.mul_(share.to(x).view(-1, *[1] * (3 - axis))).add_(left)


def tf2(x: Tensor, side: int) -> Tensor:
    """Float `(N, C, H, W)` as `(N, C, side, side)`."""
    if x.shape[-2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)


RESIZES = {"clean": clean, "tf1": tf1, "tf2": tf2}


def convert_channels(x: Tensor, channels: int) -> Tensor:
    """Convert images `(N, C, H, W)` between grey and RGB; raise ValueError for other channels."""
    given = x.shape[1]
    if given == channels:
        return x
    if given == 1 and channels == 3:
        return x.expand(-1, 3, -1, -1)
    if given == 3 and channels == 1:
        return (x * x.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    raise ValueError(
        f"the extractor looks at {channels} channels and the images have {given}: "
        "only 1 and 3 can be converted, so set data.channels or choose another extractor"
    )
