"""The updates of a GAN: the discriminator's objective, both orders of the updates, and the learning rates."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from maxgan.config import (
    AugmentConfig,
    DataConfig,
    DiscriminatorConfig,
    GanConfig,
    GeneratorConfig,
    ImageFacts,
    LossConfig,
    OptimConfig,
    Schedule,
    TrainingConfig,
)
from maxgan.data.loader import ImageDataset, training_batches
from maxgan.models import ResidualDiscriminator
from maxgan.training.augment import ALL_DRAWS, augment
from maxgan.training.draws import seed_of
from maxgan.training.gan import GanTrainer
from maxgan.training.objective import DiscriminatorObjective

TINY = GanConfig(
    generator=GeneratorConfig(latent_dim=8, width=16, head_dim=8, latent_tokens=4),
    discriminator=DiscriminatorConfig(1 / 128, 16),
    training=TrainingConfig(images=64, batch_size=8),
)


POLICY = "ada,cutout"


def naive_penalty(
    discriminator: ResidualDiscriminator, images: Tensor, labels: Tensor, draws: Tensor | None = None, p: float = 1
) -> Tensor:
    """Mean over images, one by one, of the squared norm of the gradient, through their augmentation."""
    norms = []
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        x = image[None].clone().requires_grad_()
        seen = x if draws is None else augment(x, draws[i : i + 1], POLICY, p)
        (gradient,) = torch.autograd.grad(discriminator(seen, label[None]).sum(), x, create_graph=True)
        norms.append(gradient.square().sum())
    return torch.stack(norms).mean()


LOSSES = {
    "non_saturating": lambda real, fake: (F.softplus(-real) + F.softplus(fake)).mean(),
    "hinge": lambda real, fake: ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)).mean(),
    "relativistic": lambda real, fake: F.softplus(fake - real).mean(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gammas", [(0.0, 0.0), (0.7, 0.0), (0.0, 0.3), (0.7, 0.3)])
def test_the_objective_is_the_loss_and_its_penalties(loss: str, gammas: tuple[float, float]) -> None:
    torch.manual_seed(0)
    discriminator = ResidualDiscriminator(8, 1, 3, max_width=8).double()
    real, fake = torch.randn(4, 1, 8, 8).double(), torch.randn(4, 1, 8, 8).double()
    labels = torch.tensor([0, 1, 2, 1])
    objective = DiscriminatorObjective(discriminator, LossConfig(name=loss))  # type: ignore[arg-type]
    value, parts = objective(real, fake, labels, *gammas, 1.0)
    gradients = torch.autograd.grad(value, list(discriminator.parameters()))

    a, b = discriminator(real, labels), discriminator(fake, labels)
    expected = LOSSES[loss](a, b)
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


@pytest.mark.parametrize("weights", [(3.0, 0.0), (0.0, 2.0), (3.0, 2.0)])
def test_consistency_is_the_squared_distance_of_the_logits(weights: tuple[float, float]) -> None:
    torch.manual_seed(0)
    discriminator = ResidualDiscriminator(8, 1, 3, max_width=8).double()
    real, fake, changed_real, changed_fake = torch.randn(4, 5, 1, 8, 8).double()
    labels = torch.tensor([0, 1, 2, 1, 0])
    config = LossConfig(bcr_real=weights[0], bcr_fake=weights[1])
    changed = (changed_real if weights[0] else None, changed_fake if weights[1] else None)
    value, parts = DiscriminatorObjective(discriminator, config)(real, fake, labels, 0.7, 0.0, 1.0, *changed)
    plain, _ = DiscriminatorObjective(discriminator, config)(real, fake, labels, 0.7, 0.0, 1.0)
    expected = plain
    for name, weight, images, others in zip(
        ("bcr_real", "bcr_fake"), weights, (real, fake), (changed_real, changed_fake), strict=True
    ):
        assert (name in parts) == (weight > 0)
        if weight:
            distances = [
                (discriminator(b[None], c[None]) - discriminator(a[None], c[None])).square()
                for a, b, c in zip(images, others, labels, strict=True)
            ]
            expected = expected + weight * sum(distances)[0] / 5
    torch.testing.assert_close(value, expected)
    # Both logits are moved: no side is held.
    parameters = list(discriminator.parameters())
    for a, b in zip(torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gammas", [(0.0, 0.0), (0.7, 0.0), (0.0, 0.3), (0.7, 0.3)])
def test_all_that_d_sees_is_augmented_and_penalties_are_of_the_images_before(gammas: tuple[float, float]) -> None:
    torch.manual_seed(0)
    discriminator = ResidualDiscriminator(8, 1, 3, max_width=8).double()
    images = torch.randn(4, 4, 1, 8, 8).double()
    draws = torch.rand(2, 4, ALL_DRAWS).double()
    labels = torch.tensor([0, 1, 2, 1])
    config = LossConfig("non_saturating", bcr_real=3.0, bcr_fake=2.0)
    objective = DiscriminatorObjective(discriminator, config, POLICY)
    value, parts = objective(*images[:2], labels, *gammas, 1.0, *images[2:], None, None, *draws, 0.7)
    real, fake, changed_real, changed_fake = (
        discriminator(augment(x, draws[side], POLICY, 0.7), labels)
        for x, side in zip(images, (0, 1, 0, 1), strict=True)
    )
    expected = LOSSES["non_saturating"](real, fake)
    expected = expected + 3 * (changed_real - real).square().mean() + 2 * (changed_fake - fake).square().mean()
    for gamma, x, numbers in zip(gammas, images, draws, strict=False):
        expected = expected + gamma / 2 * naive_penalty(discriminator, x, labels, numbers, 0.7)
    torch.testing.assert_close(value, expected)
    parameters = list(discriminator.parameters())
    for a, b in zip(torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b)
    assert parts["real_sign"] == real.sign().mean()


@pytest.mark.parametrize(
    ("gammas", "policy"), [((0.7, 0.0), None), ((0.0, 0.3), POLICY), ((0.7, 0.3), None), ((0.7, 0.3), POLICY)]
)
def test_finite_differences_stand_in_for_the_penalties(gammas: tuple[float, float], policy: str | None) -> None:
    torch.manual_seed(0)
    discriminator = ResidualDiscriminator(8, 1, 3, max_width=8).double()
    real, fake, *directions = torch.randn(4, 4, 1, 8, 8).double()
    labels = torch.tensor([0, 1, 2, 1])
    config = LossConfig(penalty="finite_difference", penalty_step=1e-6)
    given = [v if gamma else None for v, gamma in zip(directions, gammas, strict=True)]
    draws: tuple[Tensor | None, ...] = (None, None)
    if policy:  # the same for an image and where it is moved to, before it is augmented
        draws = tuple(torch.rand(2, 4, ALL_DRAWS).double())
    objective = DiscriminatorObjective(discriminator, config, policy)
    value, parts = objective(real, fake, labels, *gammas, 1.0, None, None, *given, *draws, 0.7)

    def judge(images: Tensor, numbers: Tensor | None) -> Tensor:
        seen = images if policy is None or numbers is None else augment(images, numbers, policy, 0.7)
        logits: Tensor = discriminator(seen, labels)
        return logits

    expected = LOSSES["relativistic"](judge(real, draws[0]), judge(fake, draws[1]))
    for gamma, name, images, v, numbers in zip(gammas, ("r1", "r2"), (real, fake), directions, draws, strict=True):
        assert (name in parts) == (gamma > 0)
        if gamma:
            x = images.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(judge(x, numbers).sum(), x, create_graph=True)
            expected = expected + gamma / 2 * (gradient * v).sum((1, 2, 3)).square().mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    parameters = list(discriminator.parameters())
    for a, b in zip(torch.autograd.grad(value, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks, latents and images in float64, where two ways of summing agree."""
    monkeypatch.setattr("maxgan.training.gan.to_float", lambda images: images.double() / 127.5 - 1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("loss", "updates", "accumulation", "policy"),
    [
        ("non_saturating", "simultaneous", 4, None),
        ("relativistic", "simultaneous", 1, POLICY),
        ("non_saturating", "alternating", 1, None),
        ("relativistic", "alternating", 4, POLICY),
    ],
)
@pytest.mark.usefixtures("in_float64")
def test_updates_are_those_of_the_formulas(loss: str, updates: str, accumulation: int, policy: str | None) -> None:
    """Two whole updates beside a plain loop that knows neither micro-batches nor which gradients can be left out."""
    config = replace(
        TINY,
        loss=LossConfig(loss, r1_gamma=2.0, bcr_real=1.0, bcr_fake=0.5),  # type: ignore[arg-type]
        augment=AugmentConfig(policy, 0.7) if policy else AugmentConfig(),
        optim=OptimConfig(updates=updates, lr=1e-3, discriminator_lr=2e-3),  # type: ignore[arg-type]
        training=TrainingConfig(images=16, batch_size=8, accumulation=accumulation, seed=5),
    )
    dataset = ImageDataset(DataConfig())
    trainer = GanTrainer(config, dataset.facts, Accelerator(cpu=True))
    g, d = copy.deepcopy(trainer.generator), copy.deepcopy(trainer.discriminator)
    adam_g = torch.optim.Adam(g.parameters(), 1e-3, (0.0, 0.99))
    adam_d = torch.optim.Adam(d.parameters(), 2e-3, (0.0, 0.99))

    def latents(update: int, phase: int) -> Tensor:
        return torch.randn(8, 8, generator=torch.Generator().manual_seed(seed_of(5, update, phase)))

    def augmentation(update: int, phase: int) -> Iterator[Tensor | None]:
        """The draws of reals and of fakes."""
        draws = torch.rand(8, 2 * ALL_DRAWS, generator=torch.Generator().manual_seed(seed_of(5, update, phase)))
        return (numbers if policy else None for numbers in draws.split(ALL_DRAWS, 1))

    def see(images: Tensor, labels: Tensor, draws: Tensor | None) -> Tensor:
        logits: Tensor = d(images if draws is None else augment(images, draws, POLICY, 0.7), labels)
        return logits

    def loss_d(real: Tensor, fake: Tensor, labels: Tensor, update: int) -> Tensor:
        seen = tuple(augmentation(update, 5))
        a, b = see(real, labels, seen[0]), see(fake, labels, seen[1])
        value = F.softplus(b - a).mean() if loss == "relativistic" else (F.softplus(-a) + F.softplus(b)).mean()
        draws = torch.rand(8, 14, generator=torch.Generator().manual_seed(seed_of(5, update, 2)))
        for weight, images, numbers, side in ((1.0, real, draws[:, :7], 0), (0.5, fake, draws[:, 7:], 1)):
            changed = augment(images, numbers, "color,translation,cutout")
            distance = see(changed, labels, seen[side]) - see(images, labels, seen[side])
            value = value + weight * distance.square().mean()
        return value + 2.0 / 2 * naive_penalty(d, real, labels, seen[0], 0.7)

    def loss_g(real: Tensor, fake: Tensor, labels: Tensor, update: int) -> Tensor:
        a, b = (see(x, labels, draws) for x, draws in zip((real, fake), augmentation(update, 6), strict=True))
        return (F.softplus(a - b) if loss == "relativistic" else F.softplus(-b)).mean()

    def descend(adam: torch.optim.Adam, network: torch.nn.Module, value: Tensor) -> None:
        gradients = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        adam.step()

    whole = training_batches(dataset, 8, 5)
    parts = training_batches(dataset, 8, 5, accumulation=accumulation)
    for update in range(2):
        metrics = trainer.step(parts)
        pixels, labels = next(whole)
        real = pixels.double() / 127.5 - 1
        if updates == "simultaneous":
            fake = g(latents(update, 1), labels)
            values = loss_d(real, fake.detach(), labels, update), loss_g(real, fake, labels, update)
            gradients = torch.autograd.grad(values[1], list(g.parameters()))  # with D as it was
            descend(adam_d, d, values[0])
            for parameter, gradient in zip(g.parameters(), gradients, strict=True):
                parameter.grad = gradient
            adam_g.step()
        else:
            values = (loss_d(real, g(latents(update, 0), labels).detach(), labels, update),)
            descend(adam_d, d, values[0])
            values = (*values, loss_g(real, g(latents(update, 1), labels), labels, update))
            descend(adam_g, g, values[1])
        assert metrics["loss_generator"].item() == pytest.approx(values[1].item(), rel=1e-5)
        assert metrics["bcr_real"] > 0
        assert metrics["bcr_fake"] > 0
    for ours, naive in ((trainer.generator, g), (trainer.discriminator, d)):
        for (name, a), b in zip(ours.named_parameters(), naive.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.usefixtures("in_float64")
def test_directions_hang_on_the_place_in_the_whole_batch() -> None:
    loss = LossConfig(r1_gamma=2.0, r2_gamma=1.0, penalty="finite_difference", penalty_step=0.01, penalty_interval=2)
    dataset = ImageDataset(DataConfig())
    trainers = []
    for accumulation in (1, 4):
        training = TrainingConfig(images=24, batch_size=8, accumulation=accumulation, seed=5)
        trainer = GanTrainer(replace(TINY, loss=loss, training=training), dataset.facts, Accelerator(cpu=True))
        discriminator = copy.deepcopy(trainer.discriminator)
        batches = training_batches(dataset, 8, 5, accumulation=accumulation)
        metrics = [trainer.step(batches) for _ in range(3)]
        assert ["r1" in values for values in metrics] == ["r2" in values for values in metrics] == [True, False, True]
        trainers.append(trainer)
    pixels, labels = next(training_batches(dataset, 8, 5))
    real = pixels.double() / 127.5 - 1
    seeds = [seed_of(5, 0, 3, image) for image in range(8)]
    normal = torch.stack([torch.randn(256, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    v = (16 * normal / normal.norm(dim=1, keepdim=True)).view(real.shape)
    expected = (discriminator(real + 0.01 * v, labels) - discriminator(real, labels)).square().mean() / 0.01**2
    assert metrics[0]["r1"].item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, a), b in zip(
        trainers[0].discriminator.named_parameters(), trainers[1].discriminator.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=name)


def test_the_weight_of_a_penalty_is_a_number_or_stylegan2s_rule() -> None:
    loss = LossConfig(r1_gamma="auto", r2_gamma=0.25)
    trainer = GanTrainer(replace(TINY, loss=loss), ImageDataset(DataConfig()).facts, Accelerator(cpu=True))
    assert trainer.gamma(loss.r1_gamma) == pytest.approx(0.0002 * 16 * 16 / 8)
    assert trainer.gamma(loss.r2_gamma) == 0.25


def test_a_checkpoint_holds_the_signs_that_all_processes_have_seen() -> None:
    config = replace(TINY, augment=AugmentConfig("color", target=0.6))
    trainer = GanTrainer(config, ImageFacts(16, 1, 10), Accelerator(cpu=True))
    assert trainer.adaptive is not None
    trainer.adaptive.signs = torch.tensor(1.0)
    trainer.accelerator = cast(
        Accelerator, SimpleNamespace(num_processes=2, reduce=lambda signs, reduction: (signs + 3) / 2)
    )
    assert trainer.state()["augment/signs"] == trainer.adaptive.signs == 2


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
    optim = OptimConfig(lr=Schedule(1e-3, 1e-4), discriminator_lr=Schedule(2e-3, 2e-4))
    found = rates(replace(TINY, optim=optim))
    # cos(0), cos(pi / 8), ...
    cosines = [1.0, 0.9238795325, 0.7071067812, 0.3826834324, 0.0, -0.3826834324, -0.7071067812, -0.9238795325]
    for (lr_g, lr_d), value in zip(found, cosines, strict=True):
        assert lr_g == pytest.approx(1e-4 + 9e-4 * (1 + value) / 2)
        assert lr_d == pytest.approx(2 * lr_g)


def test_a_constant_rate_with_lazy_penalties() -> None:
    config = replace(TINY, optim=OptimConfig(lr=1e-3), loss=LossConfig(penalty_interval=4))
    for lr_g, lr_d in rates(config):
        assert lr_g == 1e-3
        assert lr_d == pytest.approx(8e-4)


def test_betas_gammas_and_the_probability_of_augmentation_follow_their_schedules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def line(start: float, end: float, over: int | None = None) -> Schedule:
        return Schedule(start, end, over, "linear")

    config = replace(
        TINY,
        loss=LossConfig(r1_gamma=line(1, 0.5, 32), r2_gamma=line(0, 8), penalty_interval=2),
        augment=AugmentConfig("cutout", line(0, 0.4)),
        optim=OptimConfig(lr=line(1e-3, 0), beta1=line(0.4, 0.0), beta2=line(0.9, 0.98, 16)),
        training=TrainingConfig(images=32, batch_size=8),
    )
    dataset = ImageDataset(DataConfig())
    trainer = GanTrainer(config, dataset.facts, Accelerator(cpu=True))
    gammas: list[float] = []
    forward = DiscriminatorObjective.forward

    def watched(self: DiscriminatorObjective, *arguments: Any) -> Any:
        gammas.extend(arguments[3:5])
        return forward(self, *arguments)

    monkeypatch.setattr(DiscriminatorObjective, "forward", watched)
    batches = training_batches(dataset, 8, 0)
    for update in range(4):
        assert trainer.step(batches)["augment_probability"].item() == pytest.approx(0.1 * update)
        of_g, of_d = trainer.optimizer_g.param_groups[0], trainer.optimizer_d.param_groups[0]
        betas = (0.4 - 0.1 * update, min(0.9 + 0.04 * update, 0.98))
        assert (of_g["lr"], *of_g["betas"]) == pytest.approx((1e-3 - 2.5e-4 * update, *betas))
        assert (of_d["lr"], *of_d["betas"]) == pytest.approx((2 / 3 * of_g["lr"], *(b ** (2 / 3) for b in betas)))
    assert gammas == pytest.approx([2, 0, 0, 0, 1.5, 8, 0, 0])
