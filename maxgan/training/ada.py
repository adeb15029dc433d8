"""The augmentations of ADA (arXiv 2006.06676, appendix B) but its filters and corruptions, and their adaptive
probability. Written with gathers and products alone, which have derivatives of every order on every device."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from accelerate import Accelerator
from torch import Tensor

from maxgan.config import AugmentConfig

VALUES = 15
GATES = 13
ADA_DRAWS = VALUES + GATES
"""Random numbers for one image: what each part does, then whether it happens."""
ADJUST_EVERY = 4
"""Updates from one adjustment of the adaptive probability to the next, as published."""


def ada(images: Tensor, draws: Tensor, names: Collection[str], probability: float) -> Tensor:
    """Change each image by its own random numbers, each part with `probability`, differentiable in the images.

    The parts always come in the paper's order: xflip, rotate90, xint, scale, rotate (half of it), aniso, rotate (the
    other half), xfrac; brightness, contrast, lumaflip, hue, saturation. All that moves pixels is one bilinear sampling,
    exact where pixels fall on pixels; beyond its edges an image is mirrored. (The paper samples at twice the
    resolution, between two wavelet filters, which blurs less.)

    Args:
        images: `(N, C, H, H)` in [-1, 1]; the result may leave that range. Alpha moves, but keeps its values.
        draws: `(N, 28)`, uniform in [0, 1); each part has its own columns, whatever the names.
        names: of `ADA`.
        probability: in [0, 1]; the two rotations happen with 1 - sqrt(1 - p) each, so that p of the images are rotated.
    """
    # Half precision would round what is blended of pixels.
    images = images.to(torch.promote_types(images.dtype, draws.dtype))
    values, gates = draws[:, :VALUES], draws[:, VALUES:]
    half = 1 - math.sqrt(1 - probability)

    def drawn(name: str, value: int, gate: int, change: Callable[[Tensor], Tensor], neutral: float) -> Tensor:
        """Return `change` of one column where its gate is open, else what changes nothing, `(N, 1, 1)`."""
        if name not in names:
            return torch.full_like(values[:, :1, None], neutral)
        happens = gates[:, gate] < (half if name == "rotate" else probability)
        return torch.where(happens, change(values[:, value]), neutral)[:, None, None]

    side = images.shape[-1]
    flip = drawn("xflip", 0, 0, lambda u: 1 - 2 * (u * 2).floor(), 1)
    quarter = drawn("rotate90", 1, 1, lambda u: (u * 4).floor().clamp(max=3), 0)
    whole = [drawn("xint", i, 2, lambda u: ((u * 2 - 1) * 0.125 * side).round(), 0) for i in (2, 3)]
    scale = drawn("scale", 4, 3, lambda u: torch.exp2(0.2 * _normal(u)), 1)
    before = drawn("rotate", 5, 4, _angle, 0)
    aniso = drawn("aniso", 6, 5, lambda u: torch.exp2(0.2 * _normal(u)), 1)
    after = drawn("rotate", 7, 6, _angle, 0)
    fraction = [drawn("xfrac", i, 7, lambda u: 0.125 * side * _normal(u), 0) for i in (8, 9)]
    if not {"xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac"}.isdisjoint(names):
        # From the places of the result back to those of the image: the last change is undone first.
        places = torch.arange(side, device=images.device, dtype=draws.dtype) - (side - 1) / 2
        x, y = places[None, None, :] - fraction[0], places[None, :, None] - fraction[1]
        x, y = _turn(x, y, after.cos(), -after.sin())
        x, y = _turn(x / aniso, y * aniso, before.cos(), -before.sin())
        x, y = x / scale - whole[0], y / scale - whole[1]
        # Exact where a cosine would not be.
        x, y = _turn(x, y, (1 - quarter) * (1 - quarter % 2), -(2 - quarter) * (quarter % 2))
        images = sample_mirrored(images, x * flip + (side - 1) / 2, y + (side - 1) / 2)

    brightness = drawn("brightness", 10, 8, lambda u: 0.2 * _normal(u), 0)
    contrast = drawn("contrast", 11, 9, lambda u: torch.exp2(0.5 * _normal(u)), 1)
    luma = drawn("lumaflip", 12, 10, lambda u: 1 - 2 * (u * 2).floor(), 1)
    hue = drawn("hue", 13, 11, _angle, 0)
    saturation = drawn("saturation", 14, 12, lambda u: torch.exp2(_normal(u)), 1)
    if not {"brightness", "contrast", "lumaflip", "hue", "saturation"}.isdisjoint(names):
        images = _recolour(images, *(v[..., None] for v in (brightness, contrast, luma, hue, saturation)))
    return images


def sample_mirrored(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the images at places `(N, H, W)` in pixels, bilinear, mirrored at the centres of the edge's pixels."""
    n, channels, height, width = images.shape
    (top, down), (left, right) = (_pair(p, size) for p, size in ((y, height), (x, width)))
    down, right = down.to(images.dtype), right.to(images.dtype)
    flat = images.flatten(2)

    def taken(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).flatten(1)[:, None].expand(-1, channels, -1)
        return flat.gather(2, index).view(n, channels, *x.shape[1:])

    upper = torch.lerp(taken(top, left), taken(top, left + 1), right[:, None])
    lower = torch.lerp(taken(top + 1, left), taken(top + 1, left + 1), right[:, None])
    return torch.lerp(upper, lower, down[:, None])


def _pair(place: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the first of the two pixels around each place, and how far on the way to the second it lies."""
    period = 2 * (size - 1)
    place = place.remainder(period)
    place = torch.minimum(place, period - place)
    first = place.floor().clamp(0, size - 2)
    return first.long(), place - first


def _recolour(
    images: Tensor, brightness: Tensor, contrast: Tensor, luma: Tensor, hue: Tensor, saturation: Tensor
) -> Tensor:
    """Change colours as matrices of the paper do: in terms of grey, the part along (1, 1, 1), and what is across it."""
    colours, alpha = split_alpha(images)
    colours = (colours + brightness) * contrast
    grey = colours.mean(1, keepdim=True)
    across = colours - grey
    if colours.shape[1] == 3:
        # A rotation about (1, 1, 1) / sqrt(3) by its formula, with the cross product written out.
        cross = (across.roll(1, 1) - across.roll(-1, 1)) / math.sqrt(3)
        across = across * hue.cos() + cross * hue.sin()
    return torch.cat([grey * luma + across * saturation, alpha], 1)


def split_alpha(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the colours, and alpha, which has no channel where there is none."""
    channels = images.shape[1]
    colours, alpha = images.split([channels - 1, 1] if channels % 2 == 0 else [channels, 0], 1)
    return colours, alpha


def _turn(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return x * cos - y * sin, x * sin + y * cos


def _angle(draw: Tensor) -> Tensor:
    return (draw * 2 - 1) * math.pi


def _normal(draw: Tensor) -> Tensor:
    """Return standard normal numbers for draws uniform in [0, 1)."""
    return torch.special.ndtri(draw.clamp(min=2**-25))  # finite at 0


class AdaptiveProbability:
    """ADA's probability of augmentation: it rises while D knows the reals by heart (arXiv 2006.06676, section 3.2).

    Every four updates the mean sign of D at the reals they showed, over all processes, is compared with the target, and
    the probability moves by the images shown / `adapt_images`, up if the sign is above it, else down, within [0, 1].

    Args:
        config: with a target.
        batch_size: of one update over all processes.
        device: of the signs.

    Attributes:
        value: the probability, the same on every process.
    """

    def __init__(self, config: AugmentConfig, batch_size: int, device: torch.device) -> None:
        assert config.target is not None
        self.target = config.target
        self.pace = ADJUST_EVERY * batch_size / config.adapt_images
        self.value = 0.0
        self.signs = torch.zeros((), device=device)

    def add(self, sign: Tensor, update: int, accelerator: Accelerator) -> None:
        """Take the mean sign of update number `update`, on every process."""
        self.signs = self.signs + sign.to(self.signs)
        if (update + 1) % ADJUST_EVERY:
            return
        excess = float(accelerator.reduce(self.signs, reduction="mean")) / ADJUST_EVERY - self.target
        step = math.copysign(self.pace, excess) if excess else 0.0
        self.value = min(max(self.value + step, 0.0), 1.0)
        self.signs = torch.zeros_like(self.signs)

    def share(self, accelerator: Accelerator) -> None:
        """Give every process the mean of all their sums, as a checkpoint holds one for them all; all must call this.

        Those that go on have the same sums then as those that resume, and adapt alike.
        """
        if accelerator.num_processes > 1:
            self.signs = accelerator.reduce(self.signs, reduction="mean")

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs."""
        return {"value": torch.tensor(self.value, dtype=torch.float64), "signs": self.signs}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        self.value = float(tensors["value"])
        self.signs = tensors["signs"].to(self.signs)
