"""Random augmentation of batches that gradients pass through: of all that a discriminator sees, and for its consistency
(bCR)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maxgan.config import ADA
from maxgan.training.ada import ADA_DRAWS, ada, split_alpha

DRAWS = 7
"""Random numbers for one image and DiffAugment: three for its colours, two for its place, two for what is cut out."""
ALL_DRAWS = DRAWS + 3 + ADA_DRAWS
"""And further, whether each of those happens, and those of ADA."""


def augment(images: Tensor, draws: Tensor, policy: str, probability: float = 1.0) -> Tensor:
    """Change each image by its own random numbers: ADA's parts, in their own order (see `ada`), then those of
    DiffAugment (arXiv 2006.10738, appendix); differentiable.

    Args:
        images: `(N, C, H, H)` in [-1, 1], H a power of two from 8; the result may leave that range.
        draws: `(N, 38)`, uniform in [0, 1); for DiffAugment's parts, all at probability 1, `(N, 7)` are enough. Each
            augmentation has its own columns, whatever the policy.
        policy: names of `AUGMENTATIONS` and `ADA` joined by commas, `ada` for all of the latter; DiffAugment's are
            applied in that order.
        probability: of each part for each image, independently.
    """
    names = policy.split(",")
    if chosen := [name for name in ADA if name in names or "ada" in names]:
        images = ada(images, draws[:, DRAWS + 3 :], chosen, probability)
    for name in names:
        if name not in _CHANGES:
            continue
        change, columns, gate = _CHANGES[name]
        changed = change(images, *draws[:, columns].T.reshape(-1, len(images), 1, 1, 1))
        if probability < 1:
            changed = torch.where((draws[:, gate] < probability)[:, None, None, None], changed, images)
        images = changed
    return images


def change_colour(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Add b to an image, then scale its distance to grey by s, then that to its mean by c; alpha stays as it is.

    b is uniform in [-0.5, 0.5), s in [0, 2), c in [0.5, 1.5). The draws are `(N, 1, 1, 1)`, uniform in [0, 1).
    """
    colours, alpha = split_alpha(images)
    colours = colours + (brightness - 0.5)
    grey = colours.mean(1, keepdim=True)
    colours = grey + (colours - grey) * (2 * saturation)
    mean = colours.mean((1, 2, 3), keepdim=True)
    colours = mean + (colours - mean) * (contrast + 0.5)
    return torch.cat([colours, alpha], 1)


def translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move an image by whole pixels, each number up to an eighth of a side equally likely; zeros come in.

    The draws are `(N, 1, 1, 1)`, uniform in [0, 1).
    """
    for axis, draw in ((2, down), (3, right)):
        side = images.shape[axis]
        most = side // 8
        # Pixel i of the result is pixel i - shift of the image.
        source = _pixels(images, axis) - (_one_of(2 * most + 1, draw) - most)
        inside = (source >= 0) & (source < side)
        images = images.gather(axis, source.clamp(0, side - 1).expand_as(images)) * inside
    return images


def cut_out(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Set a square of half the side to zero, its centre equally likely on any corner of pixels, the edges' included.

    The draws are `(N, 1, 1, 1)`, uniform in [0, 1).
    """
    inside = torch.ones_like(images[:, :1], dtype=torch.bool)
    for axis, draw in ((2, row), (3, column)):
        side = images.shape[axis]
        half = side // 4
        distance = _pixels(images, axis) - _one_of(side + 1, draw)
        inside = inside & (distance >= -half) & (distance < half)
    return images * ~inside


def _one_of(count: int, draw: Tensor) -> Tensor:
    """Return 0 ... count - 1, equally likely, for draws uniform in [0, 1)."""
    return (draw * count).long().clamp(max=count - 1)  # a product may round up to count


def _pixels(images: Tensor, axis: int) -> Tensor:
    """Return the places 0 ... side - 1 along an axis, broadcastable to the images."""
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    return torch.arange(images.shape[axis], device=images.device).view(shape)


_CHANGES: dict[str, tuple[Callable[..., Tensor], slice, int]] = {
    "color": (change_colour, slice(0, 3), DRAWS),
    "translation": (translate, slice(3, 5), DRAWS + 1),
    "cutout": (cut_out, slice(5, 7), DRAWS + 2),
}
