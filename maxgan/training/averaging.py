"""The moving average of a network in training, and of its BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from maxgan.config import EmaConfig, TrainingConfig
from maxgan.training.schedules import ema_decay, value_at


def moving_average(
    network: nn.Module, config: EmaConfig, training: TrainingConfig, images_seen: Callable[[], int]
) -> AveragedModel:
    """Return an averaged copy of `network` (`.module`), buffers included, to update with `update_parameters`.

    Args:
        network: not wrapped, on its device.
        config: half-life and warm-up.
        training: its batch and length.
        images_seen: gives the images seen up to and including the update.
    """

    def average(averaged: Any, current: Any, _: Any) -> None:
        half_life = value_at(config.half_life, images_seen(), training.images)
        decay = ema_decay(images_seen(), training.batch_size, half_life, config.warmup)
        get_ema_multi_avg_fn(decay)(averaged, current, 0)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True).requires_grad_(False)
