"""The plain residual convolutional generator, to which generators of MaxViT blocks are compared."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.config import ResidualGeneratorConfig, check_gan_resolution
from maxgan.models.latent import LatentGenerator
from maxgan.models.stages import stage_depths, stage_sides, stage_widths
from maxgan.nn.activation import SLOPE
from maxgan.nn.attention import to_map, to_tokens
from maxgan.nn.fuse import fold_after
from maxgan.nn.modulation import Modulation
from maxgan.nn.norm import make_norm

SECTION = "residual_generator"
FULL_WIDTH_SIDE, LEAST_WIDTH = 16, 8


class UpBlock(nn.Module):
    """[norm, modulation, leaky, upsampling, 3x3, norm, modulation, leaky, 3x3] + [1x1, upsampling].

    The upsampling of the shortcut follows its 1x1 convolution, with which it commutes, at a quarter of the cost.

    Args:
        inputs: input channels.
        outputs: output channels.
        upsampling: how the map is doubled; None where it keeps its side.
        latent: numbers of w; None where the block doesn't see it.
        config: the generator's settings.
    """

    def __init__(
        self, inputs: int, outputs: int, upsampling: str | None, latent: int | None, config: ResidualGeneratorConfig
    ) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.norm1 = make_norm(config.norm, inputs, config.norm_group)
        self.modulation1 = Modulation(inputs, latent) if latent else None
        # A norm that follows takes the place of a bias.
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=config.norm == "none")
        self.norm2 = make_norm(config.norm, outputs, config.norm_group)
        self.modulation2 = Modulation(outputs, latent) if latent else None
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x `(N, inputs, H, W)` and w `(N, latent)` to `(N, outputs, H, W)`, or of twice the sides."""
        y = F.leaky_relu(modulate(self.norm1(x), self.modulation1, w), SLOPE)
        y = self.conv1(self._up(y))
        y = F.leaky_relu(modulate(self.norm2(y), self.modulation2, w), SLOPE)
        return self._up(self.shortcut(x)) + self.conv2(y)

    def _up(self, x: Tensor) -> Tensor:
        return x if self.upsampling is None else F.interpolate(x, scale_factor=2, mode=self.upsampling)

    def fuse(self) -> None:
        """Fold the second norm into the convolution before it, where it is a BatchNorm."""
        if isinstance(self.norm2, nn.BatchNorm2d):
            self.conv1 = fold_after(self.conv1, self.norm2)
            self.norm2 = nn.Identity()


def modulate(x: Tensor, modulation: Modulation | None, w: Tensor) -> Tensor:
    """Return x `(N, C, H, W)` with each channel scaled by 1 + a and shifted by b, both linear in w."""
    return x if modulation is None else x + to_map(modulation(to_tokens(x), w[:, None]))


class Stage(nn.Module):
    """One resolution of the generator: residual blocks, of which the first doubles the map in all stages but the first.

    Args:
        inputs: channels of the stage before; in the first stage its own.
        outputs: channels.
        depth: number of blocks.
        upsampling: see UpBlock.
        latent: see UpBlock.
        config: the generator's settings.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        depth: int,
        upsampling: str | None,
        latent: int | None,
        config: ResidualGeneratorConfig,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            UpBlock(outputs if i else inputs, outputs, None if i else upsampling, latent, config) for i in range(depth)
        )

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x `(N, inputs, H, W)` and w `(N, latent)` to `(N, outputs, H, W)`, or of twice the sides."""
        for block in self.blocks:
            x = block(x, w)
        return x


class ResidualGenerator(LatentGenerator):
    """A plain residual convolutional generator: what MaxViT generators are compared with at equal parameter count.

    z is projected to a first map; pre-activation residual blocks of two 3x3 convolutions double it up to the
    resolution; norm, leaky ReLU and a 3x3 convolution make the image, which is not squashed. In every block the latent
    scales and shifts the channels behind each norm. Of the family of SNGAN (arXiv 1802.05957) and BigGAN (arXiv
    1809.11096); without norms and with zero_init, of R3GAN (arXiv 2501.05441), which has grouped convolutions. With
    classes, a learned class embedding joins z.

    As in the MaxViT generator, and unlike in SNGAN, there are blocks at the side of the first map too.

    Args:
        resolution: side of the images, a power of two from 8 to 1024.
        channels: image channels, 1 to 4.
        num_classes: 0 for an unconditional model.
        config: settings; single fields can be given as keywords.

    Raises:
        ValueError: for sizes that don't fit, naming the setting.
    """

    section = SECTION
    config_class = ResidualGeneratorConfig
    config: ResidualGeneratorConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 0,
        config: ResidualGeneratorConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)
        check_gan_resolution(resolution)
        config = self.config
        sides = stage_sides(SECTION, config.base_resolution, resolution)
        rule = [max(config.width * FULL_WIDTH_SIDE // max(side, FULL_WIDTH_SIDE), LEAST_WIDTH) for side in sides]
        widths = stage_widths(SECTION, rule, config.widths)
        depths = stage_depths(SECTION, len(sides), config.depth, config.depths)
        latent = self.add_latent_layers(widths[0], sides[0], config.mapping_layers)
        seen = latent if config.conditioning == "modulation" else None
        self.stages = nn.ModuleList(
            Stage(inputs, outputs, depth, config.upsampling if i else None, seen, config)
            for i, ((inputs, outputs), depth) in enumerate(zip(pairwise((widths[0], *widths)), depths, strict=True))
        )
        self.out_norm = make_norm(config.norm, widths[-1], config.norm_group)
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.draw_weights()
        if config.zero_init:
            for module in self.modules():
                if isinstance(module, UpBlock):
                    nn.init.zeros_(module.conv2.weight)

    def synthesise(self, w: Tensor) -> Tensor:
        """Return images `(N, channels, resolution, resolution)`, nominally in [-1, 1], of w."""
        x = self.first(w)
        for stage in self.stages:
            x = stage(x, w)
        return self.out(F.leaky_relu(self.out_norm(x), SLOPE))
