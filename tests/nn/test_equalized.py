from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maxgan.nn.equalized import EqualizedConv2d, EqualizedLinear, make_conv, make_linear


@pytest.mark.parametrize(("activated", "gain"), [(True, math.sqrt(2)), (False, 1.0)])
def test_a_convolution_is_that_of_its_scaled_weights(activated: bool, gain: float) -> None:
    torch.manual_seed(0)
    layer = make_conv(5, 4, 3, equalized=True, activated=activated).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, 5, 6, 7, dtype=torch.float64)
    # StyleGAN2: activation(w / sqrt(fan-in) * x + b) * gain; leaky ReLU is positively homogeneous.
    plain = F.conv2d(x, layer.weight / math.sqrt(5 * 9), layer.bias, padding=1)
    torch.testing.assert_close(F.leaky_relu(layer(x), 0.2), F.leaky_relu(plain, 0.2) * gain)


@pytest.mark.parametrize(("activated", "gain"), [(True, math.sqrt(2)), (False, 1.0)])
def test_a_linear_layer_is_that_of_its_scaled_weights(activated: bool, gain: float) -> None:
    layer = make_linear(5, 4, equalized=True, activated=activated).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, dtype=torch.float64)
    plain = x @ layer.weight.T / math.sqrt(5) + layer.bias
    torch.testing.assert_close(F.leaky_relu(layer(x), 0.2), F.leaky_relu(plain, 0.2) * gain)


def test_weights_have_deviation_one_whatever_the_fan_in_and_maps_keep_their_size() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 64, 16, 16)
    for layer in (make_conv(64, 64, 3, equalized=True), make_conv(64, 64, 1, bias=False, equalized=True)):
        assert layer.weight.std().item() == pytest.approx(1, rel=0.05)
        assert layer.bias is None or not layer.bias.any()
        inner = F.leaky_relu(layer(x), 0.2)[:, :, 1:-1, 1:-1]  # the border sees zeros
        assert inner.square().mean().item() == pytest.approx(1, rel=0.1)


def test_without_the_option_layers_are_plain() -> None:
    assert type(make_conv(3, 4, 3)) is nn.Conv2d
    assert type(make_linear(3, 4)) is nn.Linear
    assert isinstance(make_conv(3, 4, 3, equalized=True), EqualizedConv2d)
    assert isinstance(make_linear(3, 4, equalized=True), EqualizedLinear)
    for equalized in (False, True):
        assert make_conv(3, 4, 1, bias=False, equalized=equalized).bias is None
        assert make_conv(3, 4, 3, equalized=equalized)(torch.zeros(1, 3, 5, 6)).shape == (1, 4, 5, 6)
