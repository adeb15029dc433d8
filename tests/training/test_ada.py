"""ADA's augmentations against matrices and loops over pixels, and its adaptive probability."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from accelerate import Accelerator
from scipy.stats import norm
from torch import Tensor

from maxgan.config import ADA, AugmentConfig
from maxgan.training.ada import ADA_DRAWS, AdaptiveProbability, ada
from maxgan.training.augment import ALL_DRAWS, DRAWS, augment

SIDE = 8
GEOMETRY = ADA[:7]
COLOURS = ADA[7:]


def scaling(a: float, b: float) -> np.ndarray:
    return np.diag([a, b, 1.0])


def turning(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def moving(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def naive_geometry(image: np.ndarray, u: np.ndarray, g: np.ndarray, names: set[str], p: float) -> np.ndarray:
    """The paper's product of matrices, then every pixel by itself; u and g are values and gates."""

    def happens(name: str, gate: int) -> bool:
        return name in names and g[gate] < (1 - math.sqrt(1 - p) if name == "rotate" else p)

    change = np.eye(3)
    if happens("xflip", 0):
        change = scaling(1 - 2 * int(u[0] * 2), 1) @ change
    if happens("rotate90", 1):
        change = turning(math.pi / 2 * int(u[1] * 4)) @ change
    if happens("xint", 2):
        change = moving(*np.round((u[2:4] * 0.25 - 0.125) * SIDE)) @ change
    if happens("scale", 3):
        change = scaling(2 ** (0.2 * norm.ppf(u[4])), 2 ** (0.2 * norm.ppf(u[4]))) @ change
    if happens("rotate", 4):
        change = turning((u[5] * 2 - 1) * math.pi) @ change
    if happens("aniso", 5):
        change = scaling(2 ** (0.2 * norm.ppf(u[6])), 2 ** (-0.2 * norm.ppf(u[6]))) @ change
    if happens("rotate", 6):
        change = turning((u[7] * 2 - 1) * math.pi) @ change
    if happens("xfrac", 7):
        change = moving(*(0.125 * SIDE * norm.ppf(u[8:10]))) @ change
    back = np.linalg.inv(change)
    # Mirrored often enough for every place.
    far = 4 * (SIDE - 1)
    padded = np.pad(image, ((0, 0), (far, far), (far, far)), mode="reflect")
    out = np.empty_like(image)
    for row in range(SIDE):
        for column in range(SIDE):
            x, y, _ = back @ [column - (SIDE - 1) / 2, row - (SIDE - 1) / 2, 1] + (SIDE - 1) / 2 + far
            i, j = math.floor(y), math.floor(x)
            a, b = y - i, x - j
            square = padded[:, i : i + 2, j : j + 2]
            out[:, row, column] = np.array([1 - a, a]) @ square @ np.array([1 - b, b])
    return out


def naive_colours(image: np.ndarray, u: np.ndarray, g: np.ndarray, names: set[str], p: float) -> np.ndarray:
    """The paper's product of 4 x 4 matrices; a grey image is one of three equal channels, of which the mean is kept."""
    v = np.array([1, 1, 1, 0]) / math.sqrt(3)
    change = np.eye(4)
    if "brightness" in names and g[8] < p:
        step = np.eye(4)
        step[:3, 3] = 0.2 * norm.ppf(u[10])
        change = step @ change
    if "contrast" in names and g[9] < p:
        change = np.diag([2 ** (0.5 * norm.ppf(u[11]))] * 3 + [1]) @ change
    if "lumaflip" in names and g[10] < p:
        change = (np.eye(4) - 2 * np.outer(v, v) * int(u[12] * 2)) @ change
    if "hue" in names and g[11] < p:
        angle = (u[13] * 2 - 1) * math.pi
        cross = np.array([[0, -v[2], v[1], 0], [v[2], 0, -v[0], 0], [-v[1], v[0], 0, 0], [0, 0, 0, 0]])
        change = (np.eye(4) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross) @ change
    if "saturation" in names and g[12] < p:
        inner = np.outer(v, v)
        change = (inner + (np.eye(4) - inner) * 2 ** norm.ppf(u[14])) @ change
    colours, alpha = (image[:-1], image[-1:]) if len(image) % 2 == 0 else (image, image[:0])
    three = np.concatenate([np.broadcast_to(colours, (3, SIDE, SIDE)), np.ones((1, SIDE, SIDE))])
    changed = np.einsum("ij,jhw->ihw", change, three)[:3]
    return np.concatenate([changed if len(colours) == 3 else changed.mean(0, keepdims=True), alpha])


def naive(image: np.ndarray, draws: np.ndarray, names: set[str], p: float) -> np.ndarray:
    u, g = draws[:15], draws[15:]
    return naive_colours(naive_geometry(image, u, g, names, p), u, g, names, p)


def inputs(channels: int, count: int = 6) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(channels)
    images = torch.rand(count, channels, SIDE, SIDE, dtype=torch.float64, generator=source) * 2 - 1
    return images, torch.rand(count, ADA_DRAWS, dtype=torch.float64, generator=source)


@pytest.mark.parametrize("names", [*((name,) for name in ADA), GEOMETRY, COLOURS, ADA], ids="+".join)
def test_each_part_and_all_together_are_the_papers_matrices(names: tuple[str, ...]) -> None:
    for channels, probability in ((2, 0.6), (3, 1.0)) if len(names) == 1 else ((1, 1.0), (2, 0.6), (3, 1.0), (4, 0.6)):
        images, draws = inputs(channels, 4)
        found = ada(images, draws, names, probability)
        for image, numbers, result in zip(images, draws, found, strict=True):
            expected = naive(image.numpy(), numbers.numpy(), set(names), probability)
            np.testing.assert_allclose(result.numpy(), expected, atol=1e-10)


def test_what_moves_pixels_onto_pixels_is_exact_and_probability_0_changes_nothing() -> None:
    images, draws = (tensor.float() for tensor in inputs(3, 16))
    assert torch.equal(ada(images, draws, ADA[:7], 0.0), images)
    moved = ada(images, draws, ("xflip", "rotate90"), 1.0)
    for image, numbers, result in zip(images, draws, moved, strict=True):
        if numbers[0] >= 0.5:
            image = image.flip(-1)
        assert torch.equal(result, image.rot90(-int(numbers[1] * 4), (1, 2)))


def test_a_zoom_with_a_turn_is_torchvisions_where_nothing_comes_from_outside() -> None:
    images, draws = inputs(3, 1)
    draws[:, 4], draws[:, 5], draws[:, 7] = norm.cdf(2.5), 0.5 + 20 / 360, 0.5
    found = ada(images, draws, ("scale", "rotate"), 1.0)
    expected = TF.affine(
        images, angle=20, translate=[0, 0], scale=2**0.5, shear=[0.0], interpolation=TF.InterpolationMode.BILINEAR
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_policy_is_adas_parts_and_then_those_of_diffaugment() -> None:
    images, _ = inputs(3)
    draws = torch.rand(6, ALL_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = augment(images, draws, "cutout,ada,color", 0.5)
    changed = ada(images, draws[:, 10:], ADA, 0.5)
    for i, numbers in enumerate(draws):
        expected = changed[i : i + 1]
        for name, gate in (("cutout", DRAWS + 2), ("color", DRAWS)):
            if numbers[gate] < 0.5:
                expected = augment(expected, numbers[None], name)
        torch.testing.assert_close(found[i : i + 1], expected)
    assert torch.equal(
        augment(images, draws, "hue,cutout"), augment(ada(images, draws[:, 10:], ["hue"], 1), draws, "cutout")
    )


def test_the_ends_of_every_range_are_finite_in_float32() -> None:
    images = torch.ones(2, 3, SIDE, SIDE)
    draws = torch.tensor([0.0, 1 - 2**-24])[:, None].expand(2, ALL_DRAWS)
    assert augment(images, draws, "ada,color,translation,cutout").isfinite().all()


def test_images_of_half_precision_are_changed_in_float32() -> None:
    images, draws = (tensor.float() for tensor in inputs(3))
    halved = images.bfloat16()
    assert torch.equal(ada(halved, draws, ADA, 0.7), ada(halved.float(), draws, ADA, 0.7))


@pytest.mark.parametrize("name", [*ADA, "ada"])
def test_second_derivatives_exist(name: str) -> None:
    images, _ = inputs(3, 2)
    images.requires_grad_()
    draws = torch.rand(2, ALL_DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda x: augment(x, draws, name).pow(3), images, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: augment(x, draws, name).pow(3), images, fast_mode=True)


def test_the_probability_follows_the_sign_of_d_at_reals() -> None:
    accelerator = Accelerator(cpu=True)
    config = AugmentConfig("ada", target=0.6, adapt_images=800)

    def new() -> AdaptiveProbability:
        return AdaptiveProbability(config, 20, torch.device("cpu"))

    # Four updates of 20 images are a tenth of 800: the mean signs are 0.75, 0.5, 0.6 + a little, 1.
    adaptive = new()
    signs = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.61, 0.61, 0.61, 0.61, 1.0, 1.0, 1.0, 1.0]
    found = []
    for update, sign in enumerate(signs):
        if update in (6, 9):  # a checkpoint in the middle of four
            resumed = new()
            resumed.restore(adaptive.state())
            adaptive = resumed
        adaptive.add(torch.tensor(sign), update, accelerator)
        found.append(round(adaptive.value, 9))
    assert found == [0.0] * 3 + [0.1] * 4 + [0.0] * 4 + [0.1] * 4 + [0.2]
    # In the middle of four, a checkpoint holds one sum for all processes: their mean.
    both = cast(Accelerator, SimpleNamespace(num_processes=2, reduce=lambda signs, reduction: (signs + 0.5) / 2))
    adaptive.add(torch.tensor(1.0), 16, accelerator)
    adaptive.share(both)
    assert adaptive.state()["signs"] == 0.75
    adaptive.share(accelerator)
    assert adaptive.state()["signs"] == 0.75
    for update in range(17, 20):
        adaptive.add(torch.tensor(-1.0), update, accelerator)
    for update in range(8):
        adaptive.add(torch.tensor(-1.0), update, accelerator)
    assert adaptive.value == pytest.approx(0.0)
    for update in range(48):
        adaptive.add(torch.tensor(1.0), update, accelerator)
    assert adaptive.value == 1.0
