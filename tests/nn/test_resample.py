from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maxgan.nn.resample import PixelShuffleUp, blur_pool, pixel_shuffle


def naive_blur_pool(x: Tensor) -> Tensor:
    """Convolve with [1, 3, 3, 1] / 8 along both axes, one zero around the image, and keep every second pixel."""
    taps = [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    _, _, height, width = x.shape
    out = x.new_zeros(*x.shape[:2], height // 2, width // 2)
    for row in range(height // 2):
        for column in range(width // 2):
            for i, a in enumerate(taps):
                for j, b in enumerate(taps):
                    y, z = 2 * row + i - 1, 2 * column + j - 1
                    if 0 <= y < height and 0 <= z < width:
                        out[:, :, row, column] += a * b * x[:, :, y, z]
    return out


def test_blur_pool_equals_a_naive_convolution() -> None:
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(blur_pool(x), naive_blur_pool(x))


def test_blur_pool_keeps_the_mean_inside() -> None:
    torch.testing.assert_close(blur_pool(torch.ones(1, 1, 8, 8))[:, :, 1:-1, 1:-1], torch.ones(1, 1, 2, 2))


def test_derivatives_of_blur_pool() -> None:
    x = torch.randn(2, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(blur_pool, (x,))
    # The blur is linear, so that its second derivative shows only behind something that isn't.
    assert torch.autograd.gradgradcheck(lambda t: blur_pool(t**3) ** 2, (x,))


def test_second_derivatives_of_blur_pool_equal_plain_autograd() -> None:
    kernel = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])).double() / 64

    def plain(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel.expand(x.shape[1], 1, 4, 4), stride=2, padding=1, groups=x.shape[1])

    def penalty(blur: object, weight: Tensor) -> Tensor:
        x = torch.arange(64, dtype=torch.float64).view(1, 4, 4, 4).sin().requires_grad_()
        logits = blur((x * weight) ** 2).exp().sum()  # type: ignore[operator]
        (gradient,) = torch.autograd.grad(logits, x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), weight)[0]

    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(penalty(blur_pool, weight), penalty(plain, weight))


def test_pixel_shuffle_is_depth_to_space() -> None:
    n, channels, height, width = 2, 3, 2, 4
    x = torch.randn(n, 4 * channels, height, width)
    out = pixel_shuffle(x)
    assert out.shape == (n, channels, 2 * height, 2 * width)
    for dy in range(2):
        for dx in range(2):
            for c in range(channels):
                assert torch.equal(out[:, c, dy::2, dx::2], x[:, (2 * dy + dx) * channels + c])
    # torch's order of channels is (c, dy, dx).
    torch_order = x.unflatten(1, (4, channels)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(out, F.pixel_shuffle(torch_order, 2))


def test_maps_stay_in_channels_last_memory() -> None:
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert pixel_shuffle(x).is_contiguous(memory_format=torch.channels_last)
    assert blur_pool(x).is_contiguous(memory_format=torch.channels_last)


def test_step_up_projects_only_where_a_quarter_is_not_the_next_width() -> None:
    x = torch.randn(2, 16, 3, 3)
    same, other = PixelShuffleUp(16, 4), PixelShuffleUp(16, 10)
    assert not list(same.parameters())
    assert torch.equal(same(x), pixel_shuffle(x))
    expected = F.conv2d(pixel_shuffle(x), other.project.weight, other.project.bias)
    torch.testing.assert_close(other(x), expected)
    assert other(x).shape == (2, 10, 6, 6)
    with pytest.raises(ValueError, match="a width of 18 can't be pixel-shuffled"):
        PixelShuffleUp(18, 4)
