"""Changes of resolution: blur-pooling down, pixel shuffle up."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _blur_kernel(like: Tensor) -> Tensor:
    """Return the normalised [1, 3, 3, 1] outer product, one filter for each channel of `like`."""
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=like.dtype, device=like.device)
    return (torch.outer(row, row) / 64).expand(like.shape[1], 1, 4, 4)


class _Blur(torch.autograd.Function):
    """The strided blur as the linear map it is: its derivative is its transpose, whose derivative is the blur again.

    Left to autograd, the second derivative of a convolution with groups runs group by group, and computes gradients of
    the constant kernel: half the time of an R1 step of the discriminator on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, _blur_kernel(x), stride=2, padding=1, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _BlurTransposed.apply(grads[0])


class _BlurTransposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, _blur_kernel(x), stride=2, padding=1, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Blur.apply(grads[0])


def blur_pool(x: Tensor) -> Tensor:
    """Halve `(N, C, H, W)` of even sides with the [1, 3, 3, 1] binomial filter, stride 2 (StyleGAN2, arXiv 1912.04958).

    One zero pixel of padding on each side, which at even sides is TensorFlow's "SAME".
    """
    assert x.shape[2] % 2 == x.shape[3] % 2 == 0, tuple(x.shape)
    blurred: Tensor = _Blur.apply(x)
    return blurred


def pixel_shuffle(x: Tensor) -> Tensor:
    """Map `(N, C, H, W)` to `(N, C/4, 2H, 2W)`: TensorFlow's depth-to-space, whose channels are ordered (dy, dx, c).

    `torch.nn.functional.pixel_shuffle` orders them (c, dy, dx), gathers single numbers, and on a GPU returns a map that
    is not channels_last; here runs of C/4 channels move at once, and the result is channels_last everywhere.
    """
    n, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).reshape(n, height, width, 2, 2, channels // 4).transpose(2, 3)
    return x.reshape(n, 2 * height, 2 * width, channels // 4).permute(0, 3, 1, 2)


class PixelShuffleUp(nn.Module):
    """Double a map: pixel shuffle, then a 1x1 convolution where a quarter of the channels is not the width that
    follows.

    `(N, C, H, W)` to `(N, outputs, 2H, 2W)`. After HiT (arXiv 2106.07631).

    Raises:
        ValueError: if C is no multiple of 4.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        if inputs % 4:
            raise ValueError(
                f"a width of {inputs} can't be pixel-shuffled: make all widths but the last multiples of 4"
            )
        self.project = nn.Conv2d(inputs // 4, outputs, 1) if inputs // 4 != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.project(pixel_shuffle(x))
