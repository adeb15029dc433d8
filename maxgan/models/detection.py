"""MaxViT as the backbone of torchvision's detectors: a feature pyramid on the maps of all stages."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from maxgan.models.backbone import MaxViT, window_size


class PyramidBackbone(nn.Module):
    """A feature pyramid (arXiv 1612.03144) on MaxViT: maps "0" to "3" of the stages and "pool", half the last.

    What `torchvision.models.detection.FasterRCNN`, `MaskRCNN` and `RetinaNet` take as their backbone. Their defaults
    (anchors of five sizes) fit a model of four stages, as T to XL are: strides 4, 8, 16, 32 and 64.

    Images may have any height and width. They are padded here with zeros, below and to the right, until windows fit
    every map, and the maps are cut back to the images: detectors take an anchor's stride from the sizes of image and
    map, so padding that they don't know of would shift every box. Their own (`size_divisible`, 32) may stay as it is.

    Attributes:
        multiple: padded sides are multiples of it: the last map's stride times the window.
        out_channels: channels of every map, read by the detectors.

    Args:
        model: the classifier; it becomes part of this module and loses its head, which would never get a gradient.
        out_channels: see above.
        freeze_statistics: in training, too, BatchNorm uses the running statistics of `model`: for fine-tuning with a
            few images a process.
    """

    def __init__(self, model: MaxViT, out_channels: int = 256, freeze_statistics: bool = False) -> None:
        super().__init__()
        if out_channels < 1:
            raise ValueError(f"out_channels must be at least 1, not {out_channels}")
        self.body = model
        self.body.add_module("head", nn.Identity())
        self.fpn = FeaturePyramidNetwork(list(model.config.widths), out_channels, LastLevelMaxPool())
        self.out_channels = out_channels
        self.freeze_statistics = freeze_statistics
        self.strides = [model.config.stem_stride * 2 ** (i + 1) for i in range(len(model.config.widths))]
        self.multiple = self.strides[-1] * window_size(model.config, model.resolution)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; frozen BatchNorm stays in evaluation."""
        super().train(mode)
        if self.freeze_statistics:
            for module in self.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images `(N, C, H, W)` in [-1, 1] to maps `(N, out_channels, ceil(H / stride), ceil(W / stride))`."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        maps = self.body.features(x.contiguous(memory_format=torch.channels_last))
        return self.fpn(
            {
                str(i): m[:, :, : -(-height // stride), : -(-width // stride)]
                for i, (m, stride) in enumerate(zip(maps, self.strides, strict=True))
            }
        )


def detection_backbone(model: MaxViT, out_channels: int = 256, freeze_statistics: bool = False) -> PyramidBackbone:
    """Return `model` with a feature pyramid, ready for torchvision's detectors.

        detector = MaskRCNN(detection_backbone(model), num_classes=91, image_mean=[0.5] * 3, image_std=[0.5] * 3)

    Mean and standard deviation of 0.5 bring torchvision's images in [0, 1] to our [-1, 1]. The official recipe for COCO
    (tensorflow/models, official/projects/maxvit) takes windows of resolution / 32, so 28 at 896 x 896, their tables
    resized from the 7 of the pre-training; whole images are scaled into that square and padded, which is
    `min_size=896, max_size=896` here.

    Args:
        model, out_channels, freeze_statistics: see PyramidBackbone.

    Raises:
        ValueError: if out_channels is below 1.
    """
    return PyramidBackbone(model, out_channels, freeze_statistics)
