"""Each way to resize against its tool and against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maxgan.evaluation.resize import RESIZES


def levels(side: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (2, channels, side, side), generator=torch.Generator().manual_seed(0)).float()


def bilinear(image: np.ndarray, side: int, half_pixel: bool) -> np.ndarray:
    """Resize `(H, H)` in float64, pixel by pixel from the definition."""
    given = len(image)
    shift = 0.5 if half_pixel else 0.0
    places = [min(max((i + shift) * given / side - shift, 0), given - 1) for i in range(side)]
    result = np.zeros((side, side))
    for i, y in enumerate(places):
        for j, x in enumerate(places):
            for row in {int(y), min(int(y) + 1, given - 1)}:
                for column in {int(x), min(int(x) + 1, given - 1)}:
                    result[i, j] += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column]
    return result


@pytest.mark.parametrize(("name", "half_pixel"), [("tf1", False), ("tf2", True)])
@pytest.mark.parametrize("given", [5, 13, 20])
def test_bilinear_ways_are_their_definition(name: str, half_pixel: bool, given: int) -> None:
    image = levels(given, 1)
    found = RESIZES[name](image, 13)
    for one, resized in zip(image, found, strict=True):
        np.testing.assert_allclose(resized[0], bilinear(one[0].double().numpy(), 13, half_pixel), atol=5e-4)


@pytest.mark.parametrize("given", [32, 299, 333])
def test_tf1_is_torch_fidelitys_bit_for_bit(given: int) -> None:
    theirs = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    image = levels(given)
    expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(image, size=(299, 299), align_corners=False)
    assert torch.equal(RESIZES["tf1"](image, 299), expected)


@pytest.mark.parametrize("given", [32, 299, 333])
def test_clean_is_clean_fids(given: int) -> None:
    theirs = pytest.importorskip("cleanfid.resize")
    image = levels(given)
    resizer = theirs.build_resizer("clean")
    expected = np.stack([resizer(one.permute(1, 2, 0).numpy().astype(np.uint8)) for one in image])
    found = RESIZES["clean"](image, 299).permute(0, 2, 3, 1)
    # On noise, the worst of images: PIL's weights are float64, PyTorch's float32.
    assert np.abs(found.numpy() - expected).max() < 0.01
    assert found.min() >= 0
    assert found.max() <= 255


def test_clean_widens_its_filter_when_shrinking() -> None:
    # Stripes of one pixel: without antialiasing some of them would survive.
    image = 255 * (torch.arange(64) % 2).expand(1, 1, 64, 64).float()
    found = RESIZES["clean"](image, 16)
    expected = Image.fromarray(image[0, 0].numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(found[0, 0], np.asarray(expected), atol=1e-3)
    assert (found[..., 1:-1] - 127.5).abs().max() < 2
    assert RESIZES["tf2"](image, 13).std() > 10


@pytest.mark.parametrize("name", RESIZES)
def test_images_of_the_right_side_stay_as_they_are(name: str) -> None:
    image = levels(13)
    assert torch.equal(RESIZES[name](image, 13), image)
