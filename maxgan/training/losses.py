"""Losses and penalties of GANs, as pure functions of logits and images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss of the discriminator: E softplus(-D(real)) + E softplus(D(fake)) (arXiv 1406.2661)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of the generator: E softplus(-D(fake)) (arXiv 1406.2661, section 3)."""
    return F.softplus(-fake_logits).mean()


def gradient_penalty(logits: Tensor, images: Tensor, scale: float = 1.0) -> Tensor:
    """Return E |gradient of D at an image|^2, the R1 penalty without its weight (arXiv 1801.04406).

    Differentiable: backward reaches the discriminator's weights through the gradient.

    Args:
        logits: `(N,)`, computed from `images`.
        images: `(N, C, H, W)`, requiring grad; no logit may depend on another's image.
        scale: loss scale of float16 training; the gradient is taken of scaled logits, so that it does not underflow,
            and divided again.
    """
    (gradient,) = torch.autograd.grad(logits.sum() * scale, images, create_graph=True)
    # Float32 at least, before the division and the square: both could leave the range of float16.
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / scale
    return gradient.square().sum((1, 2, 3)).mean()
