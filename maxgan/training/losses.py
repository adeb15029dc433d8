"""Losses and penalties of GANs, as pure functions of logits and images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maxgan.config import LossName
from maxgan.nn.autocast import without_autocast


def discriminator_loss(name: LossName, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the loss of the discriminator; its arguments are logits `(N,)`.

    - `non_saturating`: E softplus(-D(real)) + E softplus(D(fake)) (arXiv 1406.2661).
    - `hinge`: E max(0, 1 - D(real)) + E max(0, 1 + D(fake)) (arXiv 1705.02894).
    - `relativistic`: E softplus(-(D(real) - D(fake))) over pairs of a real and a fake (arXiv 1807.00734, 2501.05441).
    """
    if name == "relativistic":
        return F.softplus(fake_logits - real_logits).mean()
    if name == "hinge":
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(name: LossName, real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
    """Return the loss of the generator; its arguments are logits `(N,)`, those of reals needed by `relativistic` alone.

    - `non_saturating`: E softplus(-D(fake)) (arXiv 1406.2661, section 3).
    - `hinge`: -E D(fake).
    - `relativistic`: E softplus(-(D(fake) - D(real))): the discriminator's with the roles exchanged.
    """
    if name == "relativistic":
        assert real_logits is not None
        return F.softplus(real_logits - fake_logits).mean()
    if name == "hinge":
        return -fake_logits.mean()
    return F.softplus(-fake_logits).mean()


def automatic_gamma(resolution: int, batch_size: int) -> float:
    """Return StyleGAN2-ADA's weight of R1, 0.0002 * resolution^2 / batch_size, for a resolution in pixels and a global
    batch (arXiv 2006.06676, its `auto` configuration)."""
    return 0.0002 * resolution**2 / batch_size


def gradient_penalty(logits: Tensor, images: Tensor, scale: float = 1.0) -> Tensor:
    """Return |gradient of D at an image|^2 for each image, `(N,)`; the mean over reals is R1, over fakes R2.

    Differentiable: backward reaches the discriminator's weights through the gradient (arXiv 1801.04406).

    Args:
        logits: `(N,)`, computed from `images`.
        images: `(N, C, H, W)`, requiring grad; no logit may depend on another's image.
        scale: loss scale of float16 training; the gradient is taken of scaled logits, so that it does not underflow,
            and divided again.
    """
    # Autocast would take the first products of this backward pass to half precision, where a loss scale of 65,536 is
    # infinite.
    with without_autocast(images.device):
        (gradient,) = torch.autograd.grad(logits.sum() * scale, images, create_graph=True)
    # Float32 at least, before the division and the square: both could leave the range of float16.
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale
    return gradient.square().sum((1, 2, 3))


def directions_of(normal: Tensor, images: Tensor) -> Tensor:
    """Return a direction for each image, uniform on the sphere of radius sqrt(d), d = C * H * W.

    So its mean square is 1 a pixel, and the mean over directions v of (v . g)^2 is |g|^2 for every g.

    Args:
        normal: `(N, d)`, standard normal.
        images: `(N, C, H, W)`, whose shape the directions take.
    """
    unit = normal / normal.square().mean(1, keepdim=True).sqrt()
    return unit.view(images.shape).to(images)


def finite_difference_penalty(logits: Tensor, moved_logits: Tensor, step: float) -> Tensor:
    """Return ((D(x + step * v) - D(x)) / step)^2 for each image, `(N,)`: a gradient penalty of first derivatives alone.

    For directions of `directions_of` its mean is |gradient of D|^2 up to terms of the order of `step`; so is that of
    its derivative by D's weights. After the penalty of arXiv 2501.08316 (section 3.4), there a plain difference for
    Gaussian v, without the division. For discriminators whose layers have no second derivative.

    Args:
        logits: D(x), `(N,)`.
        moved_logits: D(x + step * v), `(N,)`.
        step: root mean square of the change of a pixel.
    """
    # Float32 at least: two logits of half precision may differ by nothing but their rounding.
    wide = torch.promote_types(logits.dtype, torch.float32)
    return ((moved_logits.to(wide) - logits.to(wide)) / step).square()
