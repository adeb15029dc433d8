"""Every setting of maxgan, with its default and its meaning: the only place where defaults live.

One frozen dataclass a concern. Nothing here imports torch, so reading a config costs milliseconds. The text under
each field is what `--help` prints.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Norm = Literal["batch", "layer"]
LossName = Literal["non_saturating", "hinge", "relativistic"]
# Parts of DiffAugment (arXiv 2006.10738), by its names.
AUGMENTATIONS = ("color", "translation", "cutout")
# Parts of ADA (arXiv 2006.06676), by the names of its code.
ADA = (
    "xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac", "brightness", "contrast", "lumaflip", "hue",
    "saturation",
)  # fmt: skip
GeluForm = Literal["tanh", "erf"]
Padding = Literal["same", "symmetric"]
Shortcut = Literal["pool2", "pool3"]
Normalization = Literal["half", "imagenet"]
Metric = Literal[
    "frechet",
    "spatial_frechet",
    "half_split",
    "inception_score",
    "kernel",
    "precision_recall",
    "density_coverage",
    "class_frechet",
    "accuracy",
]


@dataclass(frozen=True)
class Schedule:
    """A setting that changes with the images seen, from `start` to `end`, and then stays there."""

    start: float
    """Its value at the first image."""
    end: float
    """Its value after `over` images."""
    over: int | None = None
    """Images that the change takes; unset: training.images."""
    shape: Literal["cosine", "linear"] = "cosine"
    """`cosine`, half a period, flat at both ends; or `linear`."""

    def __post_init__(self) -> None:
        if self.over is not None and self.over < 1:
            raise ValueError(f"over, the images that a schedule takes, must be at least 1, not {self.over}")


Scheduled = float | Schedule
"""A number, or {start: ..., end: ...} with the fields of `Schedule`."""
Gamma = float | Literal["auto"] | Schedule


def values_of(setting: Scheduled) -> tuple[float, ...]:
    """Return both ends of a schedule, or the one value of a setting that stays: what a range can be checked by."""
    return (setting.start, setting.end) if isinstance(setting, Schedule) else (setting,)


@dataclass(frozen=True)
class ImageFacts:
    """What a network must know of its images; found in the data, never set by hand."""

    resolution: int
    """Side of the square images in pixels."""
    channels: int = 3
    """Number of image channels: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha."""
    num_classes: int = 0
    """Number of classes; 0 means that there are no labels."""

    def __post_init__(self) -> None:
        if self.resolution < 8:
            raise ValueError(f"images must have at least 8 x 8 pixels, not {self.resolution}: set data.resolution")
        if not 1 <= self.channels <= 4:
            raise ValueError(f"images must have 1 to 4 channels, not {self.channels}: set data.channels")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, not {self.num_classes}")


def check_gan_resolution(resolution: int) -> None:
    """Raise ValueError unless a generator and a discriminator can have this resolution."""
    if not 8 <= resolution <= 1024 or resolution & (resolution - 1):
        raise ValueError(
            f"the resolution of a GAN must be a power of two from 8 to 1024, not {resolution}: set data.resolution"
        )


@dataclass(frozen=True)
class DataConfig:
    """Where the images come from and how they are cut to size."""

    source: str = "digits-train"
    """`digits`, `digits-train`, `digits-test` (embedded); a folder or zip of images; an .npz; tar shards or parquet
    files as a folder or a pattern such as `train-{000..099}.tar`; or `hf:OWNER/NAME[@CONFIG][:SPLIT]`."""
    resolution: int | None = None
    """Side in pixels, for a GAN a power of two from 8 to 1024; unset: that of the images, if all are square and of one
    size, which reads all headers at the start."""
    channels: int | None = None
    """1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; unset: those of the first image."""
    labels: bool = True
    """Use the labels, if the source has any (dataset.json, class folders, .cls files, an array or a column); off
    trains without classes."""
    crop: Literal["center", "random", "resized", "whole"] = "center"
    """What is kept of the image: a central or random square; `resized`, a random rectangle of 8 to 100 % of its area
    (the Inception crop), and central in evaluation; or the `whole` of it, its sides made equal."""
    crop_fraction: float = 1.0
    """Side of a central or random square as a fraction of the shorter side, in (0, 1]."""
    flip: bool = False
    """Mirror images left to right at random."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a file that can't be read: stop and name it, or leave it out and say so, which reads every file
    at the start."""
    workers: int = 0
    """Decoding processes beside each training process; 0 decodes in it. Sets that fit in memory are decoded once, by as
    many threads."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"data.crop_fraction must be in (0, 1], not {self.crop_fraction}")
        if self.workers < 0:
            raise ValueError(f"data.workers must be 0 or more, not {self.workers}")


@dataclass(frozen=True)
class PackConfig:
    """Decode, cut and resize images once: `python -m maxgan.data pack SOURCE DEST --resolution 128`.

    The same command again goes on where one was stopped.
    """

    source: str
    """The images, as data.source names them."""
    dest: str
    """A file that ends in .zip (StyleGAN's layout), or a folder of tar shards (WebDataset's)."""
    resolution: int
    """Side in pixels."""
    channels: int | None = None
    """1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; unset: those of the first image."""
    crop: Literal["center", "whole"] = "center"
    """Keep a central square, or the `whole` image, its sides made equal."""
    crop_fraction: float = 1.0
    """Side of a central square as a fraction of the shorter side, in (0, 1]."""
    labels: bool = True
    """Keep the labels, if the source has any."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do with a file that can't be read: stop and name it, or leave it out and report it."""
    compression: int = 0
    """Of the PNGs, 0 to 9: 0 decodes in less than half of the time, 1 takes about half of the space."""
    shard_images: int = 2048
    """Images in a tar shard, and in each of the parts that a pack is made of and a killed one keeps."""
    workers: int | None = None
    """Decoding processes; unset: one for each core."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("resolution", 8, 1 << 14),
            ("channels", 1, 4),
            ("compression", 0, 9),
            ("shard_images", 1, 1 << 20),
            ("workers", 0, 1 << 10),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most}, not {value}")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction must be in (0, 1], not {self.crop_fraction}")


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
    """Order of the blocks of each stage, in place of `order`; `C` alone leaves attention out at a resolution."""
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

    def __post_init__(self) -> None:
        if self.norm == "none" and not self.zero_init:
            raise ValueError(
                "generator.norm none needs generator.zero_init true: each residual branch would else add its scale to "
                "a map that nothing brings back"
            )


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


@dataclass(frozen=True)
class LossConfig:
    """Loss and penalties of the GAN."""

    name: LossName = "relativistic"
    """`non_saturating`, the classic of HiT and StyleGAN2, `hinge`, that of SAGAN and BigGAN, or `relativistic`, which
    compares pairs of reals and fakes (R3GAN)."""
    r1_gamma: Gamma = 0.5
    """Weight of R1, or its schedule: the loss gains (r1_gamma / 2) * E|gradient of D at real images|^2; 0 leaves it
    out; `auto` takes StyleGAN2-ADA's rule, 0.0002 * resolution^2 / training.batch_size, a first guess for
    photographs."""
    r2_gamma: Gamma = 0.0
    """Weight of R2, or its schedule, the same at generated images; 0 leaves it out."""
    penalty_interval: int = 1
    """Updates from one with penalties to the next; above 1 (lazy penalties) their weights are multiplied by it, and
    D's learning rate and betas are adapted."""
    penalty: Literal["gradient", "finite_difference"] = "gradient"
    """How R1 and R2 are computed: `gradient`, exactly, through a second derivative of D; or `finite_difference`, from
    first derivatives alone, along one random direction for each image and update, equal in the mean."""
    penalty_step: float = 0.1
    """Step of the finite difference, the root mean square of the change of a pixel (which are in [-1, 1]). Smaller is
    nearer to the gradient in float32; in bf16, rounding makes the penalty up to ten times too large at 0.01."""
    bcr_real: float = 0.0
    """Weight of balanced consistency regularisation (bCR): the loss of D gains bcr_real * E(D(T(x)) - D(x))^2 over real
    images x and their random augmentations T(x); 0 leaves it out."""
    bcr_fake: float = 0.0
    """Weight of the same over generated images; 0 leaves it out."""
    bcr_augment: str = "color,translation,cutout"
    """The augmentations T of bCR, in their order, those of DiffAugment: `color`, `translation`, `cutout`."""

    def __post_init__(self) -> None:
        gammas = [gamma for gamma in (self.r1_gamma, self.r2_gamma) if gamma != "auto"]
        if not all(value >= 0 for gamma in gammas for value in values_of(gamma)):
            raise ValueError(
                f"loss.r1_gamma and loss.r2_gamma must be 0 or more, or auto, not {self.r1_gamma}, {self.r2_gamma}"
            )
        if not (self.bcr_real >= 0 and self.bcr_fake >= 0):
            raise ValueError(f"loss.bcr_real and loss.bcr_fake must be 0 or more, not {self.bcr_real}, {self.bcr_fake}")
        _check_policy("loss.bcr_augment", self.bcr_augment, AUGMENTATIONS)
        if self.penalty_interval < 1:
            raise ValueError(f"loss.penalty_interval must be at least 1, not {self.penalty_interval}")
        if not self.penalty_step > 0:
            raise ValueError(f"loss.penalty_step must be above 0, not {self.penalty_step}: take 0.1")


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation T of all that the discriminator sees in training: D(x) is D(T(x)) in both losses, in the penalties,
    whose gradient is taken by x, before T, and in bCR. One T is drawn for each image and update of a network."""

    policy: str | None = None
    """What T is made of, joined by commas: `ada`, or some of its parts `xflip`, `rotate90`, `xint`, `scale`, `rotate`,
    `aniso`, `xfrac`, `brightness`, `contrast`, `lumaflip`, `hue`, `saturation`; then DiffAugment's `color`,
    `translation`, `cutout`, in their order; unset: nothing."""
    probability: Scheduled = 1.0
    """Probability of each part for each image, or its schedule; ADA's parts stay out of the samples up to about 0.8."""
    target: float | None = None
    """Adaptive probability, from 0, in place of a given one: it rises while the mean sign of D at reals (with the
    relativistic loss: of D(real) - D(fake)) is above this, 0.6 in ADA, and falls below; unset: not adaptive."""
    adapt_images: int = 500_000
    """Images in which the adaptive probability can go from 0 to 1."""

    def __post_init__(self) -> None:
        if self.policy is not None:
            _check_policy("augment.policy", self.policy, (*AUGMENTATIONS, "ada", *ADA))
        if not all(0 <= value <= 1 for value in values_of(self.probability)):
            raise ValueError(f"augment.probability must be from 0 to 1, not {self.probability}")
        if self.target is not None and (self.policy is None or self.probability != 1):
            raise ValueError(
                f"augment.target {self.target} adapts the probability of augment.policy: set that, and leave "
                "augment.probability out"
            )
        if self.target is not None and not -1 < self.target < 1:
            raise ValueError(f"augment.target must be between -1 and 1, not {self.target}: take 0.6")
        if self.adapt_images < 1:
            raise ValueError(f"augment.adapt_images must be at least 1, not {self.adapt_images}")


def _check_policy(setting: str, policy: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless a policy names augmentations, each once."""
    parts = policy.split(",")
    if any(part not in choices for part in parts) or len(set(parts)) < len(parts):
        raise ValueError(
            f"{setting} must join some of {', '.join(choices)} by ',', each once, like color,translation; not "
            f"{policy!r}"
        )
    if "ada" in parts and not set(parts).isdisjoint(ADA):
        raise ValueError(f"{setting} {policy!r} names parts of ada beside ada, which is all of them: leave them out")


@dataclass(frozen=True)
class OptimConfig:
    """Adam for generator and discriminator, and how their updates alternate."""

    updates: Literal["alternating", "simultaneous"] = "alternating"
    """`alternating`: D is updated, then G against the new D with fakes of its own; or `simultaneous`, HiT's way: both
    from the same fakes and the networks as they were, which saves a forward pass of G."""
    lr: Scheduled = Schedule(5e-4, 1e-5)
    """Learning rate of the generator, and of the discriminator unless discriminator_lr is set: a number, or a schedule
    in images seen such as {start: 5e-4, end: 1e-5}, as every setting may be that says so; further fields are `over`,
    images (unset: all), and `shape`, cosine or linear."""
    discriminator_lr: Scheduled | None = None
    """Learning rate of the discriminator, or its schedule; unset: lr."""
    beta1: Scheduled = 0.0
    """Adam's beta1, or its schedule."""
    beta2: Scheduled = 0.99
    """Adam's beta2, or its schedule."""
    eps: float = 1e-8
    """Adam's epsilon."""

    def __post_init__(self) -> None:
        for rate in (self.lr, self.lr if self.discriminator_lr is None else self.discriminator_lr):
            first, *last = values_of(rate)
            if not first > 0 or not all(value >= 0 for value in last):
                raise ValueError(
                    "optim.lr and optim.discriminator_lr must be above 0, and may fall to 0, not "
                    f"{self.lr}, {self.discriminator_lr}"
                )
        if not all(0 <= value < 1 for beta in (self.beta1, self.beta2) for value in values_of(beta)):
            raise ValueError(f"optim.beta1 and optim.beta2 must be in [0, 1), not {self.beta1}, {self.beta2}")


@dataclass(frozen=True)
class EmaConfig:
    """Moving average of weights and BatchNorm statistics: the network that is sampled, measured and exported."""

    half_life: Scheduled = 20_000
    """Half-life in images seen, or its schedule; 0 for no average."""
    warmup: float = 0.2
    """Early in training the half-life is at most this fraction of the images seen; 0 switches the warm-up off."""

    def __post_init__(self) -> None:
        if min(values_of(self.half_life)) < 0 or self.warmup < 0:
            raise ValueError(f"ema.half_life and ema.warmup must be 0 or more, not {self.half_life}, {self.warmup}")


@dataclass(frozen=True)
class GanEmaConfig(EmaConfig):
    """Moving average of the generator, which is sampled, measured and exported; and others beside it."""

    others: tuple[float, ...] = ()
    """Half-lives of further averages, with the same warm-up, such as [5000, 50000]; each is exported with every
    checkpoint to averages/ in the run's folder."""
    power: tuple[float, ...] = ()
    """Widths (sigma_rel) of power-function averages, best [0.05, 0.1] as in EDM2; every checkpoint leaves a snapshot of
    each, from which `python -m maxgan.training.posthoc` makes an average of any width after the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(half_life > 0 for half_life in self.others) or len(set(self.others)) < len(self.others):
            raise ValueError(f"ema.others must be different half-lives above 0, not {list(self.others)}")
        if not all(0 < width < 0.2887 for width in self.power) or len(set(self.power)) < len(self.power):
            raise ValueError(
                f"ema.power must be different widths above 0 and below 0.2887, not {list(self.power)}: take [0.05, 0.1]"
            )


@dataclass(frozen=True)
class TrainingConfig:
    """Length, batch and arithmetic of a training."""

    images: int = 25_600
    """Images seen in the whole training, counted over all processes."""
    batch_size: int = 32
    """Images of one update over all processes and accumulation steps."""
    accumulation: int = 1
    """Micro-batches that one update is summed from, to save memory."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; `no` is float32."""
    sync_batchnorm: bool = False
    """Take the statistics of BatchNorm over the images of all GPUs, in place of those of each alone."""
    seed: int = 0
    """Seed of weights, latents, data order and augmentation."""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"training.images must be at least 1, not {self.images}")
        if self.batch_size < 1 or self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(
                f"training.batch_size {self.batch_size} must be a positive multiple of training.accumulation "
                f"{self.accumulation}"
            )


@dataclass(frozen=True)
class ScoreConfig:
    """What images are scored by."""

    protocol: str | None = None
    """`fid50k-train-2015-clean`, `fid50k-train-2015-tf1`, `adm-train-npz`, `hit-val50k`, or `fd-NAME` of a classifier;
    unset: that of the extractor."""
    extractor: str | None = None
    """`digits` (embedded) or the file of a classifier exported by train_classifier.py; unset: `digits` for the digits,
    none else."""
    weights: str | None = None
    """File of the weights of a published extractor, such as Inception; unset: where they are usually downloaded to."""
    trust_weights: bool = False
    """Take weights with another checksum than the published, which a score then names; a TorchScript archive is code,
    and must be your own."""
    reference: str | None = None
    """Images to compare with: `digits`, whatever data.source takes (a folder, zip, npz, shards), or an npz of their
    statistics; unset: all digits for the digits, else what was trained on."""
    metrics: tuple[Metric, ...] | None = None
    """What is computed; unset: what the protocol names."""
    labels: Literal["reference", "uniform"] = "reference"
    """Classes of a generator's samples: as often as the reference shows them, or drawn uniformly."""
    resamples: int = 0
    """Resamplings of the fakes for the deviation of the Fréchet distance; 0 for none."""
    extrapolation_points: int = 0
    """Numbers of fakes from which the Fréchet distance is extrapolated to infinitely many (15 in arXiv 1911.07023); 0
    for none."""
    cache: str | None = None
    """Folder of the references' statistics; unset: maxgan in the user's cache folder; `off` keeps none."""
    refresh: bool = False
    """Compute the reference's statistics anew, and keep those."""

    def __post_init__(self) -> None:
        if self.resamples < 0 or self.extrapolation_points < 0:
            raise ValueError(
                "resamples and extrapolation_points must be 0 or more, not "
                f"{self.resamples} and {self.extrapolation_points}"
            )
        if self.metrics is not None and not self.metrics:
            raise ValueError("metrics must name at least one, or be unset for those of the protocol")


@dataclass(frozen=True)
class EvaluationConfig(ScoreConfig):
    """Scores along a training and at its end."""

    enabled: bool = True
    """Score the result at the end."""
    images: int | None = None
    """Number of samples; unset: the protocol's, or as many as the reference has, at most 50,000."""
    every: int = 0
    """Images from one score to the next along the training, of which the best generator is kept; 0 scores the result
    alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 0 or (self.every and not self.enabled):
            raise ValueError(f"evaluation.every must be 0 or more, and 0 without evaluation.enabled, not {self.every}")
        if self.every and self.metrics is not None and "frechet" not in self.metrics:
            raise ValueError(
                "evaluation.every keeps the generator of the least Fréchet distance: add frechet to metrics"
            )
        if self.images is not None and self.images < 2:
            raise ValueError(f"evaluation.images must be at least 2, not {self.images}")


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and what it writes; nothing here changes what is learned."""

    root: str = "runs"
    """Folder of all runs."""
    name: str | None = None
    """First part of the run's folder name; unset: the name of the config file. A hash of all that changes learning
    follows."""
    directory: str | None = None
    """The run's folder itself, in place of root and name; it must be new or hold a run of the same config."""
    log_every: int = 320
    """Images between two lines of metrics.jsonl; rounded up to whole updates."""
    sample_every: int = 4_000
    """Images between two pictures of samples; 0 makes none."""
    checkpoint_every: int = 4_000
    """Images between two checkpoints."""
    keep: int = 2
    """Checkpoints kept, the newest; with evaluation.every, that of the best score stays beside them."""
    tracker: Literal["auto", "none", "tensorboard", "wandb"] = "auto"
    """Tracker beside metrics.jsonl; `auto` takes tensorboard where it is installed."""
    threads: int | None = None
    """CPU threads of each process; unset: the cores at hand, divided among the processes of this machine."""

    def __post_init__(self) -> None:
        if self.log_every < 1 or self.checkpoint_every < 1 or self.keep < 1 or self.sample_every < 0:
            raise ValueError(
                "run.log_every, run.checkpoint_every and run.keep must be at least 1, run.sample_every at least 0"
            )
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"run.threads must be at least 1, not {self.threads}")


@dataclass(frozen=True)
class WatchdogConfig:
    """What happens when a training goes wrong."""

    rollback: int = 0
    """Times that a run may go back to its last good checkpoint, and on with another seed, before it stops; 0 stops at
    once where a number is not finite."""

    def __post_init__(self) -> None:
        if self.rollback < 0:
            raise ValueError(f"watchdog.rollback must be 0 or more, not {self.rollback}")


@dataclass(frozen=True)
class GanWatchdogConfig(WatchdogConfig):
    """What happens when a training of a GAN goes wrong, and what counts as a sign of it."""

    sign_updates: int = 100
    """Updates that a sign is averaged over."""
    accuracy: float = 0.98
    """D wins where it tells as many of the pairs of a real and a fake apart, and the loss of G grows."""
    variety: float = 0.25
    """Variety has fallen where it is below this fraction of the highest so far."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sign_updates < 1:
            raise ValueError(f"watchdog.sign_updates must be at least 1, not {self.sign_updates}")
        if not (0 <= self.accuracy <= 1 and 0 <= self.variety <= 1):
            raise ValueError(
                f"watchdog.accuracy and watchdog.variety must be in [0, 1], not {self.accuracy}, {self.variety}"
            )


@dataclass(frozen=True)
class NetworksConfig:
    """Which networks are trained against each other; each has a section of its own."""

    generator: Literal["maxvit", "hit"] = "maxvit"
    """`maxvit`, set in `generator`, or the baseline `hit`, set in `hit`, from 32 px."""
    discriminator: Literal["residual", "maxvit"] = "residual"
    """`residual`, StyleGAN2's, set in `discriminator`, or `maxvit`, set in `maxvit_discriminator`."""


@dataclass(frozen=True)
class GanConfig:
    """Train a MaxViT-GAN. Without any argument it learns the embedded handwritten digits."""

    data: DataConfig = field(default_factory=DataConfig)
    networks: NetworksConfig = field(default_factory=NetworksConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    hit: HiTConfig = field(default_factory=HiTConfig)
    discriminator: DiscriminatorConfig = field(default_factory=lambda: DiscriminatorConfig(3 / 64, 192))
    maxvit_discriminator: MaxViTDiscriminatorConfig = field(default_factory=MaxViTDiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: GanEmaConfig = field(default_factory=GanEmaConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    watchdog: GanWatchdogConfig = field(default_factory=GanWatchdogConfig)
    dry_run: bool = False
    """Train nothing: print the networks stage by stage, their memory, and an estimate of the time; without a GPU, and
    without data where data.resolution is set (data.channels is then 3 unless set)."""
    dry_classes: int = 0
    """Classes that a dry run without data counts with."""

    def __post_init__(self) -> None:
        for kind, sections in (
            ("generator", {"maxvit": "generator", "hit": "hit"}),
            ("discriminator", {"residual": "discriminator", "maxvit": "maxvit_discriminator"}),
        ):
            chosen = getattr(self.networks, kind)
            for name, section in sections.items():
                if name != chosen and (idle := _changed(self, section)):
                    raise ValueError(
                        f"{section}.{idle} is set, but networks.{kind} is {chosen}: leave it out, or set "
                        f"networks.{kind} to {name}"
                    )
        if self.dry_classes < 0:
            raise ValueError(f"dry_classes must be 0 or more, not {self.dry_classes}")


@dataclass(frozen=True)
class ClassifierOptimConfig:
    """AdamW with linear warm-up, then a cosine or a constant rate."""

    lr: float = 3e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: a cosine from lr down to min_lr, or lr to the end."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup: float = 0.1
    """Fraction of the training that the rate rises for, in [0, 1)."""
    warmup_images: int | None = None
    """Images that the rate rises for, in place of `warmup`."""
    weight_decay: float = 0.05
    """Decoupled weight decay; not on biases, norms and relative-position tables."""
    label_smoothing: float = 0.1
    """Mass of the target spread over all classes, in [0, 1)."""
    gradient_clip: float | None = 1.0
    """Largest norm of the gradient; unset: any."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"optim.lr must be above 0 and optim.min_lr from 0 to it, not {self.lr}, {self.min_lr}")
        if not (0 <= self.warmup < 1 and 0 <= self.label_smoothing < 1):
            raise ValueError(
                f"optim.warmup and optim.label_smoothing must be in [0, 1), not {self.warmup}, {self.label_smoothing}"
            )
        if self.warmup_images is not None and self.warmup_images < 0:
            raise ValueError(f"optim.warmup_images must be 0 or more, or unset, not {self.warmup_images}")
        if self.weight_decay < 0:
            raise ValueError(f"optim.weight_decay must be 0 or more, not {self.weight_decay}")
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(f"optim.gradient_clip must be above 0, or unset for none, not {self.gradient_clip}")


@dataclass(frozen=True)
class AffineConfig:
    """Random rotation, scale and shift of the training images of a classifier, each uniform."""

    rotate: float = 10.0
    """Largest angle in degrees, either way."""
    scale: float = 0.1
    """Largest change of size, as a fraction of it, in [0, 1)."""
    shift: float = 0.08
    """Largest shift along each axis, as a fraction of the side, in [0, 1); by whole pixels where there is neither
    rotation nor scale, so that nothing is blurred."""
    border: Literal["black", "mirror"] = "black"
    """What comes in from outside: black, or the image's mirror image."""

    def __post_init__(self) -> None:
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"affine.rotate must be from 0 to 180 degrees, not {self.rotate}")
        if not (0 <= self.scale < 1 and 0 <= self.shift < 1):
            raise ValueError(f"affine.scale and affine.shift must be in [0, 1), not {self.scale}, {self.shift}")


@dataclass(frozen=True)
class MixConfig:
    """RandAugment of each training image of a classifier, then MixUp or CutMix of pairs (all torchvision's, v2)."""

    randaugment_ops: int = 0
    """Random operations on each image, one after the other (arXiv 1909.13719); 0 for none."""
    randaugment_magnitude: int = 15
    """Their strength, from 0 to 30, the strongest."""
    mixup: float = 0.0
    """Alpha of MixUp (arXiv 1710.09412): a batch and its partners are blended by a share drawn from Beta(alpha, alpha);
    0 for none."""
    cutmix: float = 0.0
    """Alpha of CutMix (arXiv 1905.04899), the same with rectangles; 0 for none. With both, every update takes one of
    them at random."""

    def __post_init__(self) -> None:
        if self.randaugment_ops < 0 or not 0 <= self.randaugment_magnitude <= 30:
            raise ValueError(
                "mix.randaugment_ops must be 0 or more and mix.randaugment_magnitude from 0 to 30, not "
                f"{self.randaugment_ops}, {self.randaugment_magnitude}"
            )
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(f"mix.mixup and mix.cutmix must be 0 or more, not {self.mixup}, {self.cutmix}")


@dataclass(frozen=True)
class ClassifierConfig:
    """Train a MaxViT classifier. Without any argument it learns the embedded handwritten digits."""

    data: DataConfig = field(default_factory=DataConfig)
    test: str | None = "digits-test"
    """Images to measure accuracy on: `digits-test`, a folder or a zip; unset: none."""
    test_crop: Literal["center", "whole"] = "center"
    """What is kept of those: a central square by data.crop_fraction, or the whole image, its sides made equal."""
    init: str | None = None
    """Classifier file to start from, such as one trained at a lower resolution; unset: random weights."""
    evaluate: str | None = None
    """Classifier file whose accuracy on `test` is printed, in place of a training; no run is made."""
    affine: AffineConfig = field(default_factory=AffineConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    optim: ClassifierOptimConfig = field(default_factory=ClassifierOptimConfig)
    ema: EmaConfig = field(default_factory=lambda: EmaConfig(half_life=0))
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(images=60_000, batch_size=64))
    run: RunConfig = field(default_factory=lambda: RunConfig(sample_every=0, checkpoint_every=16_000))
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)

    def __post_init__(self) -> None:
        if self.run.sample_every:
            raise ValueError(f"a classifier makes no samples: leave run.sample_every at 0, not {self.run.sample_every}")
        if (self.optim.warmup_images or 0) >= self.training.images:
            raise ValueError(
                f"optim.warmup_images {self.optim.warmup_images} must be fewer than training.images "
                f"{self.training.images}"
            )
        if self.evaluate is not None and self.test is None:
            raise ValueError("evaluate needs images to measure accuracy on: set test")


@dataclass(frozen=True)
class SampleConfig(ScoreConfig):
    """Draw images from a trained generator, without any argument from that of the newest run; and score them, if a
    reference is named."""

    n: int = 64
    """Number of images."""
    model: str | None = None
    """Generator: file, folder, or Hugging Face Hub repository; unset: runs/*/generator.safetensors written last."""
    output: str | None = None
    """Where the images go: a folder of PNGs, a .zip or an .npz; unset: samples/<run name>."""
    seed: int = 0
    """Seed of the first image; the others follow one by one. A seed always gives the same image."""
    classes: str | None = None
    """Classes to draw in turn, such as "3,5"; unset: all at random."""
    truncation: float | None = None
    """Draw the latents from a normal cut at this value: fewer oddities, less variety; unset: not cut."""
    batch_size: int = 64
    """Images at once on each process."""
    grid: str | None = None
    """PNG file for one picture of the first images."""
    grid_columns: int = 8
    """Columns, and at most as many rows, of that picture."""
    scores: str | None = None
    """JSON file for the scores; unset: only the table is printed."""
    cpu: bool = False
    """Stay on the CPU although there is an accelerator."""
    threads: int | None = None
    """CPU threads of each process; unset: the cores at hand, divided among the processes of this machine."""
    overwrite: bool = False
    """Replace the samples that are there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference is None and (self.protocol or self.extractor or self.scores):
            raise ValueError("scores need images to compare with: set reference")
        for name, least in (("n", 1), ("seed", 0), ("batch_size", 1), ("grid_columns", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.grid is not None and not self.grid.lower().endswith(".png"):
            raise ValueError(f"grid must be a .png file, not {self.grid}")


@dataclass(frozen=True)
class EvaluateConfig(ScoreConfig):
    """Score a generator, or images, against reference images."""

    fakes: str | None = None
    """What is scored: a generator file, or images as data.source takes them (a folder, zip, npz, tar shards, parquet,
    `hf:OWNER/NAME`); unset: the newest run's generator."""
    n: int | None = None
    """Number of samples of a generator; unset: the protocol's, or as many as the reference has, at most 50,000."""
    seed: int = 0
    """Seed of the first sample."""
    truncation: float | None = None
    """Draw the latents from a normal cut at this value; unset: not cut."""
    batch_size: int = 128
    """Images at once on each process."""
    output: str | None = None
    """JSON file for the scores with their protocol; unset: only the table is printed."""
    save_reference: str | None = None
    """npz file for the reference's statistics, in the layout of ADM and clean-fid (mu, sigma, feats)."""
    cpu: bool = False
    """Stay on the CPU although there is an accelerator."""
    threads: int | None = None
    """CPU threads of each process; unset: the cores at hand, divided among the processes of this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n is not None and self.n < 2:
            raise ValueError(f"n must be at least 2, not {self.n}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {self.batch_size}")
        if self.save_reference is not None and not self.save_reference.endswith(".npz"):
            raise ValueError(f"save_reference must be an .npz file, not {self.save_reference}")


@dataclass(frozen=True)
class ExploreConfig:
    """What all commands of `python -m maxgan.explore` share."""

    model: str | None = None
    """Generator: file, folder, or Hugging Face Hub repository; unset: runs/*/generator.safetensors written last."""
    output: str | None = None
    """The picture, which is replaced if it is there; unset: one named after the command beside the generator."""
    seed: int = 0
    """Seed of the first latent; the others follow one by one."""
    batch_size: int = 64
    """Images at once."""
    cpu: bool = False
    """Stay on the CPU although there is an accelerator."""
    threads: int | None = None
    """CPU threads; unset: the cores at hand."""

    def __post_init__(self) -> None:
        _at_least(self, seed=0, batch_size=1)
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, not {self.threads}")
        self._check_output(".png")

    def _check_output(self, *suffixes: str) -> None:
        if self.output is not None and not self.output.lower().endswith(suffixes):
            raise ValueError(f"output must be a {' or '.join(suffixes)} file, not {self.output}")


@dataclass(frozen=True)
class ClassSheetConfig(ExploreConfig):
    """A sheet with a row for each class: `python -m maxgan.explore classes`.

    A column has the same latent in every row.
    """

    classes: str | None = None
    """Classes to show, such as "3,5"; unset: all, at most 100."""
    columns: int = 10
    """Samples of each class."""
    truncation: float | None = None
    """Draw the latents from a normal cut at this value; unset: not cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, columns=1)


@dataclass(frozen=True)
class InterpolateConfig(ExploreConfig):
    """A closed path through latents, as an animation and as a strip: `python -m maxgan.explore interpolate`.

    Spherical, since latents are Gaussian: a straight line would lead through lengths that none of them has.
    """

    output: str | None = None
    """The animation, a .gif, or a .webp with all colours; the strip is a .png of the same name; both are replaced;
    unset: interpolation.gif beside the generator."""
    paths: int | None = None
    """Paths side by side, each through latents of its own; unset: one for each class, at most 10, or 4 without
    classes."""
    points: int = 4
    """Latents that a path leads through before it comes back to the first."""
    frames: int = 24
    """Frames from one latent to the next."""
    fps: int = 20
    """Frames a second, from 1 to 50; a GIF counts in hundredths of a second."""
    columns: int = 12
    """Images in a row of the strip, evenly along the path."""
    classes: str | None = None
    """Classes that the paths have in turn, such as "3,5"; unset: one after the other from 0."""
    truncation: float | None = None
    """Draw the latents from a normal cut at this value; unset: not cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, points=2, frames=1, columns=1, paths=1)
        if not 1 <= self.fps <= 50:
            raise ValueError(f"fps must be from 1 to 50, not {self.fps}")

    def _check_output(self, *suffixes: str) -> None:
        super()._check_output(".gif", ".webp")


@dataclass(frozen=True)
class FeatureConfig(ExploreConfig):
    """An extractor, in whose features images are compared."""

    extractor: str | None = None
    """`digits` or `cifar10` (embedded), the file of a classifier, or a published one; unset: `digits` for the digits,
    none else."""
    weights: str | None = None
    """File of the weights of a published extractor; unset: where they are usually downloaded to."""
    resize: Literal["clean", "tf1"] | None = None
    """How images are resized for the extractors of 2015, `inception-2015` and `inception-2015-torchscript`."""


@dataclass(frozen=True)
class NeighboursConfig(FeatureConfig):
    """The real images nearest to samples, as a picture: `python -m maxgan.explore neighbours`.

    Shows whether a generator has learned images by heart. A .json of the same name has the distances.
    """

    n: int = 256
    """Samples that are compared."""
    rows: int = 10
    """Samples that are shown: those nearest to a real image."""
    k: int = 8
    """Real images beside each."""
    reference: str | None = None
    """The real images, as data.source names them; unset: what the generator was trained on."""
    truncation: float | None = None
    """Draw the latents from a normal cut at this value; unset: not cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, n=1, rows=1, k=1)


@dataclass(frozen=True)
class InvertConfig(FeatureConfig):
    """Find the latent whose image is nearest to a given one: `python -m maxgan.explore invert IMAGE`.

    A .json of the same name has the latents and the errors.
    """

    image: str = ""
    """The image's file; its central square is brought to the generator's resolution."""
    label: int | None = None
    """Its class; unset: any, the starts are of those that come nearest."""
    candidates: int = 512
    """Random latents, of which the best are the starts."""
    starts: int = 4
    """Latents that are optimised, each on its own."""
    steps: int = 300
    """Steps of Adam."""
    lr: float = 0.1
    """Its learning rate at the start; it falls to 0 on a cosine."""
    feature_weight: float = 1.0
    """Weight of the squared distance of features, relative to their length, beside the mean squared error of the pixels
    in [-1, 1]; without an extractor there are pixels alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.image:
            raise ValueError("image is missing: name the file of the image to invert")
        _at_least(self, candidates=1, starts=1, steps=1, label=0)
        if self.starts > self.candidates:
            raise ValueError(f"starts must be at most candidates, not {self.starts} of {self.candidates}")
        if not self.lr > 0 or not self.feature_weight >= 0:
            raise ValueError(
                f"lr must be above 0 and feature_weight 0 or more, not {self.lr} and {self.feature_weight}"
            )


@dataclass(frozen=True)
class ReportConfig:
    """Make one self-contained HTML page for a run: `python -m maxgan.report RUN`.

    It shows samples over time, curves, scores, settings and speed, and works on an unfinished run as well.
    """

    run: str | None = None
    """The run's folder; unset: the one in `runs` that was started last."""
    output: str | None = None
    """The page, an .html file, which is replaced if it is there; unset: report.html in the run's folder."""

    def __post_init__(self) -> None:
        if self.output is not None and not self.output.lower().endswith((".html", ".htm")):
            raise ValueError(f"output must be an .html file, not {self.output}")


@dataclass(frozen=True)
class ReconstructConfig:
    """Make a power-function average of any width from the snapshots of a run: `python -m maxgan.training.posthoc
    reconstruct RUN --sigma_rel 0.07`."""

    run: str | None = None
    """The run's folder; unset: the newest in runs/."""
    sigma_rel: float = 0.1
    """Width of the average, as a fraction of the training up to it; above 0 and below 0.2887. The snapshots serve best
    from their narrowest width on."""
    images: int | None = None
    """Images seen at its end; unset: those of the last snapshot."""
    output: str | None = None
    """The generator's file; unset: averages/power-SIGMA_REL.safetensors in the run's folder."""


@dataclass(frozen=True)
class BestAverageConfig(ScoreConfig):
    """Score all averages of a run and find the width of a power-function average with the least Fréchet distance:
    `python -m maxgan.training.posthoc best RUN`."""

    run: str | None = None
    """The run's folder; unset: the newest in runs/."""
    sigma_rels: tuple[float, ...] = (0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28)
    """Widths that are tried first; none, where the run has no snapshots."""
    refine: int = 2
    """How often a width between the best so far and each of its neighbours is tried then."""
    n: int | None = None
    """Number of samples; unset: the protocol's, or as many as the reference has, at most 50,000."""
    seed: int = 0
    """Seed of the first sample, the same for all averages. Score the result again with another: the least of many
    scores flatters."""
    batch_size: int = 128
    """Images at once on each process."""
    output: str | None = None
    """File of the best generator, its scores inside; unset: averages/best.safetensors in the run's folder. All scores
    are written beside it, as .json."""
    cpu: bool = False
    """Stay on the CPU although there is an accelerator."""
    threads: int | None = None
    """CPU threads of each process; unset: the cores at hand, divided among the processes of this machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < width < 0.2887 for width in self.sigma_rels):
            raise ValueError(f"sigma_rels must be above 0 and below 0.2887, not {list(self.sigma_rels)}")
        if self.refine < 0 or self.batch_size < 1 or (self.n is not None and self.n < 2):
            raise ValueError(
                "refine must be at least 0, batch_size at least 1 and n at least 2, not "
                f"{self.refine}, {self.batch_size}, {self.n}"
            )
        if self.metrics is not None and "frechet" not in self.metrics:
            raise ValueError("the best average is that of the least Fréchet distance: add frechet to metrics")


# Sections and fields that don't change what is learned: a run may be continued with other values of these.
FREE = (
    "run", "evaluation", "watchdog", "dry_run", "dry_classes", "test", "test_crop", "evaluate", "data.workers",
    "data.on_error", "backbone.checkpointing",
)  # fmt: skip


def _at_least(config: Any, **least: int) -> None:
    """Raise ValueError for the first field that is set and less than what it must be."""
    for name, value in least.items():
        given = getattr(config, name)
        if given is not None and given < value:
            raise ValueError(f"{name} must be at least {value}, not {given}")


def _changed(config: Any, section: str) -> str | None:
    """Return the first field of a section that has another value than the section's default, if there is one."""
    default: Any = next(field for field in dataclasses.fields(config) if field.name == section).default_factory
    changes = differences(to_dict(default()), to_dict(getattr(config, section)))
    return changes[0].partition(":")[0] if changes else None


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested plain values (tuples become lists), ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def learning_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return those of a config's plain values (`to_dict`) that change what is learned."""
    free = {name for name in FREE if "." not in name}
    nested = {tuple(name.split(".")) for name in FREE if "." in name}
    return {
        section: {key: v for key, v in value.items() if (section, key) not in nested}
        if isinstance(value, dict)
        else value
        for section, value in settings.items()
        if section not in free
    }


def learning_hash(config: Any) -> str:
    """Return eight hexadecimal digits that change exactly when a setting that changes learning does."""
    text = json.dumps([type(config).__name__, learning_settings(to_dict(config))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return a line `name: old -> new` for every setting in which two nested dicts differ."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
