"""Changes of resolution: blur-pooling down, pixel shuffle up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BlurPool(nn.Module):
    """Halve `(N, C, H, W)` with the [1, 3, 3, 1] binomial filter, stride 2 (StyleGAN2, arXiv 1912.04958).

    One zero pixel of padding on each side, which at even sides is TensorFlow's "SAME".
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(row, row) / row.sum() ** 2, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, 4, 4)
        return F.conv2d(x, kernel, stride=2, padding=1, groups=channels)


class PixelShuffleUp(nn.Module):
    """Double a map: pixel shuffle, then a 1x1 convolution where a quarter of the channels is not the width that follows.

    `(N, C, H, W)` to `(N, outputs, 2H, 2W)`; C must be a multiple of 4. After HiT (arXiv 2106.07631).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        if inputs % 4:
            raise ValueError(f"a width of {inputs} can't be pixel-shuffled: make every width but the last a multiple of 4")
        self.project = nn.Conv2d(inputs // 4, outputs, 1) if inputs // 4 != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.pixel_shuffle(x, 2))
