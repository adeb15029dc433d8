from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maxgan.training.losses import discriminator_loss, generator_loss, gradient_penalty


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_losses_are_the_logistic_ones() -> None:
    real, fake = [0.3, -2.0, 5.0], [1.5, -0.7, 0.1]
    discriminator = discriminator_loss("non_saturating", torch.tensor(real), torch.tensor(fake))
    # -E log sigmoid(D(real)) - E log(1 - sigmoid(D(fake)))
    expected = -sum(map(log_sigmoid, real)) / 3 - sum(math.log(1 - 1 / (1 + math.exp(-x))) for x in fake) / 3
    assert discriminator.item() == pytest.approx(expected, rel=1e-6)
    # Non-saturating: -E log sigmoid(D(fake))
    assert generator_loss("non_saturating", None, torch.tensor(fake)).item() == pytest.approx(
        -sum(map(log_sigmoid, fake)) / 3, rel=1e-6
    )


def test_relativistic_losses_compare_pairs() -> None:
    real, fake = [0.3, -2.0, 5.0], [1.5, -0.7, 0.1]
    ours = discriminator_loss("relativistic", torch.tensor(real), torch.tensor(fake)).item()
    assert ours == pytest.approx(-sum(log_sigmoid(r - f) for r, f in zip(real, fake, strict=True)) / 3, rel=1e-6)
    ours = generator_loss("relativistic", torch.tensor(real), torch.tensor(fake)).item()
    assert ours == pytest.approx(-sum(log_sigmoid(f - r) for r, f in zip(real, fake, strict=True)) / 3, rel=1e-6)


def test_losses_stay_finite_at_extreme_logits() -> None:
    logits = torch.tensor([1e4, -1e4])
    assert discriminator_loss("non_saturating", logits, logits).item() == pytest.approx(1e4)
    assert generator_loss("non_saturating", None, logits).item() == pytest.approx(5e3)


def quadratic(images: Tensor, weight: Tensor) -> Tensor:
    """D(x) = sum_i w_i x_i^2, whose gradient is 2 w x."""
    return (weight * images.square()).sum((1, 2, 3))


def test_penalty_is_the_mean_squared_norm_of_the_gradient_and_has_its_derivative() -> None:
    images = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(quadratic(images, weight), images).mean()
    torch.testing.assert_close(penalty, (2 * weight * images).square().sum((1, 2, 3)).mean())
    (slope,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(slope, (8 * weight * images.square()).mean(0))


@pytest.mark.parametrize("scale", [2.0**16, 2.0**-10])
def test_a_scale_changes_nothing_but_the_range(scale: float) -> None:
    images = torch.randn(3, 2, 2, 2, requires_grad=True)
    weight = torch.randn(2, 2, 2, requires_grad=True)
    results = []
    for factor in (1.0, scale):
        penalty = gradient_penalty(quadratic(images, weight), images, factor).mean()
        results.append((penalty, *torch.autograd.grad(penalty, weight)))
    # Powers of two are exact.
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=0)


def test_a_scale_saves_gradients_that_float16_can_not_hold() -> None:
    images = torch.full((1, 1, 1, 1), 1.0, dtype=torch.float16, requires_grad=True)
    slope = 2.0**-27

    def logits() -> Tensor:
        return (images.float() * slope).sum((1, 2, 3))

    assert gradient_penalty(logits(), images).item() == 0
    assert gradient_penalty(logits(), images, 2.0**16).item() == pytest.approx(slope**2)
    # A gradient above 256 has a square that float16 can't hold.
    steep = gradient_penalty((images * 300).sum((1, 2, 3)), images)
    assert steep.item() == pytest.approx(90_000)
