from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2.functional import normalize

from maxgan.models import MaxViT
from maxgan.models.network import export_model

OFFICIAL = [
    ("tiny", 224, 30_916_528, 5.55),
    ("tiny", 384, 30_977_008, 17.30),
    ("tiny", 512, 31_049_584, 32.87),
    ("small", 224, 68_927_956, 11.58),
    ("small", 384, 69_018_676, 35.53),
    ("small", 512, 69_127_540, 66.33),
    ("base", 224, 119_467_708, 23.90),
    ("base", 384, 119_653_468, 73.17),
    ("base", 512, 119_876_380, 136.24),
    ("large", 224, 211_785_560, 43.49),
    ("large", 384, 212_033_240, 131.71),
    ("large", 512, 212_330_456, 242.36),
    ("xlarge", 384, 475_323_472, 291.51),
    ("xlarge", 512, 475_769_296, 530.55),
]


@pytest.mark.parametrize(("size", "resolution", "parameters"), [case[:3] for case in OFFICIAL])
def test_parameters_are_those_of_the_official_models(size: str, resolution: int, parameters: int) -> None:
    with torch.device("meta"):
        model = MaxViT.from_name(size, resolution)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("size", "resolution", "multiply_adds"),
    [
        pytest.param(size, resolution, number, marks=() if (size, resolution) == ("tiny", 224) else pytest.mark.slow)
        for size, resolution, _, number in OFFICIAL
    ],
)
def test_multiply_adds_are_those_of_the_official_models(size: str, resolution: int, multiply_adds: float) -> None:
    with torch.device("meta"):
        model = MaxViT.from_name(size, resolution).eval()
        images = torch.empty(1, 3, resolution, resolution)
    # Convolutions, linear layers and attention products, two operations each.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    assert counter.get_total_flops() / 2e9 == pytest.approx(multiply_adds, rel=0.005)


def test_names_give_the_sizes_with_settings_in_their_place() -> None:
    with torch.device("meta"):
        model = MaxViT.from_name("small", 64, 7, 1, stem_stride=1, widths=(96, 192), depths=(1, 2), drop_path=0.1)
    assert (model.resolution, model.num_classes, model.channels) == (64, 7, 1)
    assert (model.config.stem_width, model.config.head_dim, model.config.drop_path) == (64, 32, 0.1)
    assert [len(stage) for stage in model.stages] == [1, 2]
    assert model.stages[0][0][1].attention.size == 2  # resolution / 32
    with pytest.raises(ValueError, match="one of tiny, small, base, large, xlarge, not 'huge'"):
        MaxViT.from_name("huge")


def small(**settings: Any) -> MaxViT:
    torch.manual_seed(0)
    return MaxViT(32, 3, 10, **{"widths": (16, 32), "depths": (2, 1), "stem_width": 16, **settings}).eval()


PORT = {"gelu": "erf", "padding": "symmetric", "shortcut": "pool3"}


@pytest.mark.parametrize(
    ("resolution", "settings"),
    [
        (32, {"stem_stride": 2, "window_size": 2}),
        (32, {"stem_stride": 2, "window_size": 4, "order": "C-GA-BA"}),
        (48, {"stem_stride": 1, "window_size": 3}),
        (48, {"stem_stride": 1, "window_size": 6, "order": "C-BA"}),
        (64, {"stem_stride": 2, "window_size": None, **PORT}),
        *((32, {"stem_stride": 2, "window_size": 2, name: value}) for name, value in PORT.items()),
    ],
)
def test_equals_a_naive_backbone(resolution: int, settings: dict[str, Any]) -> None:
    model = MaxViT(
        resolution, 2, 3, stem_width=4, widths=(4, 8), depths=(1, 2), head_dim=4, **settings
    ).double().eval()  # fmt: skip
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.normal_(std=0.4)
        x = torch.randn(1, 2, resolution, resolution, dtype=torch.float64)
        torch.testing.assert_close(model(x), naive_backbone(model, x), rtol=1e-9, atol=1e-12)


def naive_backbone(model: MaxViT, x: Tensor) -> Tensor:
    """Return the logits for `x`, written from the formulas of the paper with the numerics of the official code."""
    config, size = model.config, model.config.window_size or model.resolution // 32

    def activate(x: Tensor) -> Tensor:
        if config.gelu == "erf":
            return x * (1 + torch.erf(x / math.sqrt(2))) / 2
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        mean, var, weight, bias = (
            v.view(-1, 1, 1) for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    def convolve(x: Tensor, layer: nn.Conv2d, stride: int = 1, groups: int = 1) -> Tensor:
        if layer.weight.shape[-1] == 3:
            before = 0 if stride == 2 and config.padding == "same" else 1
            x = F.pad(x, (before, 1, before, 1))
        return F.conv2d(x, layer.weight, layer.bias, stride, groups=groups)

    def layer_norm(x: Tensor, norm: nn.Module) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        return (x - mean) / (var + 1e-5).sqrt() * norm.weight + norm.bias

    def mbconv(x: Tensor, part: nn.Module, stride: int) -> Tensor:
        skip = x
        if stride == 2 and config.shortcut == "pool3":
            padded = F.pad(x, (1, 1, 1, 1))
            h, w = x.shape[2:]
            skip = sum(padded[:, :, i : i + h : 2, j : j + w : 2] for i in range(3) for j in range(3)) / 9
        elif stride == 2:
            skip = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        changes = x.shape[1] != part.project.out_channels or (stride == 2 and config.shortcut == "pool3")
        if changes:
            skip = convolve(skip, part.shortcut)
        y = activate(batch_norm(convolve(batch_norm(x, part.pre_norm), part.expand), part.expand_norm))
        y = activate(batch_norm(convolve(y, part.depthwise, stride, y.shape[1]), part.depthwise_norm))
        gate = convolve(y.mean((2, 3), keepdim=True), part.se.reduce)
        return skip + convolve(
            y / (1 + torch.exp(-convolve(gate / (1 + torch.exp(-gate)), part.se.expand))), part.project
        )

    def attend(x: Tensor, layer: nn.Module, kind: str) -> Tensor:
        height, width, channels = x.shape[1:]
        heads = channels // config.head_dim
        qkv = (x @ layer.qkv.weight.T + layer.qkv.bias).unflatten(-1, (3, heads, config.head_dim))
        out = torch.zeros_like(x)
        rows, columns = height // size, width // size
        inside = [(i, j) for i in range(size) for j in range(size)]
        for r in range(rows):
            for c in range(columns):
                where = [
                    (r * size + i, c * size + j) if kind == "BA" else (r + i * rows, c + j * columns) for i, j in inside
                ]
                q, k, v = torch.stack([qkv[0, y, z] for y, z in where], 2).unbind(0)  # (heads, tokens, d)
                logits = q @ k.mT / math.sqrt(config.head_dim)
                for a, (i, j) in enumerate(inside):
                    for b, (ki, kj) in enumerate(inside):
                        logits[:, a, b] += layer.relative_bias[:, ki - i + size - 1, kj - j + size - 1]
                mixed = (logits.exp() / logits.exp().sum(-1, keepdim=True)) @ v
                for a, (y, z) in enumerate(where):
                    out[0, y, z] = mixed[:, a].flatten()
        return out @ layer.out.weight.T + layer.out.bias

    stem = model.stem
    x = convolve(activate(batch_norm(convolve(x, stem.conv1, config.stem_stride), stem.norm)), stem.conv2)
    for stage in model.stages:
        for i, block in enumerate(stage):
            for kind, part in zip(config.order.split("-"), block, strict=True):
                if kind == "C":
                    x = mbconv(x, part, 2 if i == 0 else 1)
                    continue
                tokens = x.permute(0, 2, 3, 1)
                tokens = tokens + attend(layer_norm(tokens, part.norm), part.attention, kind)
                hidden = activate(layer_norm(tokens, part.ffn_norm) @ part.ffn[0].weight.T + part.ffn[0].bias)
                x = (tokens + hidden @ part.ffn[2].weight.T + part.ffn[2].bias).permute(0, 3, 1, 2)
    head = model.head
    hidden = torch.tanh(layer_norm(x.mean((2, 3)), head.norm) @ head.dense.weight.T + head.dense.bias)
    return hidden @ head.logits.weight.T + head.logits.bias


def test_batch_norm_follows_the_official_momentum_in_training() -> None:
    torch.manual_seed(0)
    model = MaxViT(32, 3, 10, widths=(16,), depths=(2,), stem_width=16).double().train()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    moving = {
        name: [torch.zeros(m.num_features).double(), torch.ones(m.num_features).double()] for name, m in norms.items()
    }

    def record(name: str, x: Tensor) -> None:
        # Keras, fused: moving * 0.99 + batch * 0.01, the variance over all values of a channel by count - 1.
        values = x.detach().transpose(0, 1).flatten(1)
        mean = values.sum(1) / values.shape[1]
        var = (values - mean[:, None]).square().sum(1) / (values.shape[1] - 1)
        moving[name] = [moving[name][0] * 0.99 + mean * 0.01, moving[name][1] * 0.99 + var * 0.01]

    for name, module in norms.items():
        module.register_forward_pre_hook(lambda _, args, name=name: record(name, args[0]))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.randn(4, 3, 32, 32, dtype=torch.float64)), torch.randint(10, (4,)))
        loss.backward()
        optimizer.step()
    assert len(norms) == 1 + 2 * 3
    for name, module in norms.items():
        torch.testing.assert_close(module.running_mean, moving[name][0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(module.running_var, moving[name][1], rtol=1e-10, atol=1e-12)
        assert ((module.running_var - 1).abs() > 0.01).any(), name


def test_checkpointing_changes_no_gradient_and_no_statistic() -> None:
    results = []
    for checkpointing in (False, True):
        model = small(drop_path=0.5, checkpointing=checkpointing).train()
        saved = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        torch.manual_seed(1)
        for _ in range(2):
            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                loss = model(torch.randn(4, 3, 32, 32)).logsumexp(1).sum()
            loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append((gradients, dict(model.named_buffers()), saved))
    (gradients, buffers, all_saved), (gradients_again, buffers_again, few_saved) = results
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients_again[name], gradient, rtol=0, atol=0)
    for name, buffer in buffers.items():
        assert torch.equal(buffers_again[name], buffer), name
    assert few_saved < all_saved / 3


def test_a_new_head_has_other_classes_and_the_rest_stays() -> None:
    model = small()
    model.info = {"class_names": list("abcdefghij"), "images_seen": 5}
    x = torch.randn(1, 3, 32, 32)
    pooled, dense = model.pooled(x), model.head.dense.weight.clone()
    model.reset_head(4)
    assert model(x).shape == (1, 4)
    assert model.head.logits.bias.eq(0).all()
    assert 0.01 < model.head.logits.weight.std() < 0.03
    torch.testing.assert_close(model.pooled(x), pooled, rtol=0, atol=0)
    assert torch.equal(model.head.dense.weight, dense)
    assert model.arguments()["num_classes"] == 4
    assert model.info == {"images_seen": 5}
    with pytest.raises(ValueError, match="at least 2 classes, not 1"):
        model.reset_head(1)


def test_maps_halve_at_every_stage_and_pool_to_the_classifier() -> None:
    model = small()
    x = torch.randn(2, 3, 32, 32)
    maps = model.features(x)
    assert [tuple(m.shape) for m in maps] == [(2, 16, 16, 16), (2, 32, 8, 8)]
    torch.testing.assert_close(model(x), model.classify(model.pooled(x)))
    torch.testing.assert_close(model.pooled(x), maps[-1].flatten(2).mean(2))
    assert model(x).shape == (2, 10)


def test_the_default_config_takes_digits() -> None:
    assert MaxViT(16, 1, 10)(torch.zeros(1, 1, 16, 16)).shape == (1, 10)


def test_every_parameter_gets_a_finite_gradient() -> None:
    model = small().train()
    model(torch.randn(4, 3, 32, 32)).logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_stochastic_depth_rises_from_zero_by_equal_steps() -> None:
    model = small(drop_path=0.3)
    rates = [[part.drop_path.p for part in block] for stage in model.stages for block in stage]
    assert rates == [[pytest.approx(0.3 * i / 3)] * 3 for i in range(3)]


def test_maps_stay_in_channels_last_memory() -> None:
    model = small().to(memory_format=torch.channels_last)
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        # Inside attention and feed-forward the tensors are tokens, (N, H, W, C) in plain memory: the same bytes.
        if "attention" not in name and "ffn" not in name.removesuffix("ffn_norm"):
            module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    model(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    maps = {name: output for name, output in outputs.items() if output.dim() == 4 and output.shape[2] > 1}
    assert len(maps) > 30
    assert [name for name, m in maps.items() if not m.is_contiguous(memory_format=torch.channels_last)] == []


@pytest.mark.parametrize(
    ("resolution", "settings", "message"),
    [
        (32, {"window_size": 1}, "backbone.window_size 1 does not fit the 16 x 16 map of stage 1 at 32 px"),
        (32, {"window_size": 3}, "backbone.window_size 3 does not fit the 16 x 16"),
        (
            32,
            {"window_size": None},
            r"window_size 1 \(resolution / 32\) does not fit .* 2, 4 or 8 would .* 64 is the near",
        ),
        (
            36,
            {"window_size": 4},
            "map of stage 1 at 36 px: 3 or 9 would fit this resolution, and 32 or 48 is the nearest",
        ),
        (
            70,
            {"window_size": 7},
            "17.5 x 17.5 map of stage 2 at 70 px: no window would fit this .* and 56 or 84 is the",
        ),
        (32, {"window_size": 16}, "backbone.window_size 16 does not fit the 8 x 8 map of stage 2"),
        (28, {"window_size": 7, "depths": (1,) * 3, "widths": (16,) * 3}, "does not fit the 3.5 x 3.5 map of stage 3"),
        (32, {"widths": (16, 24)}, "a width of 24 is no multiple of head_dim 16"),
        (32, {"depths": (1, 0)}, r"backbone.depths must give every stage at least one block, not \(1, 0\)"),
        (32, {"depths": (1,)}, "must have the same length"),
        (32, {"gelu": "none"}, "backbone.gelu must be tanh or erf, not 'none'"),
        (32, {"padding": "valid"}, "backbone.padding must be same or symmetric, not 'valid'"),
        (32, {"shortcut": "pool4"}, "backbone.shortcut must be pool2 or pool3, not 'pool4'"),
        (32, {"order": "BA-C-GA"}, "must begin with C"),
        (32, {"order": "C-XX"}, "order must join parts"),
        (32, {"window": 4}, "no setting 'window': did you mean 'window_size'"),
        (32, {"num_classes": 1}, "at least 2 classes, not 1"),
        (32, {"channels": 5}, "1 to 4 channels, not 5"),
    ],
)
def test_settings_that_do_not_fit(resolution: int, settings: dict[str, Any], message: str) -> None:
    arguments = {"channels": 3, "num_classes": 10, "widths": (16, 32), "depths": (1, 1), **settings}
    with pytest.raises(ValueError, match=message):
        MaxViT(resolution, **arguments)


@pytest.mark.parametrize(
    "settings", [{}, {"gelu": "erf", "padding": "symmetric", "shortcut": "pool3"}, {"stem_stride": 2, "window_size": 2}]
)
def test_a_fused_copy_gives_the_same_maps_and_logits(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maxgan.nn.fuse.PART_BYTES", 100_000)  # so that five images come in parts
    network = MaxViT(32, 3, 10, **settings).double()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) if name.endswith("var") else 0.2 * torch.randn_like(tensor))
    network.eval().to(memory_format=torch.channels_last)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.randn(5, 3, 32, 32, dtype=torch.float64).to(memory_format=torch.channels_last)
    fused = network.fuse()
    with torch.no_grad():
        for x, y in zip(
            [*network.features(images), network(images)], [*fused.features(images), fused(images)], strict=True
        ):
            assert (x - y).abs().max() <= 1e-10 * x.std()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    # The network itself is as it was, and can be trained.
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    network.train()(images).sum().backward()


def test_a_fused_copy_is_for_inference_alone(tmp_path: Path) -> None:
    fused = MaxViT(16, 1, 10).fuse()
    assert not fused(torch.randn(2, 1, 16, 16)).requires_grad
    with pytest.raises(ValueError, match="fused"):
        fused.train()
    with pytest.raises(ValueError, match="fused"):
        export_model(fused, tmp_path / "fused.safetensors", {})


def test_images_are_normalised_as_the_weights_expect() -> None:
    plain = MaxViT(32, 3, 10).eval()
    network = MaxViT(32, 3, 10, normalization="imagenet").eval()
    network.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    expected = plain(normalize(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(network(2 * images - 1), expected)
    with pytest.raises(ValueError, match=r"backbone\.normalization imagenet is for 3 channels, not 1"):
        MaxViT(32, 1, 10, normalization="imagenet")
