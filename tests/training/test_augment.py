"""DiffAugment against loops over images and pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from maxgan.training.augment import DRAWS, augment

SIDE = 16
POLICIES = ["color", "translation", "cutout", "color,translation,cutout", "cutout,translation", "translation,color"]


def naive_colour(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Brightness, saturation and contrast of one image (C, H, W)."""
    colours = {1: 1, 2: 1, 3: 3, 4: 3}[len(image)]
    out = image.copy()
    out[:colours] += draws[0] - 0.5
    for y, x in itertools.product(range(SIDE), range(SIDE)):
        grey = sum(out[c, y, x] for c in range(colours)) / colours
        for c in range(colours):
            out[c, y, x] = grey + 2 * draws[1] * (out[c, y, x] - grey)
    mean = out[:colours].sum() / (colours * SIDE * SIDE)
    out[:colours] = mean + (draws[2] + 0.5) * (out[:colours] - mean)
    return out


def naive_translation(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Pixel (y, x) moves to (y + down, x + right)."""
    shifts = range(-SIDE // 8, SIDE // 8 + 1)
    down, right = (shifts[int(draw * len(shifts))] for draw in draws[3:5])
    out = np.zeros_like(image)
    for y, x in itertools.product(range(SIDE), range(SIDE)):
        if 0 <= y + down < SIDE and 0 <= x + right < SIDE:
            out[:, y + down, x + right] = image[:, y, x]
    return out


def naive_cutout(image: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A square of 8 x 8 pixels around a corner of pixels becomes zero."""
    row, column = (range(SIDE + 1)[int(draw * (SIDE + 1))] for draw in draws[5:7])
    out = image.copy()
    for y, x in itertools.product(range(SIDE), range(SIDE)):
        if row - 4 <= y <= row + 3 and column - 4 <= x <= column + 3:
            out[:, y, x] = 0
    return out


NAIVE = {"color": naive_colour, "translation": naive_translation, "cutout": naive_cutout}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_policy_is_its_parts_one_after_the_other_on_each_image(policy: str, channels: int) -> None:
    rng = np.random.default_rng(channels)
    images, draws = rng.uniform(-1, 1, (6, channels, SIDE, SIDE)), rng.random((6, DRAWS))
    draws[0], draws[1] = 0, 1 - 1e-12  # both ends of every range
    found = augment(torch.from_numpy(images), torch.from_numpy(draws), policy)
    for image, numbers, result in zip(images, draws, found.numpy(), strict=True):
        for name in policy.split(","):
            image = NAIVE[name](image, numbers)
        np.testing.assert_allclose(result, image, atol=1e-12)


def test_the_largest_draw_of_float32_stays_in_range() -> None:
    images = torch.ones(1, 1, 8, 8)
    last = torch.full((1, DRAWS), 1 - 2**-24)
    assert augment(images, last, "translation").sum() == 49  # one pixel down and right
    assert augment(images, last, "cutout").sum() == 64 - 4  # 2 x 2 of the square are in the image


@pytest.mark.parametrize("policy", ["color", "translation", "cutout"])
def test_gradients_pass(policy: str) -> None:
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    draws = torch.rand(2, DRAWS, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: augment(x, draws, policy), images, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, draws, policy), images, fast_mode=True)
