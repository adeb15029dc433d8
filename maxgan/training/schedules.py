"""What changes during training, as functions of the images seen."""

from __future__ import annotations

import math

from maxgan.config import Schedule, Scheduled


def value_at(setting: Scheduled, images_seen: int, total: int) -> float:
    """Return the value of a setting after `images_seen` images, in a training of `total`."""
    if not isinstance(setting, Schedule):
        return float(setting)
    progress = min(images_seen / (setting.over or total), 1.0)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if setting.shape == "cosine" else 1 - progress
    if setting.start == 0:
        return setting.end * (1 - left)
    # As a factor of the start: both networks' rates then fall in exactly the same proportion.
    end = setting.end / setting.start
    return setting.start * (end + (1.0 - end) * left)


def ema_decay(images_seen: int, batch_size: int, half_life: float, warmup: float) -> float:
    """Return the weight that a moving average keeps of its old value at one update.

    The half-life is `half_life` images, and early in training at most `warmup` times the images seen (StyleGAN2-ADA's
    ramp-up), so that the random start is forgotten.

    Args:
        images_seen: images seen up to and including this update.
        batch_size: images of one update.
        half_life: images; 0 keeps nothing, so that the average is the newest value.
        warmup: fraction; 0 for none.
    """
    effective = min(half_life, warmup * images_seen) if warmup > 0 else half_life
    return 0.5 ** (batch_size / effective) if effective > 0 else 0.0


def lazy_adam(lr: float, beta1: float, beta2: float, interval: int) -> tuple[float, tuple[float, float]]:
    """Return Adam's lr and betas for a network whose penalty runs every `interval` updates (StyleGAN2, appendix B).

    One cycle of k updates and one penalty counts as k + 1 updates: with c = k / (k + 1), they are lr * c, beta1 ** c
    and beta2 ** c.
    """
    c = interval / (interval + 1) if interval > 1 else 1.0
    return lr * c, (float(beta1**c), float(beta2**c))
