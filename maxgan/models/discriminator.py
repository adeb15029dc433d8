"""Discriminators: images (and labels) to one logit an image."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.config import DiscriminatorConfig, check_gan_resolution
from maxgan.models.network import Network
from maxgan.nn.activation import SLOPE
from maxgan.nn.attention import to_tokens
from maxgan.nn.equalized import EqualizedConv2d, EqualizedLinear, make_conv, make_linear
from maxgan.nn.resample import blur_pool

LAST_SIDE = 4


class Discriminator(Network):
    """What discriminators share: a check of their input, and a logit from features and class.

    With classes it is the projection discriminator (arXiv 1802.05637): the logit gains <embedding of the class,
    features> / sqrt(dim). No discriminator has batch statistics: they would mix reals with fakes, and R1 is a penalty
    of each image.
    """

    logit: nn.Linear
    class_embedding: nn.Embedding | None

    def make_head(self, features: int, equalized: bool = False) -> None:
        """Make the last layer and the embeddings of the classes, for `features` numbers an image."""
        self.logit = make_linear(features, 1, equalized, activated=False)
        self.class_embedding = nn.Embedding(self.num_classes, features) if self.num_classes else None

    def judge(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """Return logits `(N,)` for features `(N, dim)`, in float32 at least.

        Half precision would round a logit to three digits, and D and the penalties work on differences of logits.
        """
        features = features.to(torch.promote_types(features.dtype, torch.float32))
        device = features.device.type
        with torch.autocast(device, enabled=False) if device != "meta" else nullcontext():
            logit = self.logit(features).squeeze(1)
        if self.class_embedding is not None:
            logit = logit + (self.class_embedding(labels) * features).sum(1) / math.sqrt(features.shape[1])
        return logit

    def check_input(self, x: Tensor, labels: Tensor | None) -> None:
        """Raise ValueError if the images have another size than the model's, or labels and model don't agree."""
        size = (self.channels, self.resolution, self.resolution)
        if tuple(x.shape[1:]) != size:
            raise ValueError(
                f"this discriminator takes images (N, {', '.join(map(str, size))}), not {tuple(x.shape)}: give images "
                "of that size, or build it for another resolution or channels"
            )
        if (labels is None) != (self.num_classes == 0):
            raise ValueError(
                f"this discriminator has {self.num_classes} classes: "
                + ("give a label for every image" if labels is None else "it is unconditional, give no labels")
            )


def width_at(resolution: int, config: DiscriminatorConfig) -> int:
    """Return the channels at a resolution: channel_multiplier * 16384 / resolution, at most max_width, at least 8."""
    return max(8, min(config.max_width, int(config.channel_multiplier * 16384 / resolution)))


def minibatch_deviation(x: Tensor, group: int) -> Tensor:
    """Append a channel that tells how much the images of a group differ: `(N, C, H, W)` to `(N, C + 1, H, W)`.

    sqrt(variance over the group + 1e-8), averaged over channels and pixels: one number for all images of the group
    (arXiv 1710.10196, section 3, in the form of StyleGAN2). Groups are of consecutive images, where StyleGAN2's are of
    images N / group apart: so a batch of reals followed by fakes never has both in one group.

    Raises:
        ValueError: if N is no multiple of `group`.
    """
    n, _, height, width = x.shape
    if n % group:
        raise ValueError(
            f"minibatch deviation: {n} images don't split into groups of {group}: make discriminator.minibatch_group "
            "divide the images a process holds at once (batch_size / processes / accumulation)"
        )
    # In float32 at least: the squares of small differences vanish in float16.
    groups = x.unflatten(0, (n // group, group)).to(torch.promote_types(x.dtype, torch.float32))
    deviation = (groups.var(1, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
    channel = deviation.to(x.dtype).repeat_interleave(group).view(n, 1, 1, 1).expand(n, 1, height, width)
    return torch.cat([x, channel], 1)


class ResidualBlock(nn.Module):
    """[3x3, leaky, blur-pool, 3x3, leaky] + [blur-pool, 1x1], summed and divided by sqrt 2; halves `(N, C, H, W)`."""

    def __init__(self, inputs: int, outputs: int, equalized: bool = False) -> None:
        super().__init__()
        self.conv1 = make_conv(inputs, inputs, 3, equalized=equalized)
        self.conv2 = make_conv(inputs, outputs, 3, equalized=equalized)
        self.skip = make_conv(inputs, outputs, 1, bias=False, equalized=equalized, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        y = blur_pool(F.leaky_relu(self.conv1(x), SLOPE))
        y = F.leaky_relu(self.conv2(y), SLOPE)
        return (y + self.skip(blur_pool(x))) * math.sqrt(0.5)


class ResidualDiscriminator(Discriminator):
    """StyleGAN2's residual discriminator (arXiv 1912.04958) as HiT uses it: no normalisation, nothing across the batch.

    Two things that HiT leaves out are options, off by default: `equalized_lr`, with StyleGAN2's gains of activations,
    and `minibatch_deviation` before the last convolution. The latter breaks "nothing across the batch": a logit then
    depends on the other images of its group, `minibatch_group` (4) consecutive images of those that a process holds,
    and the penalties R1 and R2 on their sum.

    Args:
        resolution: side of the images, a power of two from 8 to 1024.
        channels: image channels, 1 to 4.
        num_classes: 0 for an unconditional model; for classes see Discriminator.
        config: settings; single fields can be given as keywords.

    Raises:
        ValueError: for sizes out of range.
    """

    config_class = DiscriminatorConfig
    config: DiscriminatorConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 0,
        config: DiscriminatorConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)
        check_gan_resolution(resolution)
        equalized, deviation = self.config.equalized_lr, self.config.minibatch_deviation
        sides = [resolution >> i for i in range(resolution.bit_length() - LAST_SIDE.bit_length() + 1)]
        widths = [width_at(side, self.config) for side in sides]
        last = widths[-1]
        self.from_rgb = make_conv(channels, widths[0], 3, equalized=equalized)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, equalized) for a, b in pairwise(widths)))
        self.final_conv = make_conv(last + 1 if deviation else last, last, 3, equalized=equalized)
        self.dense = make_linear(LAST_SIDE * LAST_SIDE * last, last, equalized)
        self.make_head(last, equalized)
        self.apply(_initialise)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits `(N,)` for images `(N, channels, resolution, resolution)` in [-1, 1].

        Args:
            x: the images.
            labels: `(N,)` integers in [0, num_classes); needed exactly when the model has classes.

        Raises:
            ValueError: if images or labels don't fit the model, or the batch the groups of `minibatch_deviation`.
        """
        self.check_input(x, labels)
        x = self.blocks(F.leaky_relu(self.from_rgb(x), SLOPE))
        if self.config.minibatch_deviation:
            x = minibatch_deviation(x, self.config.minibatch_group)
        x = F.leaky_relu(self.final_conv(x), SLOPE)
        # (height, width, channel) order, as the official code flattens.
        return self.judge(F.leaky_relu(self.dense(to_tokens(x).flatten(1)), SLOPE), labels)


def _initialise(module: nn.Module) -> None:
    """Glorot-uniform kernels and zero biases: the defaults of Keras, which HiT keeps; equalised layers and class
    embeddings stay N(0, 1)."""
    if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, EqualizedConv2d | EqualizedLinear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
