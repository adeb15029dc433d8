from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maxgan.config import MaxViTDiscriminatorConfig
from maxgan.models import MaxViTDiscriminator
from maxgan.models.network import export_model, load_model
from maxgan.nn.attention import RelativeAttention
from maxgan.nn.mbconv import MBConv
from maxgan.nn.norm import LayerNorm2d


def on_meta(resolution: int, channels: int = 3, num_classes: int = 0, **settings: Any) -> MaxViTDiscriminator:
    with torch.device("meta"):
        return MaxViTDiscriminator(resolution, channels, num_classes, **settings)


def small(resolution: int = 8, channels: int = 1, num_classes: int = 0, **settings: Any) -> MaxViTDiscriminator:
    """Return a narrow model whose weights are so large that every part matters."""
    model = MaxViTDiscriminator(
        resolution, channels, num_classes, **{"width": 8, "head_dim": 4, "depth": 1, **settings}
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def table(model: MaxViTDiscriminator) -> tuple[list[int], list[int], list[list[int]]]:
    """Return channels, blocks and windows of every stage."""
    windows = [[m.size for m in stage.modules() if isinstance(m, RelativeAttention)] for stage in model.stages]
    widths = [stage[-1][0].project.out_channels for stage in model.stages]
    return widths, [len(stage) for stage in model.stages], windows


@pytest.mark.parametrize("resolution", [8, 16, 32, 64, 128, 256, 512, 1024])
def test_one_rule_serves_every_resolution(resolution: int) -> None:
    whole = [32, 32, 32, 64, 128, 256, 256, 256]  # for maps of 512, 256, ... 4 px
    stages = resolution.bit_length() - 3
    channels, num_classes = stages % 4 + 1, 3 * (stages % 2)
    model = on_meta(resolution, channels, num_classes)
    labels = torch.zeros(2, dtype=torch.long, device="meta") if num_classes else None
    assert model(torch.zeros(2, channels, resolution, resolution, device="meta"), labels).shape == (2,)
    windows = [[8] * 4] * (stages - 1) + [[4] * 4]
    assert table(model) == (whole[-stages:], [2] * stages, windows)


@pytest.mark.parametrize(("resolution", "count"), [(16, 9_082_689), (128, 14_892_505), (1024, 15_113_429)])
def test_parameter_counts(resolution: int, count: int) -> None:
    # At 128 px: what the docstring says.
    assert sum(p.numel() for p in on_meta(resolution).parameters()) == count


def test_widths_depths_and_windows_of_every_stage_can_be_set() -> None:
    model = small(32, widths=(4, 12, 8), depths=(2, 1, 3), window_sizes=(2, 8, 4))
    assert table(model) == ([4, 12, 8], [2, 1, 3], [[2] * 4, [8] * 2, [4] * 6])
    assert model(torch.randn(2, 1, 32, 32)).shape == (2,)
    assert table(small(32, width=16, depth=2, window_size=4))[0] == [16, 16, 16]
    assert table(small(128, width=16))[0] == [4, 8, 16, 16, 16]
    assert table(small(64, window_size=2))[2] == [[2, 2]] * 4


def test_equals_its_parts_one_after_another() -> None:
    model = small(16, 2, 3, order="C-GA-BA").double()
    assert [m.axis for m in model.modules() if isinstance(m, RelativeAttention)] == ["grid", "block"] * 2
    images, labels = torch.randn(2, 2, 16, 16, dtype=torch.float64), torch.tensor([2, 0])
    x = nn.functional.conv2d(images, model.from_rgb.weight, model.from_rgb.bias, padding=1)
    for side, stage in zip((8, 4), model.stages, strict=True):
        x = stage(x)
        assert x.shape[2:] == (side, side)
    pooled = x.flatten(2).mean(2)
    pooled = nn.functional.layer_norm(pooled, (8,), model.norm.weight, model.norm.bias, 1e-5)
    h = nn.functional.gelu(pooled @ model.dense.weight.T + model.dense.bias, approximate="tanh")
    expected = (h * (model.logit.weight + model.class_embedding.weight[labels] / 8**0.5)).sum(1) + model.logit.bias
    torch.testing.assert_close(model(images, labels), expected)


def test_nothing_is_kept_of_the_batch() -> None:
    model = small(16)
    assert list(model.buffers()) == []
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.modules.batchnorm._NormBase)]
    assert [type(m) for m in norms] == [LayerNorm2d] * (2 * (3 + 4) + 1)
    images = torch.randn(3, 1, 16, 16)
    assert torch.equal(model.train()(images), model.eval()(images))


@pytest.mark.parametrize("part", ["0.0.1.attention", "0.0.2.attention", "1.0.1.attention", "1.0.2.attention"])
def test_removing_any_attention_changes_the_logits(part: str) -> None:
    model = small(16)
    images = torch.randn(2, 1, 16, 16)
    whole = model(images)
    model.get_submodule(f"stages.{part}").register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    assert (model(images) - whole).abs().max() > 1e-3 * whole.abs().max()


def test_at_first_it_is_undecided_and_sees_the_images() -> None:
    torch.manual_seed(0)
    model = MaxViTDiscriminator(64, width=32, head_dim=8)
    images = torch.randn(4, 3, 64, 64, requires_grad=True)
    logits = model(images)
    assert logits.abs().max() < 0.1
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient.square().sum((1, 2, 3)).min() > 1e-9


def test_maps_stay_in_channels_last_memory() -> None:
    model = small(16).to(memory_format=torch.channels_last)
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        # Inside attention and feed-forward the tensors are tokens, (N, H, W, C) in plain memory: the same bytes.
        if "attention" not in name and "ffn" not in name.removesuffix("ffn_norm"):
            module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    model(torch.randn(2, 1, 16, 16).contiguous(memory_format=torch.channels_last))
    maps = {name: output for name, output in outputs.items() if output.dim() == 4 and output.shape[2] > 1}
    assert len(maps) > 30
    assert [name for name, m in maps.items() if not m.is_contiguous(memory_format=torch.channels_last)] == []
    assert sum(isinstance(m, MBConv) for m in model.modules()) == 2


def test_export_and_load(tmp_path: Any) -> None:
    model = small(16, 3, 2).eval()
    export_model(model, tmp_path / "d.safetensors", {})
    loaded = load_model(tmp_path / "d.safetensors", expect=MaxViTDiscriminator)
    assert loaded.config == MaxViTDiscriminatorConfig(width=8, head_dim=4, depth=1)
    images, labels = torch.randn(2, 3, 16, 16), torch.tensor([1, 0])
    assert torch.equal(loaded(images, labels), model(images, labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 24}, "power of two from 8 to 1024, not 24"),
        ({"resolution": 4}, "at least 8 x 8 pixels, not 4"),
        ({"width": 48}, r"\(48, 48\) must be multiples of maxvit_discriminator\.head_dim 32: change .*\.width or"),
        ({"widths": (32, 32, 32)}, r"maxvit_discriminator\.widths .* has 3 entries, but there are 2 stages"),
        ({"depths": (1, 0)}, r"maxvit_discriminator\.depths must be at least 1 in every stage, not \(1, 0\)"),
        ({"window_sizes": (8, 8)}, r"maxvit_discriminator\.window_sizes 8 does not fit the 4 x 4 map"),
        ({"window_size": 1}, r"maxvit_discriminator\.window_size 1 does not fit the 8 x 8 map"),
        ({"order": "GA-BA-C"}, "order 'GA-BA-C' must begin with C"),
        ({"depht": 3}, "no setting 'depht': did you mean 'depth'"),
    ],
)
def test_settings_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(**{"resolution": 16, **arguments})
