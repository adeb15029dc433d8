"""The HiT generator, the baseline of the MaxViT-GAN."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.config import HiTConfig, check_gan_resolution
from maxgan.models.block import AttentionLayer
from maxgan.models.latent import TokenGenerator
from maxgan.nn.attention import FeedForward, to_map, to_tokens
from maxgan.nn.fuse import absorb
from maxgan.nn.multi_query import MultiAxisAttention, MultiQueryCrossAttention
from maxgan.nn.norm import make_norm
from maxgan.nn.resample import PixelShuffleUp

SECTION = "hit"
FIRST_SIDE = 8
SMALLEST = 32
# Every stage of the model of 1024 px; that of 256 px is its first six.
PUBLISHED = {
    "widths": (512, 512, 256, 128, 64, 64, 32, 32),
    "depths": (2, 2, 2, 2, 1, 1, 1, 1),
    "heads": (16, 8, 4, 4, 4, 4, 4, 4),
    "patch_sizes": (4, 4, 8, 8, 0, 0, 0, 0),
}
# The last stage at 128 px has the width and the depth of the one before.
LAST_AT_128 = {"widths": 128, "depths": 2}
# Keras' TruncatedNormal(stddev=0.02) draws nothing beyond two deviations.
WEIGHT_CUT = 0.04


class StagePlan(NamedTuple):
    """One resolution of the generator: side of its map, channels, layers, heads, and side of the patches (0: none)."""

    side: int
    width: int
    depth: int
    heads: int
    patch_size: int


def plan_stages(resolution: int, config: HiTConfig) -> list[StagePlan]:
    """Return the stages from 8 px to the resolution: as published, or as the settings give them.

    Raises:
        ValueError: if a setting has another length than there are stages, or values that don't fit.
    """
    count = (resolution // FIRST_SIDE).bit_length()
    columns = []
    for name, published in PUBLISHED.items():
        values = getattr(config, name)
        if values is None:
            values = published[:count]
            if resolution == 128 and name in LAST_AT_128:
                values = (*values[:-1], LAST_AT_128[name])
        if len(values) != count:
            raise ValueError(
                f"{SECTION}.{name} {values} has {len(values)} entries, but there are {count} stages at {resolution} px"
            )
        columns.append(values)
    stages = [StagePlan(FIRST_SIDE << i, *row) for i, row in enumerate(zip(*columns, strict=True))]
    for stage in stages:
        _check_stage(stage)
    return stages


def _check_stage(stage: StagePlan) -> None:
    side, width, depth, _, patch = stage
    if width < 1 or depth < 1:
        raise ValueError(
            f"{SECTION}.widths and {SECTION}.depths must be at least 1 in every stage, not {width}, {depth}"
        )
    # A patch of one pixel, or of the whole map, would leave half of the heads with nothing to attend to.
    if patch and (patch < 2 or side % patch or patch == side):
        raise ValueError(
            f"{SECTION}.patch_sizes {patch} does not fit the {side} x {side} map: use a power of two from 2 to "
            f"{side // 2}, or 0 for no attention"
        )


class MlpLayer(nn.Module):
    """A pre-norm feed-forward layer on maps `(N, C, H, W)`: x + ffn(norm(x)), with exact GELU."""

    def __init__(self, channels: int, norm: str, norm_group: int | None) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels, norm_group)
        self.ffn = FeedForward(channels, gelu="erf")

    def forward(self, x: Tensor) -> Tensor:
        return x + to_map(self.ffn(to_tokens(self.norm(x))))

    def fuse(self) -> None:
        """Fold the norm into the linear layer after it, where it is a BatchNorm."""
        self.norm, self.ffn[0] = absorb(self.norm, self.ffn[0])


class Stage(nn.Module):
    """One resolution: learned position, cross-attention to the latent tokens, attention or MLP layers.

    Args:
        plan: sizes.
        token_channels: width of the latent tokens.
        norm, norm_group: see make_norm.
    """

    def __init__(self, plan: StagePlan, token_channels: int, norm: str, norm_group: int | None) -> None:
        super().__init__()
        side, width, depth, heads, patch = plan
        self.position = nn.Parameter(torch.empty(1, width, side, side))
        nn.init.trunc_normal_(self.position, std=0.02, a=-WEIGHT_CUT, b=WEIGHT_CUT)
        self.cross_norm = make_norm(norm, width, norm_group)
        self.cross_attention = MultiQueryCrossAttention(width, token_channels, heads)
        self.cross_mlp = MlpLayer(width, norm, norm_group)
        self.blocks = nn.Sequential(
            *(
                AttentionLayer(width, MultiAxisAttention(width, heads, patch), norm, norm_group, gelu="erf")
                if patch
                else MlpLayer(width, norm, norm_group)
                for _ in range(depth)
            )
        )

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Map x `(N, C, H, W)` and tokens `(N, T, D)` to `(N, C, H, W)`."""
        x = x + self.position
        x = x + to_map(self.cross_attention(to_tokens(self.cross_norm(x)), tokens))
        return self.blocks(self.cross_mlp(x))

    def fuse(self) -> None:
        """Fold the norm into the queries, where it is a BatchNorm."""
        self.cross_norm, self.cross_attention.q = absorb(self.cross_norm, self.cross_attention.q)


class HiTGenerator(TokenGenerator):
    """HiT (arXiv 2106.07631), the transformer generator that the MaxViT paper compares with; equal to the official code
    (google-research/hit-gan).

    z is projected to a first map of 8 x 8, and to a few latent tokens. Every stage adds a learned position, attends to
    the tokens, and up to 64 px runs layers of multi-axis attention: half of the heads inside a patch, half across
    patches, all with one key and one value. Above, it runs MLPs alone, and adds a 1x1 projection to the image, which is
    upsampled (nearest) from stage to stage. A pixel shuffle doubles the map. BatchNorm, exact GELU; the output is not
    squashed. With classes, a learned class embedding joins z.

    Published are 128, 256 and 1024 px. Ours is the rule for other sizes: the stages of the 1024 px model up to the
    resolution, so at 32, 64 and 512 px its widths, depths, heads and patches, with attention up to 64 px and MLPs
    above; where no stage is MLPs alone, the last one makes the image. Ours too are the classes, and the draw of the
    learned positions, as that of kernels: a normal of deviation 0.02 truncated at two deviations.

    Args:
        resolution: side of the images, a power of two from 32 to 1024.
        channels: image channels, 1 to 4.
        num_classes: 0 for an unconditional model.
        config: settings; single fields can be given as keywords.

    Raises:
        ValueError: for sizes that don't fit, naming the setting.
    """

    section = SECTION
    config_class = HiTConfig
    config: HiTConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 0,
        config: HiTConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)
        check_gan_resolution(resolution)
        if resolution < SMALLEST:
            raise ValueError(f"HiT needs images of at least {SMALLEST} px, not {resolution}: set data.resolution")
        norm, group = self.config.norm, self.config.norm_group
        plans = plan_stages(resolution, self.config)
        first = plans[0].width
        self.add_latent_layers(first, FIRST_SIDE)
        self.stages = nn.ModuleList(Stage(plan, first, norm, group) for plan in plans)
        self.ups = nn.ModuleList(PixelShuffleUp(a.width, b.width) for a, b in pairwise(plans))
        self.to_rgb = nn.ModuleDict(
            {
                str(i): nn.Sequential(make_norm(norm, plan.width, group), nn.Conv2d(plan.width, channels, 1))
                for i, plan in enumerate(plans)
                if plan.patch_size == 0 or plan is plans[-1]
            }
        )
        self.draw_weights(WEIGHT_CUT)

    @classmethod
    def from_resolution(cls, resolution: int, channels: int = 3, num_classes: int = 0, **settings: Any) -> Self:
        """Return the published model of a resolution, or that of the class's rule, with random weights.

        z has 256 numbers up to 128 px and 512 above. There are 32,866,627 parameters at 128 px and 46,217,670 at 256
        px: those that Keras counts as trainable, all variables but BatchNorm's moving means and variances.

        Args:
            settings: fields of HiTConfig in place of the published.

        Raises:
            ValueError: as the constructor.
        """
        return cls(resolution, channels, num_classes, **{"latent_dim": 256 if resolution <= 128 else 512, **settings})

    def synthesise(self, w: Tensor) -> Tensor:
        """Return images `(N, channels, resolution, resolution)`, nominally in [-1, 1], of w."""
        x, tokens = self.embed(w)
        image: Tensor | None = None
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = self.ups[i - 1](x)
            x = stage(x, tokens)
            if image is not None:
                image = F.interpolate(image, scale_factor=2, mode="nearest")
            if str(i) in self.to_rgb:
                rgb = self.to_rgb[str(i)](x)
                image = rgb if image is None else image + rgb
        assert image is not None  # the last stage makes one
        return image
