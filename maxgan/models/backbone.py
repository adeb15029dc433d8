"""The MaxViT classification backbone."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.config import BackboneConfig
from maxgan.models.block import MaxViTBlock
from maxgan.models.network import Network
from maxgan.nn.mbconv import SameConv2d
from maxgan.nn.norm import LAYER_NORM_EPS, make_norm


class Stem(nn.Module):
    """3x3 convolution (strided), norm, GELU, 3x3 convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv2d(channels, width, 3, stride)
        self.norm = make_norm("batch", width)
        self.conv2 = SameConv2d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.gelu(self.norm(self.conv1(x)), approximate="tanh"))


class Head(nn.Module):
    """LayerNorm, Linear, tanh, Linear to the classes: `(N, C)` to `(N, num_classes)`."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dense = nn.Linear(width, width)
        self.logits = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.dense(self.norm(x)).tanh())


class MaxViT(Network):
    """MaxViT (arXiv 2204.01697; numerics of the official TensorFlow code): stem, stages of MaxViT blocks,
    classification head.

    The first block of every stage halves the map. BatchNorm in the convolutions, LayerNorm before attention and
    feed-forward.

    Args:
        resolution: side of the images; any that the stages halve evenly and the windows fit, such as 224.
        channels: image channels, 1 to 4.
        num_classes: at least 2.
        config: settings; single fields can be given as keywords.

    Raises:
        ValueError: if a window does not fit the map of its stage, for a width that is no multiple of head_dim, and for
            fewer than 2 classes.
    """

    config_class = BackboneConfig
    config: BackboneConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 1000,
        config: BackboneConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)
        config = self.config
        if num_classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, not {num_classes}: is the data labelled?")
        window = config.window_size if config.window_size is not None else resolution // 32
        if not config.depths or min(config.depths) < 1:
            raise ValueError(f"backbone.depths must give every stage at least one block, not {config.depths}")
        side = resolution / config.stem_stride  # a fraction holds no whole windows, so that odd maps are refused
        total = sum(config.depths)
        blocks_before = 0
        width = config.stem_width
        self.stem = Stem(channels, width, config.stem_stride)
        self.stages = nn.ModuleList()
        for outputs, depth in zip(config.widths, config.depths, strict=True):
            side /= 2
            if window < 2 or side % window:
                raise ValueError(
                    f"backbone.window_size {window} does not fit the {side:g} x {side:g} map of stage "
                    f"{len(self.stages) + 1} at {resolution} px: use a window of at least 2 that divides it, "
                    f"fewer stages or stem_stride 1"
                )
            blocks = []
            for i in range(depth):
                blocks.append(
                    MaxViTBlock(
                        width,
                        outputs,
                        window,
                        config.order,
                        stride=2 if i == 0 else 1,
                        head_dim=config.head_dim,
                        drop_path=config.drop_path * blocks_before / total,
                    )
                )
                width = outputs
                blocks_before += 1
            self.stages.append(nn.Sequential(*blocks))
        self.head = Head(width, num_classes)
        self.apply(_initialise)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the map of every stage, `(N, C_i, H_i, W_i)`, for images `(N, channels, H, W)` in [-1, 1]."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def pooled(self, x: Tensor) -> Tensor:
        """Return the mean over the last map, `(N, C)`."""
        return self.features(x)[-1].mean((2, 3))

    def classify(self, pooled: Tensor) -> Tensor:
        """Return logits `(N, num_classes)` for pooled features `(N, C)`."""
        return self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(N, num_classes)` for images `(N, channels, H, W)` in [-1, 1]."""
        return self.classify(self.pooled(x))


def _initialise(module: nn.Module) -> None:
    """N(0, 0.02) kernels, zero biases, as the official code draws them."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
