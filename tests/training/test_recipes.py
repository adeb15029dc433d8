"""Every recipe of a GAN trains, at tiny widths, from 16 to 256 px."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from maxgan.cli import parse
from maxgan.config import GanConfig, ImageFacts
from maxgan.training.gan import GanTrainer

FOLDER = Path(__file__).parents[2] / "configs"
BATCH, CLASSES = 4, 3
PAPER, HIT = "imagenet128_paper", "imagenet128_hit"
CASES = [
    ("digits", 16), (PAPER, 16), (PAPER, 32), (PAPER, 64), ("imagenet128_paper_cbaga", 32), (HIT, 32), (HIT, 64),
    ("ffhq256", 32), ("cifar10", 32), ("cifar10_study", 16), ("imagenet128_best", 32),
]  # fmt: skip
LARGE = [(PAPER, 128), (PAPER, 256), ("imagenet128_paper_cbaga", 128), (HIT, 128), (HIT, 256), ("ffhq256", 256),
         ("imagenet128_best", 128)]  # fmt: skip


def tiny(name: str, resolution: int) -> GanConfig:
    """A recipe with everything that makes it slow cut down, and all else as it is."""
    config, _ = parse(GanConfig, [f"--config={FOLDER}/{name}.yaml"])
    if config.networks.generator == "hit":
        stages = (resolution // 8).bit_length()
        widths, ones = (16,) * 2 + (8,) * (stages - 2), (1,) * stages
        hit = replace(config.hit, latent_dim=8, latent_tokens=2, widths=widths, depths=ones, heads=(2,) * stages)
        config = replace(config, hit=replace(hit, norm_group=2))
    else:
        small = replace(config.generator, latent_dim=8, latent_tokens=2, width=16, widths=None, head_dim=8, depth=1)
        config = replace(config, generator=replace(small, norm_group=2 if small.norm_group else None))
    return replace(
        config,
        data=replace(config.data, resolution=resolution),
        discriminator=replace(config.discriminator, max_width=8),
        training=replace(config.training, batch_size=BATCH, precision="no"),
    )


def check_training(name: str, resolution: int) -> None:
    """Two updates: finite metrics, finite weights that have moved, and an averaged generator that draws."""
    config = tiny(name, resolution)
    facts = ImageFacts(resolution, 3, CLASSES if config.data.labels else 0)
    trainer = GanTrainer(config, facts, Accelerator(cpu=True))
    networks = (trainer.generator, trainer.discriminator)
    before = [{k: v.clone() for k, v in network.named_parameters()} for network in networks]
    noise = torch.Generator().manual_seed(0)
    part = BATCH // config.training.accumulation
    images = torch.randint(0, 256, (part, 3, resolution, resolution), dtype=torch.uint8, generator=noise)
    batches = itertools.repeat((images, torch.arange(part) % CLASSES))
    for _ in range(2):
        metrics = trainer.step(batches)
        expected = {
            "loss_discriminator",
            "loss_generator",
            "real_logit",
            "fake_logit",
            "r1",
            "discriminator_accuracy",
            "variety",
            "gradient_norm_generator",
            "gradient_norm_discriminator",
        }
        expected |= {"bcr_real", "bcr_fake"} if config.loss.bcr_real else set()
        expected |= {"r2"} if config.loss.r2_gamma else set()
        expected |= {"augment_probability", "real_sign"} if config.augment.policy else set()
        assert metrics.keys() == expected
        assert all(math.isfinite(value) for value in metrics.values()), metrics
    optimizers = (trainer.optimizer_g, trainer.optimizer_d)
    for network, start, optimizer in zip(networks, before, optimizers, strict=True):
        for key, parameter in network.named_parameters():
            assert parameter.isfinite().all(), key
            if parameter.ndim > 1:  # at these widths, gradients of some norms are below what moves a weight of 1
                # Behind branches that start at zero, gradients may be below Adam's epsilon.
                felt = optimizer.state[parameter]["exp_avg"].any()
                assert felt and ("best" in name or not torch.equal(parameter, start[key])), key
    labels = torch.arange(2) if facts.num_classes else None
    drawn = trainer.ema.module.eval()(torch.zeros(2, trainer.latent_dim), labels)
    assert drawn.shape == (2, 3, resolution, resolution)
    assert drawn.isfinite().all()


@pytest.mark.parametrize(("name", "resolution"), CASES)
def test_a_recipe_trains(name: str, resolution: int) -> None:
    check_training(name, resolution)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "resolution"), LARGE)
def test_a_recipe_trains_at_its_size(name: str, resolution: int) -> None:
    check_training(name, resolution)
