"""Images of any kind become square uint8 arrays of the asked size, and uint8 becomes float and back.

Nothing else in maxgan converts between uint8 and float.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""The mode of a PIL image with that many channels."""


def to_float(images: Tensor) -> Tensor:
    """Grey levels 0..255 (uint8, any shape) as float32 in [-1, 1]."""
    assert images.dtype == torch.uint8, images.dtype
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [-1, 1] (any shape; values beyond are clamped) as the nearest of the grey levels 0..255, uint8."""
    assert images.is_floating_point(), images.dtype
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def normalize_mode(image: Image.Image) -> Image.Image:
    """The same picture in mode L, LA, RGB or RGBA, whichever holds it: palettes, bits, 16-bit grey, CMYK and others.

    16-bit grey is scaled by 255/65535 and rounded (PIL itself clips it at 255). Transparency that is noted
    beside the pixels becomes an alpha channel. Raises ValueError for floating-point, Lab, and grey beyond 16 bits.
    """
    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):  # older Pillow opens 16-bit PNGs as I
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its grey values exceed 16 bits, so their scale is unknown: convert it to 8 or 16 bits")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    if mode in ("F", "LAB"):
        raise ValueError(f"images of mode {mode} have no fixed scale to 8 bits: convert it to grey or RGB")
    grey = mode in ("1", "L", "LA", "La")
    target = MODES[(1 if grey else 3) + image.has_transparency_data]
    return image if mode == target else image.convert(target)


def set_channels(image: Image.Image, channels: int) -> Image.Image:
    """A picture of mode L, LA, RGB or RGBA with `channels` (1 to 4) channels.

    Where alpha is dropped, the picture is laid over white: what lies under transparent pixels is arbitrary.
    """
    assert image.mode in MODES.values(), image.mode
    if channels in (1, 3) and image.mode in ("LA", "RGBA"):
        colour = image.mode[:-1]
        opaque = Image.new(colour, image.size, "white")
        opaque.paste(image.convert(colour), mask=image.getchannel("A"))
        image = opaque
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def cut(
    image: Image.Image,
    resolution: int,
    crop: Literal["center", "random", "resized", "whole"] = "center",
    crop_fraction: float = 1.0,
    rng: np.random.Generator | None = None,
) -> Image.Image:
    """Cut a square or rectangle out of a picture and resize it to `resolution` pixels a side.

    The filter is PIL's bicubic in both directions. It widens with the scale when shrinking, so it is antialiased; HiT's
    and clean-fid's references are made with such a filter, and Lanczos would ring more at hard edges. Pictures
    with alpha are weighted by it, so that hidden colours do not bleed in.

    Args:
        image: mode L, LA, RGB or RGBA.
        resolution: side of the result in pixels.
        crop: `center`; `random`: uniform over all places; `resized`: see `resized_box`; or `whole`: all, whatever its
            shape. The random ones need `rng`, and without it are central.
        crop_fraction: side of the square as a fraction of the shorter side, in (0, 1].
        rng: gives the place of a random crop; drawn from in no other case.
    """
    assert image.mode in MODES.values(), image.mode
    width, height = image.size
    if crop == "whole":
        return image.resize((resolution, resolution), Image.Resampling.BICUBIC)
    if crop == "resized" and rng is not None:
        return image.crop(resized_box(width, height, rng)).resize((resolution, resolution), Image.Resampling.BICUBIC)
    side = max(1, round(crop_fraction * min(width, height)))
    if crop == "random" and rng is not None:
        left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    else:
        left, top = (width - side) // 2, (height - side) // 2
    if side != width or side != height:
        image = image.crop((left, top, left + side, top + side))
    return image.resize((resolution, resolution), Image.Resampling.BICUBIC)


def resized_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw (left, top, right, bottom) of the Inception crop (arXiv 1409.4842, as torchvision's RandomResizedCrop).

    Its area is uniform in 8 to 100 % of the picture's, the logarithm of its width / height uniform between those of 3/4
    and 4/3. Where ten draws don't fit in the picture, it is the largest central box with the nearest of those ratios.
    """
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def to_array(image: Image.Image) -> np.ndarray:
    """The pixels of a picture of mode L, LA, RGB or RGBA as uint8 `(C, H, W)`."""
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))
