"""Augmentation in the training of a classifier: of single images on the CPU, and of batches on the device."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from maxgan.config import AffineConfig, MixConfig


class RandAugment:
    """torchvision's RandAugment on uint8 arrays `(C, H, W)`, its choices a function of the generator that is given.

    Args:
        config: number and magnitude of its operations.
    """

    def __init__(self, config: MixConfig) -> None:
        # Grey comes in from outside, as in the official code.
        self._transform = v2.RandAugment(
            config.randaugment_ops,
            config.randaugment_magnitude,
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=128,
        )

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the changed image, which may share memory with `pixels`."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(1 << 63)))
            changed: Tensor = self._transform(torch.from_numpy(pixels))
        return changed.numpy()


class Mix:
    """MixUp or CutMix of a batch with itself, moved on by one; the draws are a function of the seed that is given.

    Args:
        config: their strengths, not both 0.
        num_classes: K.
    """

    def __init__(self, config: MixConfig, num_classes: int) -> None:
        transforms: list[torch.nn.Module] = []
        if config.mixup:
            transforms.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
        if config.cutmix:
            transforms.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
        assert transforms
        self._transform = v2.RandomChoice(transforms)

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Return mixed images `(N, C, H, W)` and the shares of the classes in each `(N, K)`, for labels `(N,)`."""
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also seed the device's generator, that stochastic depth draws from.
            torch.default_generator.manual_seed(seed)
            mixed: tuple[Tensor, Tensor] = self._transform(images, labels)
        return mixed


def change_affine(images: Tensor, change: Tensor, config: AffineConfig) -> Tensor:
    """Rotate, scale and shift each image by its own amounts (bilinear): torchvision's `affine`, which has one for all.

    Args:
        images: `(N, C, H, H)` in [-1, 1]; what comes in from outside is -1, or mirrored at the edge.
        change: `(N, 4)` in [-1, 1), as fractions of the largest rotation, scale and shifts to the right and down.
        config: the largest changes.
    """
    side = images.shape[-1]
    if config.rotate or config.scale:
        shift = config.shift * change[:, 2:]
    else:
        # Each whole number of pixels up to the largest is equally likely.
        most = math.floor(config.shift * side)
        shift = ((change[:, 2:] + 1) / 2 * (2 * most + 1)).floor().clamp(max=2 * most).sub(most) / side
    angle = change[:, 0] * math.radians(config.rotate)
    cos, sin = angle.cos(), angle.sin()
    # From a place in the result to that in the image, in coordinates that span 2 from side to side.
    linear = torch.stack([cos, sin, -sin, cos], 1).view(-1, 2, 2) / (1 + change[:, 1] * config.scale).view(-1, 1, 1)
    places = F.affine_grid(
        torch.cat([linear, -linear @ (2 * shift[:, :, None])], 2), list(images.shape), align_corners=False
    )
    # grid_sample pads with 0, which is to be black.
    padding = "reflection" if config.border == "mirror" else "zeros"
    return F.grid_sample(images + 1, places, padding_mode=padding, align_corners=False) - 1
