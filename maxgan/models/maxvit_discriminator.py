"""A discriminator of MaxViT blocks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from maxgan.config import MaxViTDiscriminatorConfig, check_gan_resolution
from maxgan.models.backbone import initialise
from maxgan.models.block import MaxViTBlock
from maxgan.models.discriminator import LAST_SIDE, Discriminator
from maxgan.models.stages import stage_depths, stage_widths, stage_windows
from maxgan.nn.activation import make_gelu
from maxgan.nn.mbconv import SameConv2d
from maxgan.nn.norm import LayerNorm2d

SECTION = "maxvit_discriminator"
FULL_WIDTH_SIDE = 16


class MaxViTDiscriminator(Discriminator):
    """A discriminator of MaxViT blocks: the paper's universal module (arXiv 2204.01697) taken at its word; ours.

    It is the backbone turned to one logit: a 3x3 convolution from RGB, stages of MaxViT blocks that each halve the map
    down to 4 px, then mean, LayerNorm, Linear, GELU and the logit. A stage's first block halves the map in its
    convolution, so C comes first in the order. One rule serves every resolution: two blocks a stage, `width` (256)
    channels where the map has at most 16 px, half of it with each doubling of the map, but never less than one head,
    and windows of 8, or the whole of a smaller map. At 128 px maps of 64, 32, 16, 8 and 4 px have 64, 128, 256, 256 and
    256 channels: 14.9M parameters.

    Every norm is LayerNorm, over the channels of a pixel: a logit depends on its own image alone, as R1 and R2 ask for.
    All layers are differentiable twice. Weights start at N(0, 0.02) as the backbone's: larger ones (Glorot) let it win
    before the generator has learned anything, and without norms it hardly learned (embedded digits, 150 updates).

    Args:
        resolution: side of the images, a power of two from 8 to 1024.
        channels: image channels, 1 to 4.
        num_classes: 0 for an unconditional model; for classes see Discriminator.
        config: settings; single fields can be given as keywords.

    Raises:
        ValueError: for sizes that don't fit, naming the setting.
    """

    config_class = MaxViTDiscriminatorConfig
    config: MaxViTDiscriminatorConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 0,
        config: MaxViTDiscriminatorConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)
        check_gan_resolution(resolution)
        config = self.config
        sides = [resolution >> i for i in range(1, (resolution // LAST_SIDE).bit_length())]
        rule = [config.width * FULL_WIDTH_SIDE // max(side, FULL_WIDTH_SIDE) for side in sides]
        widths = stage_widths(SECTION, rule, config.widths, config.head_dim)
        depths = stage_depths(SECTION, len(sides), config.depth, config.depths)
        windows = stage_windows(SECTION, sides, config.window_size, config.window_sizes)
        self.from_rgb = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(*(self._block(a if i == 0 else b, b, window, first=i == 0) for i in range(depth)))
                for (a, b), window, depth in zip(pairwise((widths[0], *widths)), windows, depths, strict=True)
            )
        )
        self.norm = LayerNorm2d(widths[-1])
        self.dense = nn.Linear(widths[-1], widths[-1])
        self.gelu = make_gelu("tanh")
        self.make_head(widths[-1])
        self.apply(initialise)
        for module in self.modules():
            if isinstance(module, SameConv2d):
                module.penalised = True

    def _block(self, inputs: int, outputs: int, window: int, first: bool) -> MaxViTBlock:
        config = self.config
        return MaxViTBlock(
            inputs,
            outputs,
            window,
            config.order,
            stride=2 if first else 1,
            head_dim=config.head_dim,
            conv_norm="layer",
            attention_norm="layer",
        )

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits `(N,)` for images `(N, channels, resolution, resolution)` in [-1, 1].

        Args:
            x: the images.
            labels: `(N,)` integers in [0, num_classes); needed exactly when the model has classes.

        Raises:
            ValueError: if images or labels don't fit the model.
        """
        self.check_input(x, labels)
        x = self.stages(self.from_rgb(x))
        pooled = self.norm(x.mean((2, 3), keepdim=True)).flatten(1)
        return self.judge(self.gelu(self.dense(pooled)), labels)
