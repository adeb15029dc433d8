"""Conversions and cuts against values worked out by hand, numpy and PIL."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms.v2 import RandomResizedCrop

from maxgan.data.transforms import cut, normalize_mode, resized_box, set_channels, to_array, to_float, to_uint8

RNG = np.random.default_rng(0)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def reopened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return Image.open(io.BytesIO(stream.getvalue()))


def test_float_range_and_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    floats = to_float(levels)
    assert floats.dtype == torch.float32
    assert (floats[0], floats[255]) == (-1, 1)
    assert torch.equal(to_uint8(floats), levels)


def test_to_uint8_clamps_and_rounds_to_nearest() -> None:
    greys = torch.tensor([-3.0, 99.4, 99.6, 255.4, 300.0])
    assert to_uint8(greys / 127.5 - 1).tolist() == [0, 99, 100, 255, 255]
    assert to_uint8(torch.tensor([1.0, -1.0], dtype=torch.bfloat16)).tolist() == [255, 0]


@pytest.mark.parametrize("fraction, size", [(1.0, (40, 24)), (0.875, (24, 40)), (0.5, (31, 17))])
def test_cut_is_the_central_square_resized_bicubically(fraction: float, size: tuple[int, int]) -> None:
    image = Image.fromarray(noise(size[1], size[0]))
    side = round(fraction * min(size))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    inside = Image.fromarray(np.asarray(image)[top : top + side, left : left + side])
    for resolution in (8, 64):
        expected = np.asarray(inside.resize((resolution, resolution), Image.Resampling.BICUBIC))
        assert np.array_equal(np.asarray(cut(image, resolution, "center", fraction)), expected)


def test_cut_leaves_pixels_alone_at_their_own_size() -> None:
    pixels = noise(16, 16)
    assert np.array_equal(np.asarray(cut(Image.fromarray(pixels), 16)), pixels)


def test_shrinking_is_antialiased() -> None:
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    inner = np.asarray(cut(Image.fromarray(stripes), 8))[:, 1:-1]
    assert abs(inner.astype(float) - 127.5).max() < 2


def test_random_cut_reaches_every_place_and_only_those() -> None:
    rows, columns = np.mgrid[:6, :9]
    image = Image.fromarray((rows * 16 + columns).astype(np.uint8))
    rng = np.random.default_rng(1)
    corners = set()
    for _ in range(500):
        pixels = np.asarray(cut(image, 4, "random", 4 / 6, rng))
        corners.add(divmod(int(pixels[0, 0]), 16))
        assert np.array_equal(pixels, pixels[0, 0] + rows[:4, :4] * 16 + columns[:4, :4])
    assert corners == {(row, column) for row in range(3) for column in range(6)}
    central = np.asarray(cut(image, 4, "random", 4 / 6))
    assert np.array_equal(central, np.asarray(cut(image, 4, "center", 4 / 6)))


def test_the_whole_picture_is_squashed() -> None:
    image = Image.fromarray(noise(17, 31))
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(cut(image, 16, "whole", 0.5)), expected)


@pytest.mark.parametrize("size", [(60, 40), (31, 97)])
def test_resized_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    width, height = size
    rng = np.random.default_rng(0)
    ours = np.array([resized_box(width, height, rng) for _ in range(1500)])
    assert (ours[:, :2] >= 0).all() and (ours[:, 2] <= width).all() and (ours[:, 3] <= height).all()
    image = torch.empty(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [RandomResizedCrop(8).make_params([image]) for _ in range(1500)]
    left, top, w, h = (np.array([box[key] for box in theirs]) for key in ("left", "top", "width", "height"))
    for a, b in (
        (ours[:, 0], left),
        (ours[:, 1], top),
        (ours[:, 2] - ours[:, 0], w),
        (ours[:, 3] - ours[:, 1], h),
    ):
        assert ks_2samp(a, b).pvalue > 0.01


@pytest.mark.parametrize("size", [(200, 5), (5, 200)])
def test_where_no_resized_box_fits_it_is_the_central_one_of_torchvision(size: tuple[int, int]) -> None:
    width, height = size
    # Of 0.08 * 1000 pixels and a ratio up to 4/3, at least 7.7 a side.
    box = resized_box(width, height, np.random.default_rng(0))
    theirs = RandomResizedCrop(8).make_params([torch.empty(1, height, width)])
    left, top, w, h = (theirs[key] for key in ("left", "top", "width", "height"))
    assert box == (left, top, left + w, top + h)


def test_a_resized_crop_is_that_box() -> None:
    image = Image.fromarray(noise(30, 40))
    left, top, right, bottom = resized_box(40, 30, np.random.default_rng(5))
    inside = Image.fromarray(np.asarray(image)[top:bottom, left:right])
    expected = np.asarray(inside.resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(np.asarray(cut(image, 16, "resized", 1.0, np.random.default_rng(5))), expected)
    central = np.asarray(cut(image, 16, "resized", 0.5))
    assert np.array_equal(central, np.asarray(cut(image, 16, "center", 0.5)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind: str) -> None:
    values = np.linspace(0, 65535, 400, dtype=np.uint16).reshape(20, 20)
    image = normalize_mode(reopened(Image.fromarray(values), kind))
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), np.rint(values / 65535 * 255))


def test_16_bit_grey_in_other_modes() -> None:
    values = np.array([[0, 257], [32768, 65535]])
    wide = normalize_mode(Image.fromarray(values.astype(np.int32)))
    swapped = normalize_mode(Image.frombytes("I;16B", (2, 2), values.astype(">u2").tobytes()))
    assert np.asarray(wide).tolist() == np.asarray(swapped).tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize(
    "image",
    [Image.fromarray(np.full((2, 2), 70000, dtype=np.int32)), Image.new("F", (2, 2)), Image.new("LAB", (2, 2))],
    ids=["32-bit", "float", "Lab"],
)
def test_modes_without_a_scale_are_refused(image: Image.Image) -> None:
    with pytest.raises(ValueError, match="convert it to"):
        normalize_mode(image)


def test_palette_and_bits() -> None:
    colours = noise(4, 4)
    palette = reopened(Image.fromarray(colours).quantize(16), "PNG")
    assert palette.mode == "P"
    assert np.array_equal(np.asarray(normalize_mode(palette)), colours)
    bits = np.array([[True, False], [False, True]])
    assert np.asarray(normalize_mode(Image.fromarray(bits))).tolist() == [[255, 0], [0, 255]]


def test_noted_transparency_becomes_alpha() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpixel((1, 0), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    image = normalize_mode(reopened(palette, "PNG", transparency=1))
    assert image.mode == "RGBA"
    assert np.asarray(image).tolist() == [[[10, 20, 30, 255], [40, 50, 60, 0]]]
    grey = normalize_mode(reopened(Image.fromarray(np.array([[7, 9]], dtype=np.uint8)), "PNG", transparency=9))
    assert grey.mode == "LA"
    assert np.asarray(grey).tolist() == [[[7, 255], [9, 0]]]


@pytest.mark.parametrize(
    "mode, target", [("CMYK", "RGB"), ("YCbCr", "RGB"), ("HSV", "RGB"), ("RGBX", "RGB"), ("La", "LA"), ("RGBa", "RGBA")]
)
def test_other_modes(mode: str, target: str) -> None:
    white = Image.new(target, (3, 3), "white")
    image = normalize_mode(white.convert(mode))
    assert image.mode == target
    assert np.asarray(image).min() == 255


def test_channels() -> None:
    colour, alpha = noise(5, 5), noise(5, 5, 1)
    rgba = Image.fromarray(np.dstack([colour, alpha]))
    grey = Image.fromarray(alpha)
    assert [set_channels(rgba, n).mode for n in (1, 2, 3, 4)] == ["L", "LA", "RGB", "RGBA"]
    assert [set_channels(grey, n).mode for n in (1, 2, 3, 4)] == ["L", "LA", "RGB", "RGBA"]
    weight = alpha[..., None] / 255
    over_white = colour * weight + 255 * (1 - weight)
    assert abs(np.asarray(set_channels(rgba, 3)) - over_white).max() <= 1
    assert np.array_equal(to_array(set_channels(rgba, 4)), np.dstack([colour, alpha]).transpose(2, 0, 1))
    assert np.array_equal(to_array(set_channels(grey, 3)), np.stack([alpha] * 3))
    assert np.array_equal(to_array(set_channels(grey, 4))[3], np.full((5, 5), 255))
    assert to_array(grey).shape == (1, 5, 5)
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert abs(to_array(set_channels(Image.fromarray(colour), 1))[0] - luma).max() <= 1
