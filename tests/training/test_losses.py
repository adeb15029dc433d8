from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maxgan.config import LossConfig
from maxgan.models import MaxViTDiscriminator, ResidualDiscriminator
from maxgan.training.losses import (
    automatic_gamma,
    directions_of,
    discriminator_loss,
    finite_difference_penalty,
    generator_loss,
    gradient_penalty,
)


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


def test_hinge_losses_leave_alone_what_is_beyond_the_margin() -> None:
    real, fake = torch.tensor([0.25, -2.0, 5.0]), torch.tensor([1.5, -0.75, -3.0])
    assert discriminator_loss("hinge", real, fake).item() == pytest.approx((0.75 + 3 + 0) / 3 + (2.5 + 0.25 + 0) / 3)
    assert generator_loss("hinge", None, fake).item() == pytest.approx(-(1.5 - 0.75 - 3) / 3)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_takes_no_part_of_the_gradient_of_logits(dtype: torch.dtype) -> None:
    """The last layer is float32: so is the product that its gradient begins with, where 65,536 is no float16."""
    torch.manual_seed(0)
    discriminator = ResidualDiscriminator(16, 1, 0, channel_multiplier=1 / 64, max_width=16)
    images = torch.randn(4, 1, 16, 16)

    def penalty(scale: float) -> Tensor:
        seen = images.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            return gradient_penalty(discriminator(seen), seen, scale).mean()

    expected = penalty(1)
    assert expected > 0
    torch.testing.assert_close(penalty(2.0**16), expected, rtol=1e-2, atol=0)
    images = torch.randn(8, 16, 1, 1, requires_grad=True)
    weight = torch.full((1, 16), 1 + 2.0**-12)  # which half precision rounds to 1
    with torch.autocast("cpu", dtype):
        with torch.autocast("cpu", enabled=False):
            logits = F.linear(images.flatten(1), weight)[:, 0]
        found = gradient_penalty(logits, images)
    torch.testing.assert_close(found, torch.full((8,), float(weight.square().sum())), rtol=1e-6, atol=0)


def test_the_gamma_that_is_found_is_that_of_stylegan2() -> None:
    # 1024 px and batches of 32: the value that StyleGAN2's authors print; and their hand-set 10 is of that order.
    assert automatic_gamma(1024, 32) == pytest.approx(6.5536)
    assert automatic_gamma(32, 64) == pytest.approx(0.0032)


def axes(count: int) -> Tensor:
    """All of `count` orthogonal directions, of length sqrt(count): the mean over them is that over the sphere."""
    random = torch.randn(count, count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.linalg.qr(random)[0] * math.sqrt(count)


def test_over_all_directions_the_finite_difference_is_the_penalty_and_so_is_its_derivative() -> None:
    """A discriminator of attention, in float64: the error goes with the step, to first order."""
    torch.manual_seed(0)
    discriminator = MaxViTDiscriminator(8, 1, 0, width=8, depth=1, head_dim=4, window_size=4).double()
    weights = list(discriminator.parameters())
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    exact = gradient_penalty(discriminator(image), image).mean()
    slopes = torch.cat([g.flatten() for g in torch.autograd.grad(exact, weights, materialize_grads=True)])
    errors = []
    for step in (1e-3, 1e-4):
        moved = discriminator(image.detach() + step * directions_of(axes(64), image.detach().expand(64, 1, 8, 8)))
        found = finite_difference_penalty(discriminator(image.detach()), moved, step).mean()
        gradients = torch.cat([g.flatten() for g in torch.autograd.grad(found, weights)])
        differences = ((found - exact).abs() / exact, (gradients - slopes).norm() / slopes.norm())
        errors.append([value.item() for value in differences])
    for coarse, fine in zip(*errors, strict=True):
        assert fine < 2e-3
        assert fine == pytest.approx(coarse / 10, rel=0.1)


def test_the_step_that_is_the_default_is_small_enough() -> None:
    """In float32, of an untrained discriminator of attention at 16 px, over directions and their opposites."""
    torch.manual_seed(0)
    discriminator = MaxViTDiscriminator(16, 1, 0, width=16, depth=1, head_dim=8, window_size=4)
    image = (torch.rand(1, 1, 16, 16) * 2 - 1).requires_grad_()
    exact = gradient_penalty(discriminator(image), image).mean()
    step = LossConfig().penalty_step
    directions = directions_of(axes(256).float(), image.detach().expand(256, 1, 16, 16))
    with torch.no_grad():
        moved = discriminator(image + step * torch.cat([directions, -directions]))
        found = finite_difference_penalty(discriminator(image), moved, step).mean()
    assert found.item() == pytest.approx(exact.item(), rel=0.05)


def test_directions_are_of_one_length_and_favour_none() -> None:
    normal = torch.randn(20_000, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    directions = directions_of(normal, torch.empty(20_000, 3, 2, 2, dtype=torch.float64)).flatten(1)
    torch.testing.assert_close(directions.square().sum(1), torch.full((20_000,), 12.0, dtype=torch.float64))
    torch.testing.assert_close(
        directions.T @ directions / 20_000, torch.eye(12, dtype=torch.float64), atol=0.04, rtol=0
    )


class Once(torch.autograd.Function):
    """tanh with a first derivative alone, as fused attention has."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * (1 - x.tanh().square())


def test_a_finite_difference_needs_no_second_derivative() -> None:
    images = torch.randn(3, 1, 2, 2, requires_grad=True)
    weight = torch.randn(1, 2, 2, requires_grad=True)

    def logits(x: Tensor) -> Tensor:
        return Once.apply(weight * x).square().sum((1, 2, 3))

    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient_penalty(logits(images), images).sum().backward()
    images = images.detach()
    moved = logits(images + 0.01 * directions_of(torch.randn(3, 4), images))
    finite_difference_penalty(logits(images), moved, 0.01).sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().min() > 0
