from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from maxgan.config import EmaConfig, Schedule, TrainingConfig
from maxgan.training.averaging import moving_average
from maxgan.training.schedules import ema_decay, lazy_adam, value_at


@pytest.mark.parametrize(("start", "end"), [(2.0, 0.5), (0.0, 0.55), (0.9, 0.99), (5.0, 0.0)])
def test_a_schedule_goes_from_its_start_to_its_end_and_stays(start: float, end: float) -> None:
    cosine, linear = Schedule(start, end), Schedule(start, end, over=400, shape="linear")
    for seen in (0, 100, 250, 1000, 3000):
        share = (1 - math.cos(math.pi * min(seen / 1000, 1))) / 2
        assert value_at(cosine, seen, 1000) == pytest.approx(start + (end - start) * share)
        assert value_at(linear, seen, 1000) == pytest.approx(start + (end - start) * min(seen / 400, 1))
    assert value_at(0.3, 77, 1000) == 0.3


def test_the_half_life_of_an_average_follows_its_schedule() -> None:
    network = nn.Linear(1, 1, bias=False)
    seen = 0
    config = EmaConfig(half_life=Schedule(0, 80, shape="linear"), warmup=0)
    average = moving_average(network, config, TrainingConfig(images=80, batch_size=20), lambda: seen)
    expected = 0.0
    for value in (1.0, 5.0, 2.0, 4.0):
        seen += 20
        nn.init.constant_(network.weight, value)
        average.update_parameters(network)
        # The first is taken as it is; then the half-life is 40, 60, 80.
        decay = 0.5 ** (20 / seen) if seen > 20 else 0.0
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.module.weight.item(), expected, rtol=1e-6, atol=0)


def test_after_a_half_life_of_images_half_of_the_old_value_is_left() -> None:
    for batch_size in (1, 20, 50):
        kept = 1.0
        for images in range(batch_size, 1001, batch_size):
            kept *= ema_decay(images, batch_size, half_life=1000, warmup=0)
        assert kept == pytest.approx(0.5)


def test_warm_up_limits_the_half_life_to_a_fraction_of_the_images_seen() -> None:
    # 5 % of 400 images is a half-life of 20: one update of 20 images halves the old value.
    assert ema_decay(400, 20, half_life=1000, warmup=0.05) == pytest.approx(0.5)
    assert ema_decay(40_000, 20, half_life=1000, warmup=0.05) == ema_decay(1, 20, half_life=1000, warmup=0)
    decays = [ema_decay(images, 20, 1000, 0.05) for images in range(20, 30_000, 20)]
    assert decays == sorted(decays)
    # The random start is forgotten: what is left of it after 1,000 images is 0.5 ** (20 * (1/1 + 1/2 + ... + 1/50)).
    left = 1.0
    for images in range(20, 1001, 20):
        left *= ema_decay(images, 20, 1e9, 0.05)
    assert left == pytest.approx(0.5 ** (20 * sum(1 / i for i in range(1, 51))))


@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_no_half_life_keeps_nothing(warmup: float) -> None:
    assert ema_decay(100, 10, half_life=0, warmup=warmup) == 0


@pytest.mark.parametrize("interval", [2, 4, 16])
def test_lazy_adam_makes_a_cycle_of_k_updates_last_as_long_as_k_plus_one(interval: int) -> None:
    lr, (beta1, beta2) = lazy_adam(1e-3, 0.5, 0.99, interval)
    # Over a cycle of k updates the rates add up to those of k * k / (k + 1) plain updates, and so do the memories.
    assert lr * (interval + 1) == pytest.approx(1e-3 * interval)
    assert beta1 ** (interval + 1) == pytest.approx(0.5**interval)
    assert beta2 ** (interval + 1) == pytest.approx(0.99**interval)


def test_lazy_adam_leaves_a_penalty_at_every_update_alone() -> None:
    assert lazy_adam(1e-3, 0.0, 0.99, 1) == (1e-3, (0.0, 0.99))
    assert lazy_adam(1e-3, 0.0, 0.99, 16)[1][0] == 0
