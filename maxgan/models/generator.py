"""The MaxViT-GAN generator."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from maxgan.config import GeneratorConfig, check_gan_resolution
from maxgan.models.block import MaxViTBlock
from maxgan.models.latent import LatentGenerator
from maxgan.nn.attention import CrossAttention, to_map, to_tokens
from maxgan.nn.norm import make_norm
from maxgan.nn.resample import PixelShuffleUp


def stage_widths(config: GeneratorConfig, stages: int) -> tuple[int, ...]:
    """Return the channels of each of `stages` stages, at most nine.

    The rule: two stages of `width`, three of width / 2, then one halving each two stages, but never less than one
    head. With width 256 and a first map of 8 it gives (256, 256, 128, 128, 128) at 128 px, the 18.6M parameters of the
    paper.

    Raises:
        ValueError: if `widths` has another length, or a width is no multiple of head_dim.
    """
    if config.head_dim < 1:
        raise ValueError(f"generator.head_dim must be at least 1, not {config.head_dim}")
    if config.widths is None:
        halvings = (0, 0, 1, 1, 1, 2, 2, 3, 3)
        setting = "generator.width"
        widths = tuple(max(config.width >> halvings[i], config.head_dim) for i in range(stages))
    else:
        setting, widths = "generator.widths", config.widths
    if len(widths) != stages:
        raise ValueError(f"{setting} {widths} has {len(widths)} entries, but there are {stages} stages")
    if any(width < 1 or width % config.head_dim for width in widths):
        raise ValueError(
            f"the stages' widths {widths} must be multiples of generator.head_dim {config.head_dim}: "
            f"change {setting} or generator.head_dim"
        )
    return widths


def stage_windows(config: GeneratorConfig, sides: Sequence[int]) -> tuple[int, ...]:
    """Return the side of the windows on maps of each of `sides`: window_size, or the whole of a smaller map.

    Raises:
        ValueError: for a window_size below 2, or one that does not divide a map.
    """
    window = config.window_size
    for side in sides:
        if window < 2 or (side > window and side % window):
            raise ValueError(
                f"generator.window_size {window} does not fit the {side} x {side} map: use a power of two of at least 2"
            )
    return tuple(min(window, side) for side in sides)


def stage_depths(config: GeneratorConfig, stages: int) -> tuple[int, ...]:
    """Return the number of MaxViT blocks of each of `stages` stages; ValueError if `depths` has another length."""
    depths = config.depths if config.depths is not None else (config.depth,) * stages
    if len(depths) != stages:
        raise ValueError(f"generator.depths {depths} has {len(depths)} entries, but there are {stages} stages")
    if min(depths) < 1:
        raise ValueError(f"generator.depths must be at least 1 in every stage, not {depths}")
    return depths


class Stage(nn.Module):
    """One resolution of the generator: position (option), cross-attention to the latent tokens, MaxViT blocks.

    Args:
        channels: width C.
        token_channels: width of the latent tokens.
        side: side of the map in pixels.
        window: side of the attention windows and grids.
        depth: number of MaxViT blocks.
        config: the generator's settings.
    """

    def __init__(
        self, channels: int, token_channels: int, side: int, window: int, depth: int, config: GeneratorConfig
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, channels, side, side)) if config.positions else None
        self.cross_norm = make_norm(config.norm, channels, config.norm_group)
        self.cross_attention = CrossAttention(channels, token_channels, config.head_dim)
        self.blocks = nn.Sequential(
            *(
                MaxViTBlock(
                    channels,
                    channels,
                    window,
                    config.order,
                    head_dim=config.head_dim,
                    conv_norm=config.norm,
                    attention_norm=config.norm,
                    norm_group=config.norm_group,
                )
                for _ in range(depth)
            )
        )

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Map x `(N, C, H, W)` and tokens `(N, T, D)` to `(N, C, H, W)`."""
        if self.position is not None:
            x = x + self.position
        x = x + to_map(self.cross_attention(to_tokens(self.cross_norm(x)), tokens))
        return self.blocks(x)


class MaxViTGenerator(LatentGenerator):
    """A GAN generator of MaxViT blocks (MaxViT, arXiv 2204.01697, section 4.4 and appendix A.4).

    z is projected to a first map, and to a few latent tokens. Every stage attends to the tokens (HiT's self-modulation,
    arXiv 2106.07631), runs MaxViT blocks from global to local (grid attention, block attention, convolution) and ends
    in a pixel shuffle that doubles the map; attention runs at every resolution. The output is not squashed. With
    classes, a learned class embedding joins z.

    The paper leaves open, and we decided: widths and number of blocks (the rule of `stage_widths`, which meets the
    printed 18.6M parameters at 128 px with two blocks a stage, z of 256, heads of 32 and a first map of 8),
    cross-attention with a norm before it and without an MLP, a learned position on the latent tokens, and norm followed
    by a 1x1 convolution as the step to RGB, as in HiT.

    Args:
        resolution: side of the images, a power of two from 8 to 1024.
        channels: image channels, 1 to 4.
        num_classes: 0 for an unconditional model.
        config: settings; single fields can be given as keywords.

    Raises:
        ValueError: for sizes that don't fit, naming the setting.
    """

    config_class = GeneratorConfig
    config: GeneratorConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 0,
        config: GeneratorConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)
        check_gan_resolution(resolution)
        config = self.config
        base = config.base_resolution
        if base < 4 or base & (base - 1) or base > resolution:
            raise ValueError(
                f"generator.base_resolution must be a power of two from 4 to the resolution {resolution}, not {base}"
            )
        sides = [base << i for i in range((resolution // base).bit_length())]
        widths = stage_widths(config, len(sides))
        depths = stage_depths(config, len(sides))
        self.add_latent_layers(widths[0], base)
        self.stages = nn.ModuleList(
            Stage(width, widths[0], side, window, depth, config)
            for width, side, window, depth in zip(widths, sides, stage_windows(config, sides), depths, strict=True)
        )
        self.ups = nn.ModuleList(PixelShuffleUp(a, b) for a, b in pairwise(widths))
        self.out_norm = make_norm(config.norm, widths[-1], config.norm_group)
        self.out = nn.Conv2d(widths[-1], channels, 1)
        self.draw_weights()

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return images `(N, channels, resolution, resolution)`, nominally in [-1, 1].

        Args:
            z: `(N, latent_dim)`, standard normal.
            labels: `(N,)` integers in [0, num_classes); needed exactly when the model has classes.

        Raises:
            ValueError: if labels and model don't agree.
        """
        x, tokens = self.embed(z, labels)
        for i, stage in enumerate(self.stages):
            x = stage(x, tokens)
            if i < len(self.ups):
                x = self.ups[i](x)
        return self.out(self.out_norm(x))
