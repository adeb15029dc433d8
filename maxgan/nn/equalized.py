"""Convolutions and linear layers with the equalised learning rate (arXiv 1710.10196, 1912.04958), or without."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

# StyleGAN2 multiplies each activation by it, so that leaky ReLU keeps the size of its input.
ACTIVATION_GAIN = math.sqrt(2)


class EqualizedConv2d(nn.Conv2d):
    """A convolution whose weights are N(0, 1) and are scaled by gain / sqrt(fan-in) where they are used.

    Adam's steps don't depend on the size of a gradient; with all weights of deviation 1 they change every layer at the
    same relative pace. The bias is scaled by `gain` alone: a leaky ReLU behind it then gives what StyleGAN2 has, `gain`
    times the activation of the layer of gain 1.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        self.gain = gain

    def reset_parameters(self) -> None:
        _reset(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, *_scaled(self), padding=self.padding)


class EqualizedLinear(nn.Linear):
    """A linear layer on `(N, inputs)` whose weights are scaled as EqualizedConv2d's are."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__(inputs, outputs)
        self.gain = gain

    def reset_parameters(self) -> None:
        _reset(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *_scaled(self))


def _reset(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _scaled(layer: EqualizedConv2d | EqualizedLinear) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias as they are used."""
    weight = layer.weight * (layer.gain / math.sqrt(layer.weight[0].numel()))
    return weight, None if layer.bias is None else layer.bias * layer.gain


def make_conv(
    inputs: int, outputs: int, kernel: int, bias: bool = True, equalized: bool = False, activated: bool = True
) -> nn.Conv2d:
    """Return a convolution of odd `kernel` that keeps the sides of a map.

    Args:
        equalized: with the equalised learning rate.
        activated: whether an activation follows, for the gain of an equalised layer.
    """
    if equalized:
        return EqualizedConv2d(inputs, outputs, kernel, bias, ACTIVATION_GAIN if activated else 1.0)
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def make_linear(inputs: int, outputs: int, equalized: bool = False, activated: bool = True) -> nn.Linear:
    """Return a linear layer; for the arguments see `make_conv`."""
    if equalized:
        return EqualizedLinear(inputs, outputs, ACTIVATION_GAIN if activated else 1.0)
    return nn.Linear(inputs, outputs)
