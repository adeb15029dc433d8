from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maxgan.config import GeneratorConfig
from maxgan.models import MaxViTGenerator, ResidualDiscriminator
from maxgan.models.generator import generator_widths
from maxgan.nn.attention import RelativeAttention
from maxgan.nn.mbconv import MBConv
from maxgan.nn.modulation import Modulation
from maxgan.nn.norm import GhostBatchNorm2d, LayerNorm2d
from maxgan.training.losses import discriminator_loss, generator_loss, gradient_penalty


def small(resolution: int = 8, channels: int = 1, num_classes: int = 0, **settings: Any) -> MaxViTGenerator:
    torch.manual_seed(0)
    defaults = {"latent_dim": 8, "width": 16, "head_dim": 8, "latent_tokens": 3}
    return MaxViTGenerator(resolution, channels, num_classes, **{**defaults, **settings})


def on_meta(resolution: int, channels: int = 3, num_classes: int = 0, **settings: Any) -> MaxViTGenerator:
    with torch.device("meta"):
        return MaxViTGenerator(resolution, channels, num_classes, **settings)


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256, 512, 1024])
def test_every_resolution_builds_with_default_settings(resolution: int) -> None:
    channels, num_classes = resolution.bit_length() % 4 + 1, 10 * (resolution.bit_length() % 2)
    model = on_meta(resolution, channels, num_classes)
    labels = torch.zeros(2, dtype=torch.long, device="meta") if num_classes else None
    assert model(torch.zeros(2, 64, device="meta"), labels).shape == (2, channels, resolution, resolution)
    # The default config has grid and block attention at every resolution.
    axes = [[m.axis for m in stage.modules() if isinstance(m, RelativeAttention)] for stage in model.stages]
    assert axes == [["grid", "block"]] * (resolution.bit_length() - 2)


@pytest.mark.parametrize("resolution", [8, 16, 32])
@pytest.mark.parametrize("num_classes", [0, 5])
def test_images_have_the_size_asked_for(resolution: int, num_classes: int) -> None:
    model = small(resolution, 2, num_classes)
    images = model(torch.randn(3, 8), torch.tensor([0, 4, 2]) if num_classes else None)
    assert images.shape == (3, 2, resolution, resolution)
    assert images.isfinite().all()
    assert images.std() > 0


def family(resolution: int, channels: int = 3, num_classes: int = 0, **settings: Any) -> MaxViTGenerator:
    with torch.device("meta"):
        return MaxViTGenerator.from_resolution(resolution, channels, num_classes, **settings)


def parameters(model: MaxViTGenerator) -> int:
    return sum(p.numel() for p in model.parameters())


def count_by_hand(widths: tuple[int, ...], num_classes: int = 0) -> int:
    """Count the parameters of one of the family from the layers that the docstrings name."""
    latent = 512 if num_classes else 256
    total = (latent + 1) * 8 * 8 * 256  # the first map
    total += (latent + 1) * 16 * 256 + 16 * 256 + 2 * 256  # the tokens, their position and norm
    for c in widths:
        total += 2 * c + (c * c + c) + 257 * 2 * c + (c * c + c)  # cross-attention: norm, q, k and v, out
        mbconv = 2 * (c + 4 * c + 4 * c) + 4 * c * c + 9 * 4 * c + (4 * c * c + c)
        mbconv += (4 * c * (c // 4) + c // 4) + (c // 4 * 4 * c + 4 * c)  # squeeze-and-excitation
        attention = 2 * c + 3 * (c * c + c) + (c * c + c) + c // 32 * 15 * 15
        feed_forward = 2 * c + (4 * c * c + 4 * c) + (4 * c * c + c)
        total += 2 * (mbconv + 2 * (attention + feed_forward))
    total += sum(a // 4 * b + b for a, b in pairwise(widths))  # pixel shuffle, then 1x1
    return total + 2 * widths[-1] + widths[-1] * 3 + 3 + 256 * num_classes


@pytest.mark.parametrize("order", ["GA-BA-C", "C-BA-GA"])
def test_the_paper_model_has_the_printed_number_of_parameters(order: str) -> None:
    count = parameters(family(128, order=order))
    assert f"{count / 1e6:.1f}" == "18.6"
    assert count == 18_559_795


@pytest.mark.parametrize(
    ("resolution", "widths", "num_classes"),
    [
        (8, (256,), 0),
        (16, (256, 256), 10),
        (32, (256, 256, 128), 0),
        (64, (256, 256, 128, 128), 1000),
        (128, (256, 256, 128, 128, 128), 0),
        (128, (256, 256, 128, 128, 128), 1000),
        (256, (256, 256, 128, 128, 128, 64), 0),
        (512, (256, 256, 128, 128, 128, 64, 64), 0),
        (1024, (256, 256, 128, 128, 128, 64, 64, 32), 0),
    ],
)
def test_the_family_follows_one_rule(resolution: int, widths: tuple[int, ...], num_classes: int) -> None:
    model = family(resolution, 3, num_classes)
    labels = torch.zeros(8, dtype=torch.long, device="meta") if num_classes else None
    assert model(torch.zeros(8, 256, device="meta"), labels).shape == (8, 3, resolution, resolution)
    assert parameters(model) == count_by_hand(widths, num_classes)
    assert tuple(stage.cross_norm.num_features for stage in model.stages) == widths
    for stage in model.stages:
        assert [type(m).__name__ for m in stage.blocks] == ["MaxViTBlock"] * 2
        assert [(m.axis, m.size, m.scale) for m in stage.modules() if isinstance(m, RelativeAttention)] == [
            ("grid", 8, 32**-0.5),
            ("block", 8, 32**-0.5),
        ] * 2
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase | torch.nn.LayerNorm)]
    assert {(type(m), m.group) for m in norms} == {(GhostBatchNorm2d, 8)}


def test_all_of_the_family_can_be_overridden() -> None:
    model = family(
        32, 1, base_resolution=16, widths=(64, 32), depths=(1, 3), window_sizes=(4, 16), latent_dim=7, latent_tokens=2
    )
    assert model(torch.zeros(8, 7, device="meta")).shape == (8, 1, 32, 32)
    sizes = [[m.size for m in stage.modules() if isinstance(m, RelativeAttention)] for stage in model.stages]
    assert sizes == [[4] * 2, [16] * 6]
    # Groups belong to BatchNorm.
    assert family(32, norm="layer").config.norm_group is None
    assert family(32, norm_group=4).config.norm_group == 4
    assert family(32, norm_group=None).config.norm_group is None
    with pytest.raises(ValueError, match="norm_group is for norm: batch"):
        family(32, norm="layer", norm_group=4)
    with pytest.raises(ValueError, match="power of two from 8 to 1024, not 2048"):
        family(2048)


def test_widths_follow_the_rule_and_never_fall_below_one_head() -> None:
    assert generator_widths(GeneratorConfig(width=256, head_dim=32), 5) == (256, 256, 128, 128, 128)
    assert generator_widths(GeneratorConfig(width=64, head_dim=16), 9) == (64, 64, 32, 32, 32, 16, 16, 16, 16)
    assert generator_widths(GeneratorConfig(widths=(48, 16), head_dim=16), 2) == (48, 16)


def test_windows_are_the_map_where_that_is_smaller() -> None:
    model = small(32, window_size=8)
    sizes = [{m.size for m in stage.modules() if isinstance(m, RelativeAttention)} for stage in model.stages]
    assert sizes == [{4}, {8}, {8}, {8}]


def test_depths_and_widths_of_every_stage_can_be_set() -> None:
    model = small(16, widths=(24, 16, 8), depths=(2, 1, 3))
    assert [len(stage.blocks) for stage in model.stages] == [2, 1, 3]
    assert [stage.cross_norm.weight.numel() for stage in model.stages] == [24, 16, 8]


def scrambled(model: torch.nn.Module) -> None:
    """Draw all weights anew, large enough that every part matters; the initial ones make residual branches tiny."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)


@pytest.mark.parametrize(
    "settings", [{}, {"norm": "layer", "positions": True}, {"norm": "batch", "norm_group": 2, "positions": True}]
)
def test_every_parameter_of_both_networks_gets_a_finite_gradient(settings: dict[str, Any]) -> None:
    generator, discriminator = small(16, 3, 4, **settings), ResidualDiscriminator(16, 3, 4, max_width=16)
    scrambled(generator)
    z, labels = torch.randn(4, 8), torch.tensor([0, 1, 2, 3])
    fake = generator(z, labels)
    fake.retain_grad()
    generator_loss("non_saturating", None, discriminator(fake, labels)).backward()
    real = torch.randn(4, 3, 16, 16, requires_grad=True)
    discriminator.zero_grad()
    real_logits, fake_logits = discriminator(torch.cat([real, fake.detach()]), labels.repeat(2)).chunk(2)
    loss = discriminator_loss("non_saturating", real_logits, fake_logits)
    (loss + gradient_penalty(real_logits, real).mean()).backward()
    # A bias is cancelled by the mean that BatchNorm takes off behind it, so zero is right for some biases.
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_second_order_terms_pass_through_the_discriminator_into_the_generator() -> None:
    generator, discriminator = small(8, norm="layer").double(), ResidualDiscriminator(8, 1, max_width=8).double()
    scrambled(generator)
    z = torch.randn(2, 8, dtype=torch.float64)

    def penalty() -> Tensor:
        images = generator(z)
        return gradient_penalty(discriminator(images) ** 2, images).mean()

    parameter = generator.get_parameter("stages.0.cross_attention.kv.weight")
    (gradient,) = torch.autograd.grad(penalty(), parameter)
    index = int(gradient.abs().argmax())
    flat = parameter.detach().view(-1)
    values = []
    for sign in (1, -1):
        flat[index] += sign * 1e-6
        values.append(penalty().item())
        flat[index] -= sign * 1e-6
    assert gradient.view(-1)[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("part", ["cross_attention", "blocks.0.0.attention", "blocks.0.1.attention"])
@pytest.mark.parametrize("stage", [0, 1])
def test_removing_any_attention_changes_the_images(part: str, stage: int) -> None:
    model = small().eval()
    scrambled(model)
    z = torch.randn(2, 8)
    whole = model(z)
    model.get_submodule(f"stages.{stage}.{part}").register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    assert (model(z) - whole).abs().max() > 1e-4 * whole.abs().max()


def test_positions_are_added_at_every_stage() -> None:
    model = small(positions=True).eval()
    assert [tuple(stage.position.shape) for stage in model.stages] == [(1, 16, 4, 4), (1, 16, 8, 8)]
    z = torch.randn(1, 8)
    for stage in model.stages:
        before = model(z)
        torch.nn.init.normal_(stage.position)
        assert (model(z) - before).abs().max() > 0


def test_latent_and_class_reach_the_images() -> None:
    model = small(num_classes=3).eval()
    z, labels = torch.randn(2, 8), torch.tensor([0, 1])
    images = model(z, labels)
    assert (model(z, labels.flip(0)) - images).abs().amax((1, 2, 3)).gt(0).all()
    assert (model(z + 1, labels) - images).abs().amax((1, 2, 3)).gt(0).all()


def test_an_image_does_not_depend_on_the_others_in_eval_mode() -> None:
    model = small().eval().double()
    z = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(model(z)[1:2], model(z[1:2]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [{}, {"norm": "layer", "positions": True}, {"norm": "batch", "norm_group": 2, "widths": (16, 4, 4), "head_dim": 4}],
)
def test_maps_stay_in_channels_last_memory(settings: dict[str, Any]) -> None:
    model = small(16, **settings).to(memory_format=torch.channels_last)
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        # Inside attention and feed-forward the tensors are tokens, (N, H, W, C) in plain memory: the same bytes.
        if "attention" not in name and "ffn" not in name.removesuffix("ffn_norm"):
            module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    model(torch.randn(4, 8))
    maps = {name: output for name, output in outputs.items() if output.dim() == 4 and output.shape[2] > 1}
    assert len(maps) > 40
    assert [name for name, m in maps.items() if not m.is_contiguous(memory_format=torch.channels_last)] == []


@pytest.mark.parametrize("micro_batch", [2, 4, 6, 12])
def test_ghost_batch_norm_gives_the_same_model_whatever_the_accumulation(micro_batch: int) -> None:
    ghost = small(16, 2, 3, norm="batch", norm_group=2).double()
    plain = small(16, 2, 3, norm="batch").double()
    scrambled(ghost)
    plain.load_state_dict(ghost.state_dict())
    z, labels, weights = torch.randn(12, 8).double(), torch.arange(12) % 3, torch.randn(12, 2, 16, 16).double()

    def gradients(model: MaxViTGenerator, images: int) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = []
        for part in torch.arange(12).split(images):
            outputs.append(model(z[part], labels[part]))
            (outputs[-1] * weights[part]).sum().backward()
        return torch.cat(outputs), {name: p.grad for name, p in model.named_parameters()}

    images, ours = gradients(ghost, micro_batch)
    expected, truth = gradients(plain, 2)  # a plain BatchNorm that sees two images at a time
    torch.testing.assert_close(images, expected)
    largest = max(gradient.abs().max().item() for gradient in truth.values())
    torch.testing.assert_close(ours, truth, rtol=1e-7, atol=1e-11 * largest)


def test_labels_and_model_must_agree() -> None:
    with pytest.raises(ValueError, match="has 3 classes: give a label for every z"):
        small(num_classes=3)(torch.zeros(2, 8))
    with pytest.raises(ValueError, match="has 0 classes: it is unconditional, give no labels"):
        small()(torch.zeros(2, 8), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("shape", [(2, 7), (8,), (2, 8, 1)])
def test_latents_of_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes z \(N, 8\), not \(.*: draw latents of generator\.latent_dim 8"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (64, 64)}, r"generator\.widths \(64, 64\) has 2 entries, but there are 3 stages"),
        ({"widths": (64, 40, 16)}, r"\(64, 40, 16\) must be multiples of generator\.head_dim 16: change .*widths"),
        ({"widths": (64, 0, 16)}, r"must be multiples of generator\.head_dim"),
        ({"width": 40}, r"\(40, 40, 20\) must be multiples of generator\.head_dim 16: change generator\.width or"),
        ({"head_dim": 0}, r"generator\.head_dim must be at least 1, not 0"),
        ({"head_dim": 6, "width": 6}, "a width of 6 can't be pixel-shuffled"),
        ({"depths": (1, 1)}, r"generator\.depths \(1, 1\) has 2 entries, but there are 3 stages"),
        ({"depth": 0}, r"generator\.depths must be at least 1 in every stage"),
        ({"base_resolution": 2}, r"generator\.base_resolution must be a power of two from 4 to .* 16, not 2"),
        ({"base_resolution": 6}, r"generator\.base_resolution must be a power of two .* not 6"),
        ({"base_resolution": 32}, r"generator\.base_resolution .* to the resolution 16, not 32"),
        ({"window_size": 1}, r"generator\.window_size 1 does not fit the 4 x 4 map"),
        ({"window_size": 6}, r"generator\.window_size 6 does not fit the 8 x 8 map"),
        ({"window_sizes": (4, 8)}, r"generator\.window_sizes \(4, 8\) has 2 entries, but there are 3 stages"),
        ({"window_sizes": (4, 3, 8)}, r"generator\.window_sizes 3 does not fit the 8 x 8 map"),
        ({"latent_tokens": 0}, r"generator\.latent_tokens must be at least 1, not 64, 0"),
        ({"latent_dim": 0}, r"generator\.latent_dim and generator\.latent_tokens must be at least 1, not 0"),
        ({"order": "GA-BA-GC"}, "order must join parts"),
        ({"norm": "group"}, "norm must be batch, layer or none, not 'group'"),
        ({"norm": "batch", "norm_group": 1}, "norm_group must be at least 2"),
        ({"norm_group": 8}, "norm_group is for norm: batch"),
        ({"latent": 8}, "no setting 'latent': did you mean 'latent_dim'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(16, **settings)


def test_resolutions_that_are_no_power_of_two() -> None:
    with pytest.raises(ValueError, match=r"power of two from 8 to 1024, not 48: set data\.resolution"):
        on_meta(48)


@pytest.mark.parametrize("conditioning", ["cross_attention", "modulation"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_zero_init_starts_every_stage_as_the_identity(conditioning: str, norm: str) -> None:
    model = small(16, zero_init=True, conditioning=conditioning, norm=norm)
    x, tokens = model.embed(torch.randn(4, 8))
    assert torch.equal(model.stages[0](x, tokens), x)
    # The latent still makes the image, and every branch learns from the first step on.
    images = model(torch.randn(4, 8))
    assert not torch.equal(images[0], images[1])
    images.square().sum().backward()
    for name, parameter in model.stages[1].named_parameters():
        if name.endswith(("out.weight", "project.weight", "ffn.2.weight")):
            assert parameter.grad is not None and parameter.grad.any(), name


def test_modulation_scales_and_shifts_every_channel_by_the_mean_token() -> None:
    modulation = Modulation(3, 5).double()
    x, tokens = torch.randn(2, 4, 6, 3).double(), torch.randn(2, 7, 5).double()
    y = modulation(x, tokens)
    for n in range(2):
        numbers = modulation.out.weight @ tokens[n].sum(0) / 7 + modulation.out.bias
        for c in range(3):
            torch.testing.assert_close(y[n, :, :, c], x[n, :, :, c] * numbers[c] + numbers[3 + c])


def test_each_stage_has_the_order_it_is_given() -> None:
    model = small(16, orders=("GA-BA-C", "BA-C", "C"))
    axes = [[m.axis for m in stage.modules() if isinstance(m, RelativeAttention)] for stage in model.stages]
    assert axes == [["grid", "block"], ["block"], []]
    assert all(any(isinstance(m, MBConv) for m in stage.modules()) for stage in model.stages)


def test_without_norms_the_scale_of_the_maps_is_kept() -> None:
    """Kernels of deviation 0.02 would make the images of a model without norms smaller than their rounding in a PNG."""
    with pytest.raises(ValueError, match=r"generator\.norm none needs generator\.zero_init true"):
        small(32, norm="none")
    model = small(32, norm="none", zero_init=True)
    assert not any(isinstance(m, LayerNorm2d | nn.BatchNorm2d) for m in model.modules())
    assert all(m.depthwise.bias is not None for m in model.modules() if isinstance(m, MBConv))
    assert 0.1 < model(torch.randn(16, 8)).std().item() < 10


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_batch_statistics_of_a_group_need_batch_norm(norm: str) -> None:
    with pytest.raises(ValueError, match=f"norm_group is for norm: batch; norm: {norm} has no batch statistics"):
        small(norm=norm, norm_group=4, zero_init=True)
