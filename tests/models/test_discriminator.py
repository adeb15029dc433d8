from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maxgan.models import MaxViTDiscriminator, ResidualDiscriminator, names
from maxgan.models.convert import from_tensorflow
from maxgan.models.discriminator import Discriminator, minibatch_deviation
from maxgan.training.losses import discriminator_loss, gradient_penalty

# All that the tests of every discriminator are run on: class and settings.
EVERY: dict[str, tuple[type[Discriminator], dict[str, Any]]] = {
    "residual": (ResidualDiscriminator, {"max_width": 8}),
    "equalized": (ResidualDiscriminator, {"max_width": 8, "equalized_lr": True}),
    "maxvit": (MaxViTDiscriminator, {"width": 8, "head_dim": 4, "depth": 1}),
}


def small(resolution: int = 8, channels: int = 1, num_classes: int = 0, **settings: Any) -> ResidualDiscriminator:
    torch.manual_seed(0)
    return ResidualDiscriminator(resolution, channels, num_classes, **{"max_width": 8, **settings})


def scrambled(name: str, resolution: int = 8, channels: int = 1, num_classes: int = 0) -> Discriminator:
    """Return one of EVERY in float64, its weights so large that every part matters."""
    kind, settings = EVERY[name]
    model = kind(resolution, channels, num_classes, **settings).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize(("resolution", "multiplier", "count"), [(128, 1, 23_880_833), (256, 2, 28_862_593)])
def test_parameter_counts_are_those_of_the_official_model(resolution: int, multiplier: float, count: int) -> None:
    for options, more in (
        ({}, 0),
        ({"equalized_lr": True}, 0),
        # One input channel more for the last convolution.
        ({"equalized_lr": True, "minibatch_deviation": True}, 9 * 512),
    ):
        with torch.device("meta"):
            model = ResidualDiscriminator(resolution, channel_multiplier=multiplier, **options)
        assert sum(p.numel() for p in model.parameters()) == count + more


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize(("channels", "num_classes"), [(1, 0), (2, 3), (3, 10), (4, 0)])
def test_every_resolution_gives_one_logit_an_image(resolution: int, channels: int, num_classes: int) -> None:
    with torch.device("meta"):
        model = ResidualDiscriminator(resolution, channels, num_classes)
        labels = torch.zeros(2, dtype=torch.long) if num_classes else None
        assert model(torch.zeros(2, channels, resolution, resolution), labels).shape == (2,)


@pytest.mark.parametrize(
    ("resolution", "multiplier", "max_width", "widths"),
    [
        (1024, 1, 512, [16, 32, 64, 128, 256, 512, 512, 512, 512]),
        (1024, 2, 512, [32, 64, 128, 256, 512, 512, 512, 512, 512]),
        (64, 0.01, 512, [8, 8, 10, 20, 40]),
        (16, 1, 48, [48, 48, 48]),
    ],
)
def test_widths_follow_the_rule(resolution: int, multiplier: float, max_width: int, widths: list[int]) -> None:
    with torch.device("meta"):
        model = ResidualDiscriminator(resolution, channel_multiplier=multiplier, max_width=max_width)
    assert [model.from_rgb.out_channels, *(block.conv2.out_channels for block in model.blocks)] == widths


def official_discriminator(variables: dict[str, np.ndarray]) -> tuple[ResidualDiscriminator, list[str]]:
    """Return the model with the official weights, and our names in the order of the official list."""
    model = ResidualDiscriminator(128)
    from_tensorflow(model, variables)
    ours = {theirs: name for name, (theirs,), _ in names.residual(model)}
    return model.to(memory_format=torch.channels_last), [ours[name] for name in variables]


def test_official_weights_give_the_official_logits(official: Callable) -> None:
    case = official("hit_128", "discriminator")
    model, _ = official_discriminator(case.variables)
    with torch.no_grad():
        logits = model(torch.from_numpy(case.arrays["discriminator_input"]).permute(0, 3, 1, 2))
    truth = case.arrays["discriminator_logit"].ravel()
    assert np.abs(logits.numpy() - truth).max() < 1e-4 * np.abs(truth).max()


@pytest.mark.slow
def test_official_weights_give_the_official_penalty(official: Callable) -> None:
    case = official("hit_128", "discriminator")
    model, order = official_discriminator(case.variables)
    images = torch.from_numpy(case.arrays["discriminator_input"]).permute(0, 3, 1, 2).requires_grad_()
    penalty = gradient_penalty(model(images), images).mean()
    penalty.backward()
    assert penalty.item() == pytest.approx(float(case.arrays["r1"]), rel=1e-3)
    parameters = dict(model.named_parameters())
    norms = [0.0 if (grad := parameters[name].grad) is None else float(grad.norm()) for name in order]
    truth = case.arrays["r1_gradient_norms"]
    np.testing.assert_allclose(norms, truth, rtol=1e-3, atol=1e-6 * truth.max())


@pytest.mark.parametrize("name", EVERY)
def test_penalty_equals_double_backward_image_by_image(name: str) -> None:
    model = scrambled(name, 16, 2, 3)
    images, labels = torch.randn(3, 2, 16, 16, dtype=torch.float64), torch.tensor([2, 0, 1])
    batch = images.clone().requires_grad_()
    penalty = gradient_penalty(model(batch, labels), batch).mean()
    penalty.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    total = 0.0
    for image, label in zip(images, labels, strict=True):
        pixels = image[None].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(pixels, label[None])[0], pixels, create_graph=True)
        norm = (slope**2).sum()
        (norm / 3).backward()
        total += norm.item() / 3
    assert penalty.item() == pytest.approx(total, rel=1e-12)
    truth = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-12 * max(g.abs().max().item() for g in truth.values()))


@pytest.mark.parametrize("name", EVERY)
def test_penalty_equals_finite_differences_of_the_logit(name: str) -> None:
    model = scrambled(name, num_classes=3)
    images, labels = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([2, 0])
    batch = images.clone().requires_grad_()
    penalties = gradient_penalty(model(batch, labels), batch).tolist()
    shifts = 1e-5 * torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    with torch.no_grad():
        for image, label, penalty in zip(images, labels, penalties, strict=True):
            label = label.expand(64)
            slopes = (model(image + shifts, label) - model(image - shifts, label)) / 2e-5
            assert penalty == pytest.approx(slopes.square().sum().item(), rel=1e-7)


@pytest.mark.parametrize("name", EVERY)
def test_gradient_of_the_penalty_equals_finite_differences_of_the_gradient_norm(name: str) -> None:
    model = scrambled(name, num_classes=3)
    images, labels = torch.randn(3, 1, 8, 8, dtype=torch.float64, requires_grad=True), torch.tensor([2, 0, 1])

    def penalty() -> float:
        # First derivatives alone.
        (slopes,) = torch.autograd.grad(model(images, labels).sum(), images)
        return slopes.square().sum().item() / len(images)

    gradient_penalty(model(images, labels), images).mean().backward()
    size = max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None)
    for parameter_name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            parameter.data += sign * 1e-6 * direction
            values.append(penalty())
            parameter.data -= sign * 1e-6 * direction
        ours = 0.0 if parameter.grad is None else (parameter.grad * direction).sum().item()
        slope = (values[0] - values[1]) / 2e-6
        assert ours == pytest.approx(slope, rel=1e-5, abs=1e-6 * size), parameter_name


@pytest.mark.parametrize("name", EVERY)
def test_a_logit_does_not_depend_on_the_other_images(name: str) -> None:
    model = scrambled(name, 16)
    images = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    together = model(images)
    torch.testing.assert_close(together, torch.cat([model(image[None]) for image in images]), rtol=1e-12, atol=1e-12)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(model(images)[1], images)
    assert [bool(g.any()) for g in gradient] == [False, True, False, False]


def test_minibatch_deviation_equals_a_loop_over_groups() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 2, 4, dtype=torch.float64)
    out = minibatch_deviation(x, 3)
    assert torch.equal(out[:, :3], x)
    for first in (0, 3):
        total = 0.0
        for c in range(3):
            for h in range(2):
                for w in range(4):
                    values = [x[first + i, c, h, w].item() for i in range(3)]
                    mean = sum(values) / 3
                    total += (sum((v - mean) ** 2 for v in values) / 3 + 1e-8) ** 0.5
        torch.testing.assert_close(out[first : first + 3, 3], torch.full_like(x[:3, 0], total / 24))
    same = torch.ones(4, 2, 2, 2, dtype=torch.float16)
    torch.testing.assert_close(minibatch_deviation(same, 4)[:, 2], torch.full_like(same[:, 0], 1e-4))


def test_minibatch_deviation_has_second_derivatives() -> None:
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: minibatch_deviation(x, 2), (x,))
    assert torch.autograd.gradgradcheck(lambda x: minibatch_deviation(x, 2), (x,))


def test_with_minibatch_deviation_a_logit_depends_on_its_group() -> None:
    model = small(minibatch_deviation=True, minibatch_group=2)
    images = torch.randn(6, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images)[3], images)
    assert [bool(g.any()) for g in gradient] == [False, False, True, True, False, False]
    with pytest.raises(ValueError, match=r"5 images don't split into groups of 2: make .*minibatch_group divide"):
        model(images[:5])


def test_equalized_discriminator_equals_the_formulas() -> None:
    model = small(16, 3, equalized_lr=True, minibatch_deviation=True, minibatch_group=2).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.std() == pytest.approx(1, rel=0.6) if "weight" in name else not parameter.any()
            parameter.normal_()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)

    # StyleGAN2: w / sqrt(fan-in); activation(x + b) * sqrt 2. Its blur is a filter, then every second pixel.
    def scaled(weight: Tensor) -> Tensor:
        return weight / weight[0].numel() ** 0.5

    def conv(layer: torch.nn.Conv2d, x: Tensor) -> Tensor:
        return F.leaky_relu(F.conv2d(x, scaled(layer.weight), layer.bias, padding=1), 0.2) * 2**0.5

    def blur(x: Tensor) -> Tensor:
        row = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8
        x = F.conv2d(x.flatten(0, 1)[:, None], row.view(1, 1, 4, 1), padding=(1, 0)).unflatten(0, x.shape[:2])[:, :, 0]
        x = F.conv2d(x.flatten(0, 1)[:, None], row.view(1, 1, 1, 4), padding=(0, 1)).unflatten(0, x.shape[:2])[:, :, 0]
        return x[:, :, ::2, ::2]

    x = conv(model.from_rgb, images)
    for block in model.blocks:
        y = conv(block.conv2, blur(conv(block.conv1, x)))
        x = (y + torch.einsum("oi,nihw->nohw", scaled(block.skip.weight)[:, :, 0, 0], blur(x))) / 2**0.5
    x = conv(model.final_conv, minibatch_deviation(x, 2))
    x = x.permute(0, 2, 3, 1).flatten(1) @ scaled(model.dense.weight).T + model.dense.bias
    x = F.leaky_relu(x, 0.2) * 2**0.5
    torch.testing.assert_close(model(images), x @ scaled(model.logit.weight)[0] + model.logit.bias)


@pytest.mark.parametrize("name", EVERY)
def test_every_parameter_gets_a_finite_gradient_penalty_included(name: str) -> None:
    kind, settings = EVERY[name]
    torch.manual_seed(0)
    model = kind(16, 3, 5, **settings)  # its own initial weights
    real, fake = torch.randn(4, 3, 16, 16, requires_grad=True), torch.randn(4, 3, 16, 16)
    labels = torch.tensor([0, 1, 2, 3, 4, 4, 4, 0])
    real_logits, fake_logits = model(torch.cat([real, fake]), labels).chunk(2)
    loss = discriminator_loss("non_saturating", real_logits, fake_logits)
    (loss + gradient_penalty(real_logits, real).mean()).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize("name", EVERY)
def test_classes_add_the_projection_of_their_embedding(name: str) -> None:
    model = scrambled(name, 8, 1, 4)
    features: list[Any] = []
    model.logit.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    images, labels = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([3, 0, 3])
    logits = model(images, labels)
    (h,) = features
    expected = model.logit(h)[:, 0]
    for i, label in enumerate(labels):
        expected[i] += model.class_embedding.weight[label] @ h[i] / 8**0.5
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_stay_in_channels_last_memory(channels: int) -> None:
    model = small(16, channels, minibatch_deviation=True, minibatch_group=2).to(memory_format=torch.channels_last)
    maps = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: maps.update({name: output}))
    model(torch.randn(2, channels, 16, 16).contiguous(memory_format=torch.channels_last))
    maps = {name: output for name, output in maps.items() if output.dim() == 4}
    assert len(maps) == 11
    assert [name for name, m in maps.items() if not m.is_contiguous(memory_format=torch.channels_last)] == []


@pytest.mark.parametrize("name", EVERY)
def test_images_labels_and_model_must_agree(name: str) -> None:
    kind, settings = EVERY[name]
    images, labels = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="has 3 classes: give a label for every image"):
        kind(8, 1, 3, **settings)(images)
    model = kind(8, 1, **settings)
    with pytest.raises(ValueError, match="has 0 classes: it is unconditional, give no labels"):
        model(images, labels)
    for wrong in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 8)):
        with pytest.raises(ValueError, match=r"takes images \(N, 1, 8, 8\), not \(2, .*: give images of that size"):
            model(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 24}, "power of two from 8 to 1024, not 24"),
        ({"resolution": 4}, "at least 8 x 8 pixels, not 4"),
        ({"resolution": 2048}, "power of two from 8 to 1024, not 2048"),
        ({"channels": 0}, "1 to 4 channels, not 0"),
        ({"num_classes": -1}, "num_classes must be 0 or more"),
        ({"max_width": 4}, r"max_width at least 8, not 1\.0 and 4"),
        ({"channel_multiplier": 0.0}, r"discriminator\.channel_multiplier must be above 0"),
        ({"minibatch_group": 1}, r"discriminator\.minibatch_group must be at least 2, not 1"),
        ({"max_widht": 64}, "no setting 'max_widht': did you mean 'max_width'"),
    ],
)
def test_settings_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualDiscriminator(**{"resolution": 64, **arguments})
