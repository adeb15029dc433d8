from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maxgan.nn.mbconv import MBConv, SameConv2d, SqueezeExcitation, same_padding
from maxgan.nn.norm import LayerNorm2d


def naive_same(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's "SAME": ceil(side / stride) outputs; of the padding they need, the larger half follows the image."""
    n, _, height, width = x.shape
    kernel = weight.shape[-1]
    rows, columns = math.ceil(height / stride), math.ceil(width / stride)
    top = max((rows - 1) * stride + kernel - height, 0) // 2
    left = max((columns - 1) * stride + kernel - width, 0) // 2
    out = x.new_zeros(n, len(weight), rows, columns)
    for row in range(rows):
        for column in range(columns):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = row * stride + i - top, column * stride + j - left
                    if 0 <= y < height and 0 <= z < width:
                        out[:, :, row, column] += x[:, :, y, z] @ weight[:, :, i, j].T
    return out


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 8), (9, 5)])
def test_same_convolution_equals_tensorflows_definition(kernel: int, stride: int, height: int, width: int) -> None:
    layer = SameConv2d(2, 3, kernel, stride, bias=False).double()
    x = torch.randn(1, 2, height, width, dtype=torch.float64)
    torch.testing.assert_close(layer(x), naive_same(x, layer.weight, stride))


def test_same_padding_puts_the_odd_row_after_the_image_and_copies_nothing_needless() -> None:
    x = torch.ones(1, 1, 4, 4)
    padded = same_padding(x, kernel=3, stride=2)
    assert padded.shape == (1, 1, 5, 5)
    assert torch.equal(padded[:, :, :4, :4], x)
    assert padded[:, :, 4].eq(0).all()
    assert same_padding(x, kernel=2, stride=2) is x


def test_squeeze_and_excitation() -> None:
    layer = SqueezeExcitation(6, 2).double()
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    expected = torch.empty_like(x)
    for n in range(3):
        h = layer.reduce.weight[:, :, 0, 0] @ x[n].mean((1, 2)) + layer.reduce.bias
        h = h / (1 + torch.exp(-h))
        gate = layer.expand.weight[:, :, 0, 0] @ h + layer.expand.bias
        expected[n] = x[n] / (1 + torch.exp(-gate))[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def batch_norm(x: Tensor, norm: torch.nn.BatchNorm2d) -> Tensor:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    return (x - mean) / (var + 1e-3).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(8, 8, 1), (8, 8, 2), (8, 12, 1), (8, 12, 2)])
def test_equals_a_plain_composition(inputs: int, outputs: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = MBConv(inputs, outputs, stride).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    x = torch.randn(3, inputs, 6, 6, dtype=torch.float64)
    y = F.conv2d(batch_norm(x, layer.pre_norm), layer.expand.weight)
    y = gelu(batch_norm(y, layer.expand_norm))
    # Strided "SAME" of an even side: nothing before, one after.
    y = F.pad(y, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
    y = F.conv2d(y, layer.depthwise.weight, stride=stride, groups=4 * outputs)
    y = gelu(batch_norm(y, layer.depthwise_norm))
    gate = F.silu(F.conv2d(y.mean((2, 3), keepdim=True), layer.se.reduce.weight, layer.se.reduce.bias))
    y = y * torch.sigmoid(F.conv2d(gate, layer.se.expand.weight, layer.se.expand.bias))
    y = F.conv2d(y, layer.project.weight, layer.project.bias)
    skip = x if stride == 1 else x.unflatten(2, (3, 2)).unflatten(4, (3, 2)).mean((3, 5))
    if inputs != outputs:
        skip = F.conv2d(skip, layer.shortcut.weight, layer.shortcut.bias)
    torch.testing.assert_close(layer(x), skip + y)
    assert layer(x).shape == (3, outputs, 6 // stride, 6 // stride)


def test_widths_biases_and_norms() -> None:
    layer = MBConv(16, 32, stride=2)
    assert layer.expand.weight.shape == (128, 16, 1, 1)
    assert layer.depthwise.weight.shape == (128, 1, 3, 3)
    assert layer.se.reduce.weight.shape == (8, 128, 1, 1)
    biases = {name for name, _ in layer.named_parameters() if name.endswith("bias") and "norm" not in name}
    assert biases == {"se.reduce.bias", "se.expand.bias", "project.bias", "shortcut.bias"}
    assert isinstance(MBConv(16, 16, norm="layer").depthwise_norm, LayerNorm2d)


def test_stochastic_depth_leaves_the_shortcut_and_only_in_training() -> None:
    layer = MBConv(8, 8, drop_path=1.0)
    x = torch.randn(4, 8, 4, 4)
    assert torch.equal(layer(x), x)
    assert not torch.equal(layer.eval()(x), x)
