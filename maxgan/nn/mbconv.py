"""MBConv with squeeze-and-excitation, pre-activation form, as the official MaxViT has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from maxgan.config import GeluForm, Padding, Shortcut
from maxgan.nn.activation import make_gelu
from maxgan.nn.depthwise import grouped_conv2d
from maxgan.nn.fuse import fold_after, fold_before
from maxgan.nn.norm import make_norm


def same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zero-pad `(N, C, H, W)` as TensorFlow's "SAME" does: the odd row and column go after the image."""
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


class SameConv2d(nn.Conv2d):
    """Conv2d with TensorFlow's "SAME" padding; at stride 1 and odd kernels it is the usual symmetric padding.

    Attributes:
        penalised: the second derivative will be wanted, as by a gradient penalty; set it where there are groups.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True):
        symmetric = stride == 1 and kernel % 2 == 1
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if symmetric else 0, groups=groups, bias=bias)
        self.symmetric = symmetric
        self.even_weight: Tensor | None = None
        self.penalised = False

    def forward(self, x: Tensor) -> Tensor:
        if self.even_weight is not None and x.shape[2] % 2 == x.shape[3] % 2 == 0:
            return F.conv2d(x, self.even_weight, self.bias, self.stride, 1, groups=self.groups)
        if not self.symmetric:
            x = same_padding(x, self.kernel_size[0], self.stride[0])
        if not self.penalised:
            return super().forward(x)
        assert self.bias is None and isinstance(self.padding, tuple)
        return grouped_conv2d(x, self.weight, self.stride, self.padding, self.groups)

    def fuse(self) -> None:
        """On a CPU, let a 3x3 kernel at stride 2 spare the padded copy of even maps.

        With a row and a column of zeros before it, it is a 4x4 kernel whose padding is one on each side. Training keeps
        to the copy: the gradient of such a kernel is slower.
        """
        if self.kernel_size == (3, 3) and self.stride == (2, 2) and self.weight.device.type == "cpu":
            even = F.pad(self.weight.detach(), (1, 0, 1, 0))
            self.even_weight = even.contiguous(memory_format=torch.channels_last)


def padded_conv(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    bias: bool = True,
    padding: Padding = "same",
) -> nn.Conv2d:
    """Return a convolution of odd `kernel`: `same` pads as TensorFlow does, `symmetric` kernel // 2 on every side."""
    if padding == "same":
        return SameConv2d(inputs, outputs, kernel, stride, groups, bias)
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


class SqueezeExcitation(nn.Module):
    """Scale channels by sigmoid(W2 SiLU(W1 mean(x))) (arXiv 1709.01507), on `(N, C, H, W)`."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return x * self.expand(F.silu(self.reduce(gate))).sigmoid()


class MBConv(nn.Module):
    """Inverted residual: norm, 1x1 expand, norm, GELU, depthwise 3x3, norm, GELU, SE, 1x1 project, plus a shortcut.

    Args:
        inputs: input channels.
        outputs: output channels.
        stride: 1, or 2 to halve the map (in the depthwise convolution; the shortcut is mean-pooled).
        norm: name of the norm; without one the convolutions that it follows have a bias.
        norm_group: images per batch statistic.
        drop_path: stochastic depth of the residual branch.
        expansion: hidden channels as a multiple of `outputs`.
        se_ratio: hidden channels of SE as a fraction of `outputs`.
        gelu: form of GELU.
        padding: padding of the depthwise convolution.
        shortcut: at stride 2, `pool2` is a mean over 2 x 2; `pool3` a mean over 3 x 3, padded by one zero on each side
            that counts, with a 1x1 convolution whatever the widths.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        norm: str = "batch",
        norm_group: int | None = None,
        drop_path: float = 0.0,
        expansion: int = 4,
        se_ratio: float = 0.25,
        gelu: GeluForm = "tanh",
        padding: Padding = "same",
        shortcut: Shortcut = "pool2",
    ) -> None:
        super().__init__()
        hidden = expansion * outputs
        bias = norm == "none"
        overlapping = stride == 2 and shortcut == "pool3"
        self.gelu = make_gelu(gelu)
        self.pre_norm = make_norm(norm, inputs, norm_group)
        self.expand = nn.Conv2d(inputs, hidden, 1, bias=bias)
        self.expand_norm = make_norm(norm, hidden, norm_group)
        self.depthwise = padded_conv(hidden, hidden, 3, stride, groups=hidden, bias=bias, padding=padding)
        self.depthwise_norm = make_norm(norm, hidden, norm_group)
        self.se = SqueezeExcitation(hidden, max(1, int(se_ratio * outputs)))
        self.project = nn.Conv2d(hidden, outputs, 1)
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(3, 2, 1) if overlapping else nn.AvgPool2d(2)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs or overlapping else nn.Identity()
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        skip = self.shortcut(self.pool(x))
        x = self.expand(self.pre_norm(x))
        x = self.depthwise(self.gelu(self.expand_norm(x)))
        x = self.se(self.gelu(self.depthwise_norm(x)))
        return skip + self.drop_path(self.project(x))

    def fuse(self) -> None:
        """Fold the three norms into the convolutions around them, where they are BatchNorms."""
        if isinstance(self.pre_norm, nn.BatchNorm2d):
            assert isinstance(self.expand_norm, nn.BatchNorm2d) and isinstance(self.depthwise_norm, nn.BatchNorm2d)
            self.expand = fold_after(fold_before(self.pre_norm, self.expand), self.expand_norm)
            self.depthwise = fold_after(self.depthwise, self.depthwise_norm)
            self.pre_norm = self.expand_norm = self.depthwise_norm = nn.Identity()
