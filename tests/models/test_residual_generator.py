from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.config import GanConfig, ImageFacts, NetworksConfig, ResidualGeneratorConfig
from maxgan.models import Network, ResidualDiscriminator, ResidualGenerator
from maxgan.models.build import build_generator
from maxgan.models.network import export_model
from maxgan.models.residual_generator import UpBlock
from maxgan.nn.norm import GhostBatchNorm2d, LayerNorm2d
from maxgan.sampling import generate, load_generator
from maxgan.training.dry_run import rows_of
from maxgan.training.losses import generator_loss


def small(resolution: int = 16, channels: int = 2, num_classes: int = 0, **settings: Any) -> ResidualGenerator:
    torch.manual_seed(0)
    return ResidualGenerator(resolution, channels, num_classes, **{"latent_dim": 6, "width": 12, **settings})


def on_meta(resolution: int, channels: int = 3, num_classes: int = 0, **settings: Any) -> ResidualGenerator:
    with torch.device("meta"):
        return ResidualGenerator(resolution, channels, num_classes, **settings)


def scrambled(model: nn.Module) -> nn.Module:
    """Draw all weights and statistics anew, so that every part matters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.3)
    return model


def doubled(x: Tensor, mode: str) -> Tensor:
    """Twice the sides: each pixel four times, or, bilinear, a quarter of the neighbour's and three of the nearer."""
    if mode == "nearest":
        return torch.from_numpy(np.kron(x.numpy(), np.ones((1, 1, 2, 2))))
    for dim in (2, 3):
        first, last = x.narrow(dim, 0, 1), x.narrow(dim, -1, 1)
        before, after = torch.cat([first, x], dim), torch.cat([x, last], dim)
        side = x.shape[dim]
        even = 0.25 * before.narrow(dim, 0, side) + 0.75 * x
        odd = 0.75 * x + 0.25 * after.narrow(dim, 1, side)
        x = torch.stack([even, odd], dim + 1).flatten(dim, dim + 1)
    return x


def recomputed(model: ResidualGenerator, z: Tensor, labels: Tensor | None) -> Tensor:
    """The images of eval mode from the state dict alone, by the formula."""
    config, state = model.config, model.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        if config.norm == "none":
            return x
        weight, bias = (state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        if config.norm == "layer":
            mean, var, eps = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True), 1e-5
        else:
            mean, var = (state[f"{name}.running_{part}"][:, None, None] for part in ("mean", "var"))
            eps = 1e-3
        return (x - mean) / (var + eps).sqrt() * weight + bias

    def conv(x: Tensor, name: str) -> Tensor:
        """The sum over the offsets of a kernel of shifted maps."""
        weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
        half = weight.shape[-1] // 2
        padded = F.pad(x, (half,) * 4)
        out = sum(
            torch.einsum(
                "oi,nihw->nohw", weight[:, :, dy, dx], padded[:, :, dy:, dx:][:, :, : x.shape[2], : x.shape[3]]
            )
            for dy in range(weight.shape[2])
            for dx in range(weight.shape[3])
        )
        return out if bias is None else out + bias[:, None, None]

    def activated(x: Tensor, norm_name: str, modulation: str, w: Tensor) -> Tensor:
        x = norm(x, norm_name)
        if config.conditioning == "modulation":
            numbers = w @ state[f"{modulation}.out.weight"].T + state[f"{modulation}.out.bias"]
            scale, shift = numbers[:, :, None, None].chunk(2, 1)
            x = x * (1 + scale) + shift
        return torch.where(x > 0, x, 0.2 * x)

    w = z if labels is None else torch.cat([z, state["class_embedding.weight"][labels]], 1)
    if config.mapping_layers:
        w = torch.cat([part / (part**2).mean(1, keepdim=True).add(1e-8).sqrt() for part in w.split(z.shape[1], 1)], 1)
        for i in range(config.mapping_layers):
            weight, bias = state[f"mapping.layers.{i}.weight"], state[f"mapping.layers.{i}.bias"]
            w = 2**0.5 * (w @ weight.T / weight.shape[1] ** 0.5 + bias)
            w = torch.where(w > 0, w, 0.2 * w)
    side = config.base_resolution
    x = (w @ state["first_map.weight"].T + state["first_map.bias"]).view(len(z), side, side, -1).permute(0, 3, 1, 2)
    for s in range(len(model.stages)):
        depth = config.depth if config.depths is None else config.depths[s]
        for b in range(depth):
            name = f"stages.{s}.blocks.{b}"
            up = (lambda x: doubled(x, config.upsampling)) if s and b == 0 else (lambda x: x)
            y = conv(up(activated(x, f"{name}.norm1", f"{name}.modulation1", w)), f"{name}.conv1")
            y = conv(activated(y, f"{name}.norm2", f"{name}.modulation2", w), f"{name}.conv2")
            x = up(x)
            x = y + (conv(x, f"{name}.shortcut") if f"{name}.shortcut.weight" in state else x)
    x = norm(x, "out_norm")
    return conv(torch.where(x > 0, x, 0.2 * x), "out")


@pytest.mark.parametrize(
    ("num_classes", "settings"),
    [
        (0, {"norm": "batch", "widths": (12, 8, 8), "depths": (1, 2, 1)}),
        (3, {"norm": "layer", "upsampling": "bilinear", "depth": 2, "mapping_layers": 2}),
        (3, {"norm": "none", "zero_init": True, "widths": (8, 12, 4)}),
        (
            0,
            {"norm": "batch", "norm_group": 2, "conditioning": "input", "upsampling": "bilinear", "base_resolution": 8},
        ),
        (0, {"norm": "none", "zero_init": True, "conditioning": "input", "mapping_layers": 1}),
    ],
)
def test_images_are_those_of_the_formula(num_classes: int, settings: dict[str, Any]) -> None:
    model = scrambled(small(16, 2, num_classes, **settings)).double().eval()
    z = torch.randn(3, 6, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1]) if num_classes else None
    with torch.no_grad():
        truth = recomputed(model, z, labels)
        assert truth.std() > 0.01
        torch.testing.assert_close(model(z, labels), truth, rtol=1e-9, atol=1e-9 * float(truth.std()))
        fused = model.fuse()
        torch.testing.assert_close(fused(z, labels), truth, rtol=1e-9, atol=1e-9 * float(truth.std()))
    norms = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    blocks = [module for module in fused.modules() if isinstance(module, UpBlock)]
    assert len(norms) == (len(blocks) + 1 if settings["norm"] == "batch" else 0)  # one of two a block is folded


@pytest.mark.parametrize("resolution", [8, 64, 1024])
def test_resolutions_build(resolution: int) -> None:
    channels, num_classes = resolution.bit_length() % 4 + 1, 10 * (resolution.bit_length() % 2)
    model = on_meta(resolution, channels, num_classes)
    labels = torch.zeros(2, dtype=torch.long, device="meta") if num_classes else None
    assert model(torch.zeros(2, 64, device="meta"), labels).shape == (2, channels, resolution, resolution)
    widths = [128, 128, 128, 64, 32, 16, 8, 8, 8][: resolution.bit_length() - 2]
    assert [stage.blocks[0].conv2.out_channels for stage in model.stages] == widths


def test_parameters_are_those_of_the_layers_that_are_named() -> None:
    model = on_meta(16, 3, 10, latent_dim=8, widths=(16, 16, 4), norm="batch")
    total = 10 * 8 + (16 + 1) * 16 * 16  # embedding, first map
    for a, b in ((16, 16), (16, 16), (16, 4)):
        total += 2 * a + 17 * 2 * a + 9 * a * b + 2 * b + 17 * 2 * b + 9 * b * b + b + (a * b + b if a != b else 0)
    assert sum(p.numel() for p in model.parameters()) == total + 2 * 4 + 9 * 4 * 3 + 3


@pytest.mark.parametrize("settings", [{}, {"norm": "batch", "norm_group": 2}, {"norm": "none", "zero_init": True}])
def test_every_parameter_gets_a_finite_gradient(settings: dict[str, Any]) -> None:
    model = scrambled(small(16, 3, 4, mapping_layers=2, **settings))
    labels = torch.arange(4)
    discriminator = ResidualDiscriminator(16, 3, 4, max_width=8)
    generator_loss("non_saturating", None, discriminator(model(torch.randn(4, 6), labels), labels)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_zero_init_starts_every_block_as_its_shortcut(norm: str) -> None:
    model = small(16, zero_init=True, norm=norm)
    w = model.style(torch.randn(4, 6))
    x = model.first(w)
    assert torch.equal(model.stages[0](x, w), x)
    assert torch.equal(model.stages[1](x, w), doubled(x.detach(), "nearest").float())
    images = model(torch.randn(4, 6))
    assert 0.01 < images.std() < 10  # the latent still makes the image
    images.square().sum().backward()
    assert all(block.conv2.weight.grad.any() for block in model.modules() if isinstance(block, UpBlock))


def test_what_sees_the_latent() -> None:
    """With modulation z changes what every block makes of the same map; without, no block sees it."""
    for conditioning, seen in (("modulation", True), ("input", False)):
        model = scrambled(small(16, num_classes=3, conditioning=conditioning))
        one, two = (model.style(torch.randn(2, 6), torch.tensor([0, 1])) for _ in range(2))
        x = model.first(one)
        for stage in model.stages:
            assert torch.equal(stage(x, one), stage(x, two)) != seen
            x = stage(x, one)
        assert not torch.equal(model.synthesise(one), model.synthesise(two))


def test_a_batch_is_grouped_and_memory_is_channels_last() -> None:
    model = small(16, norm="batch", norm_group=2).to(memory_format=torch.channels_last)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | LayerNorm2d)]
    assert len(norms) == 7 and all(isinstance(m, GhostBatchNorm2d) and m.group == 2 for m in norms)
    maps: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, UpBlock | nn.BatchNorm2d):
            module.register_forward_hook(lambda _, __, output: maps.append(output))
    model(torch.randn(4, 6))
    assert len(maps) == 10 and all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


def test_an_export_draws_the_same_images(tmp_path: Path) -> None:
    facts = ImageFacts(16, 1, 3)
    config = GanConfig(
        networks=NetworksConfig("residual"),
        residual_generator=ResidualGeneratorConfig(6, widths=(12, 8, 8), norm="batch", mapping_layers=1),
    )
    model = scrambled(build_generator(config, facts)).eval()
    assert isinstance(model, ResidualGenerator) and isinstance(model, Network)
    export_model(model, tmp_path / "g.safetensors", {"images_seen": 5})
    loaded = load_generator(tmp_path / "g.safetensors")
    assert isinstance(loaded, ResidualGenerator) and loaded.config == config.residual_generator
    assert {name: tensor.shape for name, tensor in loaded.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    ours, theirs = (next(generate(g, range(8), 8, "cpu", quantise=False)) for g in (model, loaded))
    torch.testing.assert_close(ours.images, theirs.images, rtol=1e-5, atol=1e-5)
    assert ours.images.std() > 0.01 and torch.equal(ours.labels, theirs.labels)


def test_a_dry_run_tells_its_stages() -> None:
    rows = rows_of(on_meta(16, depths=(1, 2, 1), mapping_layers=2), torch.empty(1, 64, device="meta"))
    assert [(row.name, row.side, row.width, row.blocks) for row in rows] == [
        ("mapping", None, 64, None), ("first_map", None, 2048, None), ("stages.0", 4, 128, 1),
        ("stages.1", 8, 128, 2), ("stages.2", 16, 128, 1), ("out_norm", 16, 128, None), ("out", 16, 3, None),
        ("all", None, None, None),
    ]  # fmt: skip
    # Two 3x3 convolutions at the side of the stage, and two modulations.
    assert rows[4].multiply_adds == 16 * 16 * 2 * 9 * 128 * 128 + 2 * 64 * 256


def test_labels_latents_and_model_must_agree() -> None:
    with pytest.raises(ValueError, match="has 3 classes: give a label for every z"):
        small(num_classes=3)(torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"draw latents of residual_generator\.latent_dim 6"):
        small()(torch.zeros(2, 7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (8, 8)}, r"residual_generator\.widths \(8, 8\) has 2 entries, but there are 3 stages"),
        ({"widths": (8, 0, 8)}, r"residual_generator\.widths must be at least 1 in every stage, not \(8, 0, 8\)"),
        ({"depths": (1, 1)}, r"residual_generator\.depths \(1, 1\) has 2 entries, but there are 3 stages"),
        ({"depth": 0}, r"residual_generator\.depths must be at least 1 in every stage"),
        ({"base_resolution": 6}, r"residual_generator\.base_resolution must be a power of two from 4 .* 16, not 6"),
        ({"latent_dim": 0}, r"residual_generator\.latent_dim must be at least 1, not 0"),
        ({"norm": "none"}, r"residual_generator\.norm none needs residual_generator\.zero_init true"),
        ({"norm": "group"}, "norm must be batch, layer or none, not 'group'"),
        ({"norm_group": 8}, "norm_group is for norm: batch"),
        ({"mapping_layers": -1}, r"residual_generator\.mapping_layers must be 0 or more, not -1"),
        ({"window_size": 4}, "no setting 'window_size'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(16, **settings)


def test_resolutions_that_are_no_power_of_two() -> None:
    with pytest.raises(ValueError, match=r"power of two from 8 to 1024, not 48: set data\.resolution"):
        on_meta(48)
