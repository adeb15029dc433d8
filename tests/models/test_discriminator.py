from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from maxgan.models import ResidualDiscriminator, names
from maxgan.models.convert import from_tensorflow
from maxgan.training.losses import discriminator_loss, gradient_penalty


def small(resolution: int = 8, channels: int = 1, num_classes: int = 0) -> ResidualDiscriminator:
    torch.manual_seed(0)
    return ResidualDiscriminator(resolution, channels, num_classes, max_width=8)


@pytest.mark.parametrize(("resolution", "multiplier", "count"), [(128, 1, 23_880_833), (256, 2, 28_862_593)])
def test_parameter_counts_are_those_of_the_official_model(resolution: int, multiplier: float, count: int) -> None:
    with torch.device("meta"):
        model = ResidualDiscriminator(resolution, channel_multiplier=multiplier)
    assert sum(p.numel() for p in model.parameters()) == count


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


def test_penalty_equals_double_backward_image_by_image() -> None:
    model = small(num_classes=3).double()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    labels = torch.tensor([2, 0, 1])
    batch = images.clone().requires_grad_()
    gradient_penalty(model(batch, labels), batch).mean().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    # The squared norm by finite differences of the logit, and its derivative by finite differences of one weight.
    def penalty() -> float:
        total, step = 0.0, 1e-5
        with torch.no_grad():
            for image, label in zip(images, labels, strict=True):
                shifts = step * torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
                label = label.expand(64)
                slopes = (model(image + shifts, label) - model(image - shifts, label)) / (2 * step)
                total += float(slopes.square().sum())
        return total / len(images)

    assert gradient_penalty(model(batch, labels), batch).mean().item() == pytest.approx(penalty(), rel=1e-6)
    for module in ("from_rgb", "blocks.0.conv2", "blocks.0.skip", "dense", "class_embedding"):
        name = f"{module}.weight"
        weight = model.get_parameter(name).detach().view(-1)
        index = int(ours[name].abs().argmax())
        values = []
        for sign in (1, -1):
            weight[index] += sign * 1e-4
            values.append(penalty())
            weight[index] -= sign * 1e-4
        assert ours[name].view(-1)[index].item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4), name


def test_a_logit_does_not_depend_on_the_other_images() -> None:
    model = small(16).double()
    images = torch.randn(4, 1, 16, 16, dtype=torch.float64)
    together = model(images)
    torch.testing.assert_close(together, torch.cat([model(image[None]) for image in images]), rtol=1e-12, atol=1e-12)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(model(images)[1], images)
    assert [bool(g.any()) for g in gradient] == [False, True, False, False]


def test_every_parameter_gets_a_finite_gradient_penalty_included() -> None:
    model = small(16, 3, 5)
    real, fake = torch.randn(4, 3, 16, 16, requires_grad=True), torch.randn(4, 3, 16, 16)
    labels = torch.tensor([0, 1, 2, 3, 4, 4, 4, 0])
    real_logits, fake_logits = model(torch.cat([real, fake]), labels).chunk(2)
    penalty = gradient_penalty(real_logits, real).mean()
    second = dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(penalty, list(model.parameters()), retain_graph=True, allow_unused=True),
            strict=True,
        )
    )
    # Biases only shift where the leaky slopes change, which has no derivative.
    for name, gradient in second.items():
        if "weight" in name:
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
            assert gradient.any(), name
    (discriminator_loss("non_saturating", real_logits, fake_logits) + penalty).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_classes_add_the_projection_of_their_embedding() -> None:
    model = small(8, 1, 4)
    features: list[Any] = []
    model.logit.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    images, labels = torch.randn(3, 1, 8, 8), torch.tensor([3, 0, 3])
    logits = model(images, labels)
    (h,) = features
    expected = model.logit(h)[:, 0]
    for i, label in enumerate(labels):
        expected[i] += model.class_embedding.weight[label] @ h[i] / 8**0.5
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_stay_in_channels_last_memory(channels: int) -> None:
    model = small(16, channels).to(memory_format=torch.channels_last)
    maps = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: maps.update({name: output}))
    model(torch.randn(2, channels, 16, 16).contiguous(memory_format=torch.channels_last))
    maps = {name: output for name, output in maps.items() if output.dim() == 4}
    assert len(maps) == 11
    assert [name for name, m in maps.items() if not m.is_contiguous(memory_format=torch.channels_last)] == []


def test_labels_and_model_must_agree() -> None:
    images, labels = torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="has 3 classes: give a label for every image"):
        small(num_classes=3)(images)
    with pytest.raises(ValueError, match="has 0 classes: it is unconditional, give no labels"):
        small()(images, labels)


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
        ({"max_widht": 64}, "no setting 'max_widht': did you mean 'max_width'"),
    ],
)
def test_settings_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResidualDiscriminator(**{"resolution": 64, **arguments})
