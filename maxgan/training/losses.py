"""Losses and penalties of GANs, as pure functions of logits and images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from maxgan.config import LossName


def discriminator_loss(name: LossName, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the loss of the discriminator; its arguments are logits `(N,)`.

    - `non_saturating`: E softplus(-D(real)) + E softplus(D(fake)) (arXiv 1406.2661).
    - `relativistic`: E softplus(-(D(real) - D(fake))) over pairs of a real and a fake (arXiv 1807.00734, 2501.05441).
    """
    if name == "relativistic":
        return F.softplus(fake_logits - real_logits).mean()
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(name: LossName, real_logits: Tensor | None, fake_logits: Tensor) -> Tensor:
    """Return the loss of the generator; its arguments are logits `(N,)`, those of reals needed by `relativistic` alone.

    - `non_saturating`: E softplus(-D(fake)) (arXiv 1406.2661, section 3).
    - `relativistic`: E softplus(-(D(fake) - D(real))): the discriminator's with the roles exchanged.
    """
    if name == "relativistic":
        assert real_logits is not None
        return F.softplus(real_logits - fake_logits).mean()
    return F.softplus(-fake_logits).mean()


def gradient_penalty(logits: Tensor, images: Tensor, scale: float = 1.0) -> Tensor:
    """Return |gradient of D at an image|^2 for each image, `(N,)`; the mean over reals is R1, over fakes R2.

    Differentiable: backward reaches the discriminator's weights through the gradient (arXiv 1801.04406).

    Args:
        logits: `(N,)`, computed from `images`.
        images: `(N, C, H, W)`, requiring grad; no logit may depend on another's image.
        scale: loss scale of float16 training; the gradient is taken of scaled logits, so that it does not underflow,
            and divided again.
    """
    (gradient,) = torch.autograd.grad(logits.sum() * scale, images, create_graph=True)
    # Float32 at least, before the division and the square: both could leave the range of float16.
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale
    return gradient.square().sum((1, 2, 3))
