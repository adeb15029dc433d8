"""The updates of a GAN: the discriminator's objective and the learning rates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from maxgan.config import (
    DataConfig,
    DiscriminatorConfig,
    GanConfig,
    GeneratorConfig,
    LossConfig,
    OptimConfig,
    TrainingConfig,
)
from maxgan.data.loader import ImageDataset, training_batches
from maxgan.models import ResidualDiscriminator
from maxgan.training.gan import DiscriminatorObjective, GanTrainer

TINY = GanConfig(
    generator=GeneratorConfig(latent_dim=8, width=16, head_dim=8, latent_tokens=4),
    discriminator=DiscriminatorConfig(1 / 128, 16),
    training=TrainingConfig(images=64, batch_size=8),
)


def naive_penalty(discriminator: ResidualDiscriminator, images: Tensor, labels: Tensor) -> Tensor:
    """Mean over images, one by one, of the squared norm of the gradient."""
    norms = []
    for image, label in zip(images, labels, strict=True):
        x = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(x, label[None]).sum(), x, create_graph=True)
        norms.append(gradient.square().sum())
    return torch.stack(norms).mean()


@pytest.mark.parametrize("loss", ["non_saturating", "relativistic"])
@pytest.mark.parametrize("gammas", [(0.0, 0.0), (0.7, 0.0), (0.0, 0.3), (0.7, 0.3)])
def test_the_objective_is_the_loss_and_its_penalties(loss: str, gammas: tuple[float, float]) -> None:
    torch.manual_seed(0)
    discriminator = ResidualDiscriminator(8, 1, 3, max_width=8).double()
    real, fake = torch.randn(4, 1, 8, 8).double(), torch.randn(4, 1, 8, 8).double()
    labels = torch.tensor([0, 1, 2, 1])
    objective = DiscriminatorObjective(discriminator, loss)  # type: ignore[arg-type]
    value, parts = objective(real, fake, labels, *gammas, 1.0)
    gradients = torch.autograd.grad(value, list(discriminator.parameters()))

    a, b = discriminator(real, labels), discriminator(fake, labels)
    expected = F.softplus(b - a).mean() if loss == "relativistic" else (F.softplus(-a) + F.softplus(b)).mean()
    for gamma, name, images in zip(gammas, ("r1", "r2"), (real, fake), strict=True):
        assert (name in parts) == (gamma > 0)
        if gamma:
            penalty = naive_penalty(discriminator, images, labels)
            torch.testing.assert_close(parts[name], penalty)
            expected = expected + gamma / 2 * penalty
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, list(discriminator.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs)
    # What the caller uses again must not ask for a gradient.
    assert not real.requires_grad
    assert not fake.requires_grad


def rates(config: GanConfig) -> list[tuple[float, float]]:
    """The learning rates of G and D that every update of a short training was made with."""
    dataset = ImageDataset(DataConfig())
    trainer = GanTrainer(config, dataset.facts, Accelerator(cpu=True))
    batches = training_batches(dataset, config.training.batch_size, 0)
    found = []
    while trainer.images_seen < config.training.images:
        trainer.step(batches)
        found.append((trainer.optimizer_g.param_groups[0]["lr"], trainer.optimizer_d.param_groups[0]["lr"]))
    return found


def test_learning_rates_fall_on_a_cosine_in_images_seen() -> None:
    optim = OptimConfig(lr=1e-3, discriminator_lr=2e-3, final_lr=1e-4)
    found = rates(replace(TINY, optim=optim))
    # cos(0), cos(pi / 8), ...
    cosines = [1.0, 0.9238795325, 0.7071067812, 0.3826834324, 0.0, -0.3826834324, -0.7071067812, -0.9238795325]
    for (lr_g, lr_d), value in zip(found, cosines, strict=True):
        assert lr_g == pytest.approx(1e-4 + 9e-4 * (1 + value) / 2)
        assert lr_d == pytest.approx(2 * lr_g)


def test_without_a_final_rate_and_with_lazy_penalties() -> None:
    config = replace(TINY, optim=OptimConfig(lr=1e-3, final_lr=None), loss=LossConfig(penalty_interval=4))
    for lr_g, lr_d in rates(config):
        assert lr_g == 1e-3
        assert lr_d == pytest.approx(8e-4)
