from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from maxgan.models import MaxViT
from maxgan.models.detection import detection_backbone
from maxgan.nn.attention import RelativeAttention


def small(**settings: Any) -> MaxViT:
    torch.manual_seed(0)
    tiny = {"stem_width": 8, "stem_stride": 2, "widths": (16, 16, 32, 32), "depths": (1,) * 4, "window_size": 2}
    return MaxViT(64, 3, 10, **{**tiny, **settings})


def test_maps_are_those_of_the_pyramid_on_padded_images_cut_back() -> None:
    backbone = detection_backbone(small(), 12).eval()
    assert backbone.multiple == 64
    x = torch.rand(2, 3, 96, 160)
    padded = torch.zeros(2, 3, 128, 192)
    padded[:, :, :96, :160] = x
    with torch.no_grad():
        maps = backbone(x)
        stages = backbone.body.features(padded)
        cut = [stages[i][:, :, : 96 // 2 ** (i + 2), : 160 // 2 ** (i + 2)] for i in range(4)]
        expected = backbone.fpn({str(i): m for i, m in enumerate(cut)})
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {
        "0": (12, 24, 40), "1": (12, 12, 20), "2": (12, 6, 10), "3": (12, 3, 5), "pool": (12, 2, 3)
    }  # fmt: skip
    torch.testing.assert_close(maps, dict(expected))


def test_images_that_fit_are_not_padded() -> None:
    model = small().eval()
    backbone = detection_backbone(model, 12).eval()
    x = torch.rand(1, 3, 128, 64)
    with torch.no_grad():
        expected = backbone.fpn({str(i): m for i, m in enumerate(model.features(x))})
        torch.testing.assert_close(backbone(x), dict(expected))


@pytest.mark.parametrize(
    ("settings", "multiple"),
    [
        ({"window_size": None}, 64),
        ({"window_size": 2, "stem_stride": 1}, 32),
        ({"widths": (16, 16), "depths": (1, 1), "window_size": 4}, 32),
    ],
)
def test_padding_follows_window_and_stride(settings: dict[str, Any], multiple: int) -> None:
    backbone = detection_backbone(small(**settings), 8).eval()
    assert backbone.multiple == multiple
    strides = backbone.strides
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 41, 70))
    for i, stride in enumerate(strides):
        assert maps[str(i)].shape[2:] == (-(-41 // stride), -(-70 // stride))


def test_window_and_multiple_of_the_paper() -> None:
    with torch.device("meta"):
        model = MaxViT(
            896, stem_width=64, stem_stride=2, widths=(64, 128, 256, 512), depths=(2, 2, 5, 2), window_size=None,
            head_dim=32,
        )  # fmt: skip
        maps = detection_backbone(model)(torch.empty(1, 3, 640, 896))
    assert [tuple(m.shape) for m in maps.values()] == [
        (1, 256, 160, 224), (1, 256, 80, 112), (1, 256, 40, 56), (1, 256, 20, 28), (1, 256, 10, 14)
    ]  # fmt: skip
    assert {m.size for m in model.modules() if isinstance(m, RelativeAttention)} == {28}


def test_every_parameter_gets_a_gradient() -> None:
    # DistributedDataParallel waits for all of them.
    backbone = detection_backbone(small(), 8).train()
    torch.stack([m.square().mean() for m in backbone(torch.rand(2, 3, 64, 64)).values()]).sum().backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("freeze", [False, True])
def test_frozen_statistics_stay(freeze: bool) -> None:
    backbone = detection_backbone(small(), 8, freeze_statistics=freeze)
    norms = [m for m in backbone.body.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms if m.running_mean is not None]
    assert len(before) > 4
    for mode in (None, True):
        if mode is not None:
            backbone.train(mode)
        backbone(torch.rand(2, 3, 64, 64))
        changed = [not torch.equal(a, m.running_mean) for a, m in zip(before, norms, strict=True)]  # type: ignore[arg-type]
        assert all(changed) is not freeze
        assert any(changed) is not freeze
    assert backbone.fpn.training


def test_anchors_lie_on_the_image_that_the_detector_sees() -> None:
    # 96 x 160 is no multiple of 64: with padding left in the maps the strides would come out as 3.
    backbone = detection_backbone(small(), 8).eval()
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((1.0,),) * 5)
    x = torch.rand(1, 3, 96, 160)
    with torch.no_grad():
        maps = list(backbone(x).values())
    boxes = anchors(ImageList(x, [(96, 160)]), maps)[0]
    centres = (boxes[: 24 * 40, :2] + boxes[: 24 * 40, 2:]) / 2
    assert centres[:41].tolist() == [[4.0 * i, 0.0] for i in range(40)] + [[0.0, 4.0]]


def test_out_channels() -> None:
    with pytest.raises(ValueError, match="out_channels must be at least 1, not 0"):
        detection_backbone(small(), 0)


def shapes() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images of different shape with a bright and a dark rectangle each, and their targets."""
    images, targets = [], []
    for height, width, boxes in (
        (48, 64, [[4, 6, 28, 26], [36, 12, 60, 40]]),
        (64, 48, [[6, 4, 34, 24], [14, 34, 40, 60]]),
    ):
        image = torch.full((3, height, width), 0.5)
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        for i, (left, top, right, bottom) in enumerate(boxes):
            image[:, top:bottom, left:right] = float(i == 0)
            masks[i, top:bottom, left:right] = 1
        images.append(image)
        targets.append(
            {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor([1, 2]), "masks": masks}
        )
    return images, targets


def detector(kind: type[FasterRCNN], model: MaxViT) -> FasterRCNN:
    return kind(
        detection_backbone(model, 32),
        num_classes=3,
        min_size=48,
        max_size=64,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        rpn_anchor_generator=AnchorGenerator(((8,), (16,), (24,), (32,), (48,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=50,
        rpn_pre_nms_top_n_test=100,
        rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=32,
    )


@pytest.mark.slow
def test_a_detector_overfits_two_images() -> None:
    model = small()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # a few dozen updates are too few for the official 0.01
    faster = detector(FasterRCNN, model).train()
    images, targets = shapes()
    optimizer = torch.optim.AdamW(faster.parameters(), 1e-3)
    losses = []
    for _ in range(100):
        loss = torch.stack(list(faster(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < losses[0] / 5
    with torch.no_grad():
        found = faster.eval()(images)
    for result, target in zip(found, targets, strict=True):
        sure = result["scores"] > 0.5
        for label, box in zip(target["labels"], target["boxes"], strict=True):
            overlaps = iou(result["boxes"][sure & (result["labels"] == label)], box)
            assert overlaps.numel() > 0
            assert overlaps.max() > 0.6


def iou(boxes: Tensor, box: Tensor) -> Tensor:
    """Return intersection over union of `(N, 4)` boxes with one."""
    sides = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp_min(0)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return sides.prod(1) / (areas - sides.prod(1))


@pytest.mark.slow
def test_mask_rcnn_trains_and_predicts_masks() -> None:
    mask = detector(MaskRCNN, small()).train()
    images, targets = shapes()
    losses = mask(images, targets)
    assert "loss_mask" in losses
    torch.stack(list(losses.values())).sum().backward()
    gradient = mask.backbone.body.stem.conv1.weight.grad
    assert gradient is not None
    assert 0 < gradient.norm() < float("inf")
    mask.roi_heads.score_thresh = 0.0
    with torch.no_grad():
        found = mask.eval()(images)
    for result, image in zip(found, images, strict=True):
        assert len(result["boxes"]) > 0
        assert result["masks"].shape == (len(result["boxes"]), 1, *image.shape[1:])
