"""Sizes and parts of the networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Norm = Literal["batch", "layer"]
GeluForm = Literal["tanh", "erf"]
Padding = Literal["same", "symmetric"]
Shortcut = Literal["pool2", "pool3"]
Normalization = Literal["half", "imagenet"]


@dataclass(frozen=True)
class GeneratorConfig:
    """The MaxViT-GAN generator."""

    latent_dim: int = 64
    """Size of the latent vector z."""
    base_resolution: int = 4
    """Side of the first feature map, a power of two from 4; each further stage doubles it."""
    width: int = 64
    """Channels of the first stages; the rule is: two stages of `width`, three of half of it, then one halving each two
    stages."""
    widths: tuple[int, ...] | None = None
    """Channels of every stage, in place of the rule; each a multiple of head_dim."""
    depth: int = 1
    """MaxViT blocks in every stage."""
    depths: tuple[int, ...] | None = None
    """MaxViT blocks of each stage, in place of `depth`."""
    window_size: int = 4
    """Side of the attention windows and grids, a power of two from 2; a stage with a smaller map takes its map."""
    window_sizes: tuple[int, ...] | None = None
    """Side of the windows and grids of each stage, in place of `window_size`; each divides its map."""
    head_dim: int = 16
    """Channels of one attention head."""
    order: str = "GA-BA-C"
    """Parts of a block in their order: C convolution (MBConv), BA block attention, GA grid attention."""
    orders: tuple[str, ...] | None = None
    """Order of the blocks of the last stages, those of the largest maps, in place of `order`; `C` alone leaves
    attention out there, so [C] at the resolution of the images."""
    conditioning: Literal["cross_attention", "modulation"] = "cross_attention"
    """How every stage sees the latent: its pixels attend to the latent tokens, or their mean scales and shifts the
    channels."""
    norm: Norm | Literal["none"] = "layer"
    """Normalisation: `batch` (ghost batches with norm_group), `layer`, or `none`, which needs zero_init."""
    zero_init: bool = False
    """Start every residual branch at zero, so that a stage begins as the identity."""
    norm_group: int | None = None
    """Images a batch statistic is taken over (ghost BatchNorm); unset: all that a process holds at once."""
    latent_tokens: int = 16
    """Number of latent tokens that every stage attends to."""
    positions: bool = False
    """Add a learned absolute position to the first map and at the start of every stage."""
    mapping_layers: int = 0
    """Layers of latent_dim from z, and the class, to a latent w that drives the stages in their place, as in StyleGAN;
    0 for none. Truncation is then towards the mean of w."""

    def __post_init__(self) -> None:
        _check_generator("generator", self)


@dataclass(frozen=True)
class ResidualGeneratorConfig:
    """The plain residual convolutional generator."""

    latent_dim: int = 64
    """Size of the latent vector z."""
    base_resolution: int = 4
    """Side of the first feature map, a power of two from 4; each further stage doubles it."""
    width: int = 128
    """Channels of the stages with maps of up to 16 px; the rule is: half of it with each doubling of the map, but never
    less than 8."""
    widths: tuple[int, ...] | None = None
    """Channels of every stage, in place of the rule."""
    depth: int = 1
    """Residual blocks in every stage, of two 3x3 convolutions each."""
    depths: tuple[int, ...] | None = None
    """Residual blocks of each stage, in place of `depth`."""
    upsampling: Literal["nearest", "bilinear"] = "nearest"
    """How the first block of a stage doubles the map."""
    conditioning: Literal["modulation", "input"] = "modulation"
    """What sees the latent: every block, whose channels it scales and shifts, beside the first map; or the first map
    alone."""
    norm: Norm | Literal["none"] = "layer"
    """Normalisation: `batch` (ghost batches with norm_group), `layer`, or `none`, which needs zero_init."""
    zero_init: bool = False
    """Start every residual branch at zero, so that a block begins as its shortcut."""
    norm_group: int | None = None
    """Images a batch statistic is taken over (ghost BatchNorm); unset: all that a process holds at once."""
    mapping_layers: int = 0
    """Layers of latent_dim from z, and the class, to a latent w that drives the blocks in their place, as in StyleGAN;
    0 for none. Truncation is then towards the mean of w."""

    def __post_init__(self) -> None:
        _check_generator("residual_generator", self)


def _check_generator(section: str, config: GeneratorConfig | ResidualGeneratorConfig) -> None:
    """Raise ValueError for settings of a generator that contradict each other."""
    if config.norm == "none" and not config.zero_init:
        raise ValueError(
            f"{section}.norm none needs {section}.zero_init true: each residual branch would else add its scale to a "
            "map that nothing brings back"
        )
    if config.mapping_layers < 0:
        raise ValueError(f"{section}.mapping_layers must be 0 or more, not {config.mapping_layers}")


@dataclass(frozen=True)
class HiTConfig:
    """The HiT generator; numbers of every stage go from the map of 8 px to the resolution."""

    latent_dim: int = 256
    """Size of the latent vector z; published are 256 at 128 px and 512 at 256 and 1024 px."""
    latent_tokens: int = 16
    """Number of latent tokens that every stage attends to."""
    widths: tuple[int, ...] | None = None
    """Channels of every stage, each a multiple of its heads; unset: as published, at 1024 px (512, 512, 256, 128, 64,
    64, 32, 32)."""
    depths: tuple[int, ...] | None = None
    """Attention or MLP layers of every stage; unset: as published, 2 up to 64 px."""
    heads: tuple[int, ...] | None = None
    """Attention heads of every stage, even where there are patches; unset: as published, (16, 8, 4, 4) and 4 above."""
    patch_sizes: tuple[int, ...] | None = None
    """Side of the patches of every stage's self-attention, or 0 for MLPs in its place; unset: as published, (4, 4, 8,
    8) up to 64 px and 0 above."""
    norm: Norm = "batch"
    """Normalisation: `batch` (ghost batches with norm_group) or `layer`."""
    norm_group: int | None = None
    """Images a batch statistic is taken over (ghost BatchNorm); unset: all that a process holds at once."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The residual discriminator of StyleGAN2, as HiT uses it."""

    channel_multiplier: float = 1.0
    """Channels at resolution r are channel_multiplier * 16384 / r, at most max_width and at least 8."""
    max_width: int = 512
    """The most channels of a layer."""
    equalized_lr: bool = False
    """Keep weights at deviation 1 and scale them where they are used, so that Adam moves all layers at one pace, with
    StyleGAN2's gain of sqrt 2 after each activation."""
    minibatch_deviation: bool = False
    """Show the last layers how much the images of a group differ: variety is seen, but a logit then depends on other
    images than its own."""
    minibatch_group: int = 4
    """Images of such a group, which follow each other in the batch; it must divide the images a process holds at
    once."""

    def __post_init__(self) -> None:
        if self.channel_multiplier <= 0 or self.max_width < 8:
            raise ValueError(
                "discriminator.channel_multiplier must be above 0 and discriminator.max_width at least 8, not "
                f"{self.channel_multiplier} and {self.max_width}"
            )
        if self.minibatch_group < 2:
            raise ValueError(
                f"discriminator.minibatch_group must be at least 2, not {self.minibatch_group}: one image has no "
                "deviation"
            )


@dataclass(frozen=True)
class MaxViTDiscriminatorConfig:
    """The discriminator of MaxViT blocks."""

    width: int = 256
    """Channels of the stages with maps of up to 16 px; the rule is: half of it with each doubling of the map, but never
    less than one head."""
    widths: tuple[int, ...] | None = None
    """Channels of every stage, from the largest map to that of 4 px, in place of the rule; each a multiple of
    head_dim."""
    depth: int = 2
    """MaxViT blocks in every stage."""
    depths: tuple[int, ...] | None = None
    """MaxViT blocks of each stage, in place of `depth`."""
    window_size: int = 8
    """Side of the attention windows and grids, a power of two from 2; a stage with a smaller map takes its map."""
    window_sizes: tuple[int, ...] | None = None
    """Side of the windows and grids of each stage, in place of `window_size`; each divides its map."""
    head_dim: int = 32
    """Channels of one attention head."""
    order: str = "C-BA-GA"
    """Parts of a block in their order: C convolution (MBConv), BA block attention, GA grid attention; C comes first,
    as it halves the map."""


@dataclass(frozen=True)
class NetworksConfig:
    """Which networks are trained against each other; each has a section of its own."""

    generator: Literal["maxvit", "hit", "residual"] = "maxvit"
    """`maxvit`, set in `generator`; or what it is compared with: `hit`, set in `hit`, from 32 px, or `residual`, of
    plain convolutions, set in `residual_generator`."""
    discriminator: Literal["residual", "maxvit"] = "residual"
    """`residual`, StyleGAN2's, set in `discriminator`, or `maxvit`, set in `maxvit_discriminator`."""


@dataclass(frozen=True)
class BackboneConfig:
    """The MaxViT classification backbone."""

    stem_width: int = 32
    """Channels of the stem."""
    stem_stride: int = 1
    """Stride of the stem's first convolution: 2 as in the paper, 1 for images of 32 px and below."""
    widths: tuple[int, ...] = (32, 64)
    """Channels of every stage; each stage halves the map."""
    depths: tuple[int, ...] = (1, 1)
    """MaxViT blocks of every stage."""
    window_size: int | None = 4
    """Side of the attention windows and grids, at least 2; unset: resolution / 32, as in the paper."""
    head_dim: int = 16
    """Channels of one attention head; 32 in the paper."""
    order: str = "C-BA-GA"
    """Parts of a block in their order: C convolution (MBConv), BA block attention, GA grid attention."""
    drop_path: float = 0.0
    """Stochastic depth, in [0, 1): block i of n, counted from 0, drops each of its branches at drop_path * i / n."""
    gelu: GeluForm = "tanh"
    """Form of GELU: tanh approximation as in the official code, or exact (`erf`) as in torchvision's."""
    padding: Padding = "same"
    """Zeros around maps that a 3x3 convolution halves: `same`, none before and one after as in TensorFlow, or
    `symmetric`, one on each side as in torchvision."""
    shortcut: Shortcut = "pool2"
    """Shortcut of a halving block: mean over 2x2, then a 1x1 convolution where the width changes; or `pool3`, mean over
    3x3 at stride 2, then always a 1x1 convolution, as in torchvision."""
    normalization: Normalization = "half"
    """What the weights take of images in [0, 1]: mean and deviation of 0.5 removed (`half`, so [-1, 1]), or ImageNet's
    (`imagenet`, RGB alone), as for torchvision's weights. The network's input is [-1, 1] in any case."""
    checkpointing: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: less memory, a third more time."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("gelu", GeluForm),
            ("padding", Padding),
            ("shortcut", Shortcut),
            ("normalization", Normalization),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"backbone.{name} must be {' or '.join(get_args(choices))}, not {getattr(self, name)!r}"
                )
        if len(self.widths) != len(self.depths):
            raise ValueError(
                f"backbone.widths {self.widths} and backbone.depths {self.depths} must have the same length"
            )
        if self.stem_stride not in (1, 2):
            raise ValueError(f"backbone.stem_stride must be 1 or 2, not {self.stem_stride}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"backbone.drop_path must be in [0, 1), not {self.drop_path}")
