from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

timm = pytest.importorskip("timm")
registry = pytest.importorskip("maxgan.models.registry")

from maxgan.models import MaxViT  # noqa: E402

SMALL = {"img_size": 64, "stem_width": 16, "widths": (32, 64), "depths": (1, 2)}


def create(**settings: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model("maxgan_maxvit_tiny", **{**SMALL, **settings}).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64)


def test_all_sizes_are_listed_under_our_name() -> None:
    assert set(timm.list_models("maxgan_*")) == {
        f"maxgan_maxvit_{size}" for size in ("tiny", "small", "base", "large", "xlarge")
    }
    with torch.device("meta"):
        model = timm.create_model("maxgan_maxvit_small", num_classes=5, in_chans=1, img_size=96, drop_path_rate=0.3)
    assert isinstance(model.model, MaxViT)
    assert model.model.config.widths == (96, 192, 384, 768)
    assert (model.model.resolution, model.model.channels, model.num_classes) == (96, 1, 5)
    assert model.model.config.drop_path == 0.3
    assert model.default_cfg["input_size"] == (3, 224, 224)


@torch.no_grad()
def test_computes_what_our_model_does(x: torch.Tensor) -> None:
    model = create(num_classes=5)
    assert torch.equal(model(x), model.model(x))
    last = model.forward_features(x)
    assert torch.equal(last, model.model.features(x)[-1])
    assert torch.equal(model.forward_head(last), model(x))
    before = model.forward_head(last, pre_logits=True)
    assert torch.equal(model.get_classifier()(before), model(x))


@torch.no_grad()
def test_features_only_gives_the_maps_that_are_asked_for(x: torch.Tensor) -> None:
    whole = create(num_classes=5)
    maps = [whole.model.stem(x), *whole.model.features(x)]
    for indices in ((0, 1, 2), (1,), (0, 2), (-1,)):
        features = create(num_classes=5, features_only=True, out_indices=indices)
        outputs = features(x)
        asked = [i % 3 for i in indices]
        assert [tuple(o.shape[1:2]) for o in outputs] == [(c,) for c in features.feature_info.channels()]
        assert [64 // o.shape[2] for o in outputs] == features.feature_info.reduction()
        for output, i in zip(outputs, asked, strict=True):
            assert torch.equal(output, maps[i])
        # Nothing is left that the maps don't need: every parameter gets a gradient.
        assert not any("head" in name for name, _ in features.named_parameters())
        assert len(features.model.model.stages) == max(asked)


@torch.no_grad()
def test_intermediates_of_the_whole_model(x: torch.Tensor) -> None:
    model = create()
    last, maps = model.forward_intermediates(x)
    assert torch.equal(last, model.forward_features(x))
    assert [m.shape[1] for m in maps] == [16, 32, 64]
    early, maps = model.forward_intermediates(x, indices=[1], stop_early=True)
    assert early is maps[0]
    assert len(model.forward_intermediates(x, indices=2, intermediates_only=True)) == 2
    with pytest.raises(ValueError, match="output_fmt must be NCHW, not 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


@torch.no_grad()
def test_classifiers_come_and_go(x: torch.Tensor) -> None:
    model = create(num_classes=0)
    assert model(x).shape == (2, 64)
    assert isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(9)
    assert model(x).shape == (2, 9)
    assert model.num_classes == model.model.num_classes == 9
    model.reset_classifier(0, "")
    assert model(x).shape == (2, 64, 8, 8)
    assert create(num_classes=0, global_pool="")(x).shape == (2, 64, 8, 8)
    with pytest.raises(ValueError, match="global_pool must be avg, or empty with num_classes 0, not 'max'"):
        model.reset_classifier(3, "max")


def test_gradient_checkpointing_and_groups_of_parameters() -> None:
    model = create()
    assert not any(stage.checkpointing for stage in model.model.stages)
    model.set_grad_checkpointing()
    assert all(stage.checkpointing for stage in model.model.stages)
    assert len(model.no_weight_decay()) == 6
    from timm.models._manipulate import group_parameters

    groups = group_parameters(model, model.group_matcher())
    assert sorted(name for names in groups.values() for name in names) == sorted(n for n, _ in model.named_parameters())
    assert len(groups) > 4


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="img_size must be square, not 64 x 96"):
        create(img_size=(64, 96))
    with pytest.raises(ValueError, match="no pretrained weights of maxgan_maxvit_tiny"):
        create(pretrained=True)
    with pytest.raises(ValueError, match="does not fit"):
        create(img_size=100)
