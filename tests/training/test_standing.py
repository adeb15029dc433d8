from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maxgan.config import GanEmaConfig
from maxgan.models import HiTGenerator, MaxViTGenerator, ResidualGenerator
from maxgan.models.latent import LatentGenerator
from maxgan.sampling import latents_of
from maxgan.training.standing import BATCH_SIZE, FIRST_SEED, with_standing_statistics

SMALL: dict[str, Any] = {"latent_dim": 8, "width": 16, "head_dim": 8, "latent_tokens": 4}


def maxvit(norm: str, group: int | None = None) -> MaxViTGenerator:
    torch.manual_seed(0)
    return MaxViTGenerator(8, 1, 3, norm=norm, norm_group=group, zero_init=norm == "none", **SMALL)


def hit() -> HiTGenerator:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"widths": (16, 16, 8), "depths": (1, 1, 1), "heads": (4, 2, 2)}
    return HiTGenerator(32, 3, 0, latent_dim=8, latent_tokens=4, norm_group=4, **sizes)


def residual() -> ResidualGenerator:
    torch.manual_seed(0)
    return ResidualGenerator(8, 1, 3, latent_dim=8, width=8, norm="batch")


def statistics(generator: LatentGenerator) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in generator.state_dict().items() if "running" in name}


def by_hand(generator: LatentGenerator, images: int, group: int, labels: Tensor | None) -> dict[str, Tensor]:
    """Means of what BatchNorm divides by in training, over groups of samples: looked at from outside, in float64."""
    seen: dict[str, list[Tensor]] = {}

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            for part in inputs[0].double().split(group):
                values = part.transpose(0, 1).flatten(1)
                seen.setdefault(f"{name}.running_mean", []).append(values.mean(1))
                seen.setdefault(f"{name}.running_var", []).append(values.var(1, correction=1))

        return hook

    norms = {name: module for name, module in generator.named_modules() if isinstance(module, nn.BatchNorm2d)}
    hooks = [module.register_forward_pre_hook(look(name)) for name, module in norms.items()]
    generator.train()
    for start in range(FIRST_SEED, FIRST_SEED + images, BATCH_SIZE):
        z, drawn = latents_of(range(start, start + BATCH_SIZE), generator.latent_dim, generator.num_classes)
        generator(z, drawn if labels is None else labels)
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(parts).mean(0) for name, parts in seen.items()}


@pytest.mark.parametrize(
    "build, group", [(lambda: maxvit("batch", 4), 4), (lambda: maxvit("batch"), BATCH_SIZE), (hit, 4), (residual, 64)]
)
def test_statistics_are_the_means_over_groups_of_samples(build: Any, group: int) -> None:
    generator: LatentGenerator = build()
    with torch.no_grad():
        for name, tensor in generator.state_dict().items():
            if "running" in name:
                tensor.fill_(7)  # far behind, and without a trace in what is found
            elif tensor.ndim > 1:
                tensor.mul_(5)
    state = torch.random.get_rng_state()
    standing = with_standing_statistics(generator, 2 * BATCH_SIZE - 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    found = statistics(standing)
    expected = by_hand(build_like(generator, build), 2 * BATCH_SIZE, group, None)
    assert found.keys() == expected.keys() and len(found) > 8
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-6, msg=name)
    # The average itself goes on as it was, and the copy with its momentum.
    assert all(torch.equal(tensor, torch.full_like(tensor, 7)) for tensor in statistics(generator).values())
    assert not standing.training and not any(module.training for module in standing.modules())
    assert {m.momentum for m in standing.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}
    for name, parameter in standing.named_parameters():
        assert torch.equal(parameter, generator.get_parameter(name)), name


def build_like(generator: LatentGenerator, build: Any) -> LatentGenerator:
    """Return another with the same weights."""
    other: LatentGenerator = build()
    other.load_state_dict(generator.state_dict())
    return other


def test_classes_are_drawn_as_often_as_the_images_have_them() -> None:
    generator = maxvit("batch", 4)
    nn.init.normal_(generator.first_map.weight)
    found = statistics(with_standing_statistics(generator, BATCH_SIZE, [0, 5, 0]))
    expected = by_hand(generator, BATCH_SIZE, 4, torch.ones(BATCH_SIZE, dtype=torch.int64))
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_without_batch_norm_or_images_nothing_is_done() -> None:
    for generator, images in ((maxvit("layer"), 100), (maxvit("none"), 100), (maxvit("batch", 4), 0)):
        before = statistics(generator)
        assert with_standing_statistics(generator.train(), images) is generator
        assert not generator.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in statistics(generator).items())


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ema.standing_images must be 0 or more, not -1"):
        GanEmaConfig(standing_images=-1)
