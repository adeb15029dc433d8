"""Moving averages of a network in training, and of its BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from maxgan.config import EmaConfig, GanEmaConfig, TrainingConfig
from maxgan.training.power_ema import power_decay
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

    def decay() -> float:
        half_life = value_at(config.half_life, images_seen(), training.images)
        return ema_decay(images_seen(), training.batch_size, half_life, config.warmup)

    return _averaged(network, decay)


def further_averages(
    network: nn.Module, config: GanEmaConfig, training: TrainingConfig, images_seen: Callable[[], int]
) -> dict[str, AveragedModel]:
    """Return an averaged copy for every one of `config.others`, named `half-life-5000`, and of `config.power`, named
    `power-0.05`; the arguments are those of `moving_average`."""
    found = {
        f"half-life-{half_life:g}": moving_average(network, replace(config, half_life=half_life), training, images_seen)
        for half_life in config.others
    }
    for width in config.power:

        def decay(width: float = width) -> float:
            return power_decay(images_seen(), training.batch_size, width)

        found[f"power-{width:g}"] = _averaged(network, decay)
    return found


def _averaged(network: nn.Module, decay: Callable[[], float]) -> AveragedModel:
    def average(averaged: Any, current: Any, _: Any) -> None:
        get_ema_multi_avg_fn(decay())(averaged, current, 0)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True).requires_grad_(False)
