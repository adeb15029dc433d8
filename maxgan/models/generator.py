"""The MaxViT-GAN generator."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from maxgan.config import GeneratorConfig, check_gan_resolution
from maxgan.models.block import AttentionLayer, MaxViTBlock
from maxgan.models.latent import TokenGenerator
from maxgan.models.stages import stage_depths, stage_orders, stage_sides, stage_widths, stage_windows
from maxgan.nn.attention import CrossAttention, to_map, to_tokens
from maxgan.nn.fuse import absorb
from maxgan.nn.mbconv import MBConv
from maxgan.nn.modulation import Modulation
from maxgan.nn.norm import make_norm
from maxgan.nn.resample import PixelShuffleUp

# The generator of the paper's 128 px model, and of its family at other resolutions.
PAPER = GeneratorConfig(
    latent_dim=256, base_resolution=8, width=256, depth=2, window_size=8, head_dim=32, norm="batch", norm_group=8
)


def generator_widths(config: GeneratorConfig, stages: int) -> tuple[int, ...]:
    """Return the channels of each of `stages` stages, at most nine.

    The rule: two stages of `width`, three of width / 2, then one halving each two stages, but never less than one
    head. With width 256 and a first map of 8 it gives (256, 256, 128, 128, 128) at 128 px, the 18.6M parameters of the
    paper.

    Raises:
        ValueError: if `widths` has another length, or a width is no multiple of head_dim.
    """
    halvings = (0, 0, 1, 1, 1, 2, 2, 3, 3)[:stages]
    return stage_widths("generator", [config.width >> n for n in halvings], config.widths, config.head_dim)


class Stage(nn.Module):
    """One resolution of the generator: position (option), the latent tokens, MaxViT blocks.

    Args:
        channels: width C.
        token_channels: width of the latent tokens.
        side: side of the map in pixels.
        window: side of the attention windows and grids.
        depth: number of MaxViT blocks.
        order: of their parts.
        config: the generator's settings.

    Attributes:
        cross_attention: how the map sees the tokens; the modulation, if that is asked for.
    """

    def __init__(
        self,
        channels: int,
        token_channels: int,
        side: int,
        window: int,
        depth: int,
        order: str,
        config: GeneratorConfig,
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, channels, side, side)) if config.positions else None
        self.cross_norm = make_norm(config.norm, channels, config.norm_group)
        self.cross_attention = (
            CrossAttention(channels, token_channels, config.head_dim)
            if config.conditioning == "cross_attention"
            else Modulation(channels, token_channels)
        )
        self.blocks = nn.Sequential(
            *(
                MaxViTBlock(
                    channels,
                    channels,
                    window,
                    order,
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

    def fuse(self) -> None:
        """Fold the norm into the queries, where it is a BatchNorm."""
        if isinstance(self.cross_attention, CrossAttention):
            self.cross_norm, self.cross_attention.q = absorb(self.cross_norm, self.cross_attention.q)


class MaxViTGenerator(TokenGenerator):
    """A GAN generator of MaxViT blocks (MaxViT, arXiv 2204.01697, section 4.4 and appendix A.4).

    z is projected to a first map, and to a few latent tokens. Every stage attends to the tokens (HiT's self-modulation,
    arXiv 2106.07631), runs MaxViT blocks from global to local (grid attention, block attention, convolution) and ends
    in a pixel shuffle that doubles the map; attention runs at every resolution. The output is not squashed. With
    classes, a learned class embedding joins z. `mapping_layers`, ours, puts StyleGAN's mapping before all of it.

    The defaults are a small model for the embedded digits; `from_resolution` gives the paper's.

    The paper prints 18.6M parameters at 128 px, a first map of 8, the order of the parts and BatchNorm in place of
    LayerNorm. It leaves open, and we decided:

    - widths and number of blocks: the rule of `generator_widths`, with two blocks a stage, meets the printed 18.6M;
    - z of 256 and 16 latent tokens with a learned position, HiT's at 128 px; heads of 32, the backbone's;
    - windows and grids of 8, the whole of the first map, at every resolution (7 in the backbone divides no power of
      two);
    - cross-attention of several heads with a norm before it and without an MLP; no absolute positions (`positions`
      adds them), as the paper calls the model free of them;
    - BatchNorm over groups of 8 images, the share of one TPU core in HiT's training;
    - norm followed by a 1x1 convolution as the step to RGB, as in HiT.

    Another reading that prints as 18.6M has widths (256, 256, 128, 128, 64) and HiT's cross-attention, which shares
    keys and values among its heads and has an MLP: 18.66M, and 14 G multiply-adds an image in place of 26 G. We took
    the plainer one; these widths in it (`widths`) give 17.65M and 12.5 G.

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
        sides = stage_sides("generator", config.base_resolution, resolution)
        widths = generator_widths(config, len(sides))
        depths = stage_depths("generator", len(sides), config.depth, config.depths)
        windows = stage_windows("generator", sides, config.window_size, config.window_sizes)
        orders = stage_orders("generator", len(sides), config.order, config.orders)
        self.add_latent_layers(widths[0], sides[0], config.mapping_layers)
        self.stages = nn.ModuleList(
            Stage(width, widths[0], side, window, depth, order, config)
            for width, side, window, depth, order in zip(widths, sides, windows, depths, orders, strict=True)
        )
        self.ups = nn.ModuleList(PixelShuffleUp(a, b) for a, b in pairwise(widths))
        self.out_norm = make_norm(config.norm, widths[-1], config.norm_group)
        self.out = nn.Conv2d(widths[-1], channels, 1)
        self.draw_weights()
        if config.zero_init:
            self.start_at_identity()

    def start_at_identity(self) -> None:
        """Set the last layer of every residual branch to zero."""
        for module in self.modules():
            branches: tuple[Any, ...] = ()
            if isinstance(module, Stage):
                branches = (module.cross_attention.out,)
            elif isinstance(module, MBConv):
                branches = (module.project,)
            elif isinstance(module, AttentionLayer):
                branches = (module.attention.out, module.ffn[2])
            for last in branches:
                nn.init.zeros_(last.weight)

    @classmethod
    def from_resolution(cls, resolution: int, channels: int = 3, num_classes: int = 0, **settings: Any) -> Self:
        """Return the paper's generator at 128 px, and that of its family at another resolution, with random weights.

        One rule for all: stages from 8 px to the resolution, widths by `generator_widths` from 256 (256, 256, 128, 128,
        128 up to 128 px, then 64, 64, 32 up to 1024 px), two blocks a stage, windows of 8, z of 256, BatchNorm over
        groups of 8 images. At 128 px with three channels and no classes there are 18,559,795 parameters in both orders
        of Table 8, `GA-BA-C` and `C-BA-GA`.

        Args:
            settings: fields of GeneratorConfig in place of the family's, such as `widths`, `depths`, `window_sizes`.

        Raises:
            ValueError: as the constructor.
        """
        if settings.get("norm", "batch") != "batch":
            settings = {"norm_group": None, **settings}  # groups are those of BatchNorm
        return cls(resolution, channels, num_classes, PAPER, **settings)

    def synthesise(self, w: Tensor) -> Tensor:
        """Return images `(N, channels, resolution, resolution)`, nominally in [-1, 1], of w."""
        x, tokens = self.embed(w)
        for i, stage in enumerate(self.stages):
            x = stage(x, tokens)
            if i < len(self.ups):
                x = self.ups[i](x)
        return self.out(self.out_norm(x))
