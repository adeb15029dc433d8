from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maxgan.models import MaxViT
from maxgan.models.convert import from_tensorflow

FIXTURES = Path(__file__).parents[1] / "fixtures"
PAPER: dict[str, Any] = {"stem_width": 64, "stem_stride": 2, "window_size": None, "head_dim": 32}
TINY = {**PAPER, "widths": (64, 128, 256, 512), "depths": (2, 2, 5, 2)}
SMALL = {**PAPER, "widths": (96, 192, 384, 768), "depths": (2, 2, 5, 2)}
BASE = {**PAPER, "widths": (96, 192, 384, 768), "depths": (2, 6, 14, 2)}
LARGE = {**PAPER, "stem_width": 128, "widths": (128, 256, 512, 1024), "depths": (2, 6, 14, 2)}
XLARGE = {**PAPER, "stem_width": 192, "widths": (192, 384, 768, 1536), "depths": (2, 6, 14, 2)}


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        (TINY, {224: 30_916_528, 384: 30_977_008, 512: 31_049_584}),
        (SMALL, {224: 68_927_956, 384: 69_018_676, 512: 69_127_540}),
        (BASE, {224: 119_467_708, 384: 119_653_468, 512: 119_876_380}),
        (LARGE, {224: 211_785_560, 384: 212_033_240, 512: 212_330_456}),
        (XLARGE, {384: 475_323_472, 512: 475_769_296}),
    ],
    ids=["T", "S", "B", "L", "XL"],
)
def test_parameter_counts_are_those_of_the_official_models(settings: dict[str, Any], counts: dict[int, int]) -> None:
    for resolution, count in counts.items():
        with torch.device("meta"):
            model = MaxViT(resolution, **settings)
        assert sum(p.numel() for p in model.parameters()) == count


def deviations(ours: Tensor, truth: np.ndarray) -> float:
    """Return the root mean square error in standard deviations of the truth."""
    return float(np.sqrt(np.square(ours.numpy() - truth).mean()) / truth.std())


def test_official_weights_give_the_official_outputs(official: Callable) -> None:
    case = official("maxvit_tiny_224", "model")
    model = MaxViT(224, **TINY).eval()
    from_tensorflow(model, case.variables)
    images = torch.from_numpy(case.arrays["image"]).permute(0, 3, 1, 2)  # channels_last
    with torch.no_grad():
        last = model.features(images)[-1]
        pooled = last.mean((2, 3))
        logits = model.classify(pooled)
    assert deviations(last.permute(0, 2, 3, 1), case.arrays["stage_4"]) < 1e-5
    assert deviations(pooled, case.arrays["pooled"]) < 1e-5
    assert deviations(logits, case.arrays["logits"]) < 1e-5


def small(**settings: Any) -> MaxViT:
    torch.manual_seed(0)
    return MaxViT(32, 3, 10, **{"widths": (16, 32), "depths": (2, 1), "stem_width": 16, **settings}).eval()


def on_meta(**settings: Any) -> MaxViT:
    with torch.device("meta"):
        return MaxViT(224, **{**TINY, **settings})


@pytest.fixture
def official_zeros() -> dict[str, np.ndarray]:
    """Variables of the official tiny model, all zero."""
    listing = json.loads((FIXTURES / "maxvit_tiny_224.json").read_text())["model"]["variables"]
    return {name: np.zeros(shape, np.float32) for name, shape in listing}


def test_conversion_lists_what_is_missing_left_over_or_of_another_shape(official_zeros: dict[str, np.ndarray]) -> None:
    del official_zeros["block_00_01/attention_1/k/weight"]
    official_zeros["optimizer/step"] = np.zeros(1)
    official_zeros["logit_dense/weight"] = np.zeros((512, 1001), np.float32)
    official_zeros["conv_0/bias"] = np.zeros(32, np.float32)
    with pytest.raises(ValueError, match="these weights don't fit the model: ") as error:
        from_tensorflow(on_meta(), official_zeros)
    assert str(error.value).removeprefix("these weights don't fit the model: ").split("; ") == [
        "block_00_01/attention_1/k/weight is missing",
        "optimizer/step is left over",
        "conv_0/bias give stem.conv1.bias the shape (32,) in place of (64,)",
        "logit_dense/weight give head.logits.weight the shape (1001, 512) in place of (1000, 512)",
    ]


def test_conversion_refuses_another_order(official_zeros: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="C-BA-GA, not C-GA-BA"):
        from_tensorflow(on_meta(order="C-GA-BA"), official_zeros)


TIMM_BLOCK = {
    "conv.shortcut.expand": "0.shortcut",
    "conv.pre_norm": "0.pre_norm",
    "conv.conv1_1x1": "0.expand",
    "conv.norm1": "0.expand_norm",
    "conv.conv2_kxk": "0.depthwise",
    "conv.norm2": "0.depthwise_norm",
    "conv.se.fc1": "0.se.reduce",
    "conv.se.fc2": "0.se.expand",
    "conv.conv3_1x1": "0.project",
    **{
        f"attn_{kind}.{theirs}": f"{i}.{ours}"
        for i, kind in ((1, "block"), (2, "grid"))
        for theirs, ours in {
            "norm1": "norm",
            "attn.qkv": "attention.qkv",
            "attn.proj": "attention.out",
            "attn.rel_pos.relative_position_bias_table": "attention.relative_bias",
            "norm2": "ffn_norm",
            "mlp.fc1": "ffn.0",
            "mlp.fc2": "ffn.2",
        }.items()
    },
}
TIMM_REST = {
    "stem.conv1": "stem.conv1",
    "stem.norm1": "stem.norm",
    "stem.conv2": "stem.conv2",
    "head.norm": "head.norm",
    "head.pre_logits.fc": "head.dense",
    "head.fc": "head.logits",
}


def timm_name(name: str) -> str:
    """Return our name of a weight of timm's maxvit_*_tf_*."""
    leaf = ""
    if not name.endswith("_table"):
        name, _, leaf = name.rpartition(".")
        leaf = "." + leaf
    if name in TIMM_REST:
        return TIMM_REST[name] + leaf
    _, stage, _, block, rest = name.split(".", 4)
    return f"stages.{stage}.{block}.{TIMM_BLOCK[rest]}{leaf}"


def test_equals_timm_with_random_weights_and_statistics() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(
        "maxvit_tiny_tf_224", img_size=128, num_classes=7, embed_dim=(32, 64), depths=(1, 2), stem_width=16,
        head_hidden_size=64,
    ).eval()  # fmt: skip
    weights = {timm_name(name): randomised(name, tensor) for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict({name: weights[timm_name(name)] for name in theirs.state_dict()})
    model = MaxViT(
        128, 3, 7, stem_width=16, stem_stride=2, widths=(32, 64), depths=(1, 2), window_size=None, head_dim=32
    ).eval()  # fmt: skip
    model.load_state_dict(weights)
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        assert deviations(model(x), theirs(x).numpy()) < 1e-5


def randomised(name: str, tensor: Tensor) -> Tensor:
    """Return random values in place of a weight or a statistic; scales and variances are around 1."""
    if not tensor.is_floating_point():
        return tensor
    if tensor.dim() > 1:
        return torch.randn_like(tensor) * (0.5 if "table" in name else tensor[0].numel() ** -0.5)
    return torch.rand_like(tensor) + (0.0 if name.endswith(("bias", "mean")) else 0.5)


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
        (32, {"window_size": None}, "backbone.window_size 1 does not fit"),
        (32, {"window_size": 16}, "backbone.window_size 16 does not fit the 8 x 8 map of stage 2"),
        (28, {"window_size": 7, "depths": (1,) * 3, "widths": (16,) * 3}, "does not fit the 3.5 x 3.5 map of stage 3"),
        (32, {"widths": (16, 24)}, "a width of 24 is no multiple of head_dim 16"),
        (32, {"depths": (1, 0)}, r"backbone.depths must give every stage at least one block, not \(1, 0\)"),
        (32, {"depths": (1,)}, "must have the same length"),
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
