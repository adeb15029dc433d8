from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maxgan.nn.depthwise import grouped_conv2d


def arguments(groups: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(4, 4 // groups, 3, 3, dtype=torch.float64, generator=generator).requires_grad_()
    return x, weight


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (1, 1)), ((2, 2), (0, 0)), ((2, 1), (1, 0))])
def test_derivatives_are_those_of_numerical_differences(
    groups: int, stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return grouped_conv2d(x, weight, stride, padding, groups)

    x, weight = arguments(groups)
    torch.testing.assert_close(convolve(x, weight), F.conv2d(x, weight, None, stride, padding, groups=groups))
    assert torch.autograd.gradcheck(convolve, (x, weight))
    assert torch.autograd.gradgradcheck(convolve, (x, weight))


def test_second_derivative_takes_no_convolution_a_channel() -> None:
    channels = 64
    x = torch.randn(2, channels, 8, 8, requires_grad=True)
    weight = torch.randn(channels, 1, 3, 3, requires_grad=True)

    def convolutions(y: Tensor) -> int:
        with torch.profiler.profile() as profile:
            (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
            gradient.square().sum().backward()
        return sum("convolution" in event.name for event in profile.events())

    ours = convolutions(grouped_conv2d(x, weight, (1, 1), (1, 1), channels))
    assert 0 < ours < channels < convolutions(F.conv2d(x, weight, None, 1, 1, groups=channels))


def test_autocast_reaches_the_derivatives() -> None:
    x, weight = (t.detach().float().requires_grad_() for t in arguments(4))
    with torch.autocast("cpu", torch.bfloat16):
        y = grouped_conv2d(x, weight, (1, 1), (1, 1), 4)
        assert y.dtype == torch.bfloat16
        (gradient,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert gradient.dtype == torch.float32 and weight.grad is not None
    exact = F.conv2d(x, weight, None, 1, 1, groups=4)
    (expected,) = torch.autograd.grad(exact.square().sum(), x)
    assert ((gradient - expected).norm() / expected.norm()).item() < 0.02  # bfloat16 has 8 bits
