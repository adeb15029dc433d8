"""Discriminators: images (and labels) to one logit an image."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.config import DiscriminatorConfig, check_gan_resolution
from maxgan.models.network import Network
from maxgan.nn.attention import to_tokens
from maxgan.nn.resample import blur_pool

SLOPE = 0.2
LAST_SIDE = 4


def width_at(resolution: int, config: DiscriminatorConfig) -> int:
    """Return the channels at a resolution: channel_multiplier * 16384 / resolution, at most max_width, at least 8."""
    return max(8, min(config.max_width, int(config.channel_multiplier * 16384 / resolution)))


class ResidualBlock(nn.Module):
    """[3x3, leaky, blur-pool, 3x3, leaky] + [blur-pool, 1x1], summed and divided by sqrt 2; halves `(N, C, H, W)`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = blur_pool(F.leaky_relu(self.conv1(x), SLOPE))
        y = F.leaky_relu(self.conv2(y), SLOPE)
        return (y + self.skip(blur_pool(x))) * math.sqrt(0.5)


class ResidualDiscriminator(Network):
    """StyleGAN2's residual discriminator (arXiv 1912.04958) as HiT uses it: no normalisation, nothing across the batch.

    With classes, the projection discriminator (arXiv 1802.05637): the logit gains <embedding of the class, features> /
    sqrt(dim).

    Args:
        resolution: side of the images, a power of two from 8 to 1024.
        channels: image channels, 1 to 4.
        num_classes: 0 for an unconditional model.
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
        sides = [resolution >> i for i in range(resolution.bit_length() - LAST_SIDE.bit_length() + 1)]
        widths = [width_at(side, self.config) for side in sides]
        last = widths[-1]
        self.from_rgb = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        self.final_conv = nn.Conv2d(last, last, 3, padding=1)
        self.dense = nn.Linear(LAST_SIDE * LAST_SIDE * last, last)
        self.logit = nn.Linear(last, 1)
        self.class_embedding = nn.Embedding(num_classes, last) if num_classes else None
        self.apply(_initialise)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits `(N,)` for images `(N, channels, resolution, resolution)` in [-1, 1].

        Args:
            x: the images.
            labels: `(N,)` integers in [0, num_classes); needed exactly when the model has classes.

        Raises:
            ValueError: if labels and model don't agree.
        """
        if (labels is None) != (self.class_embedding is None):
            raise ValueError(
                f"this discriminator has {self.num_classes} classes: "
                + ("give a label for every image" if labels is None else "it is unconditional, give no labels")
            )
        x = self.blocks(F.leaky_relu(self.from_rgb(x), SLOPE))
        x = F.leaky_relu(self.final_conv(x), SLOPE)
        # (height, width, channel) order, as the official code flattens.
        h = F.leaky_relu(self.dense(to_tokens(x).flatten(1)), SLOPE)
        logit = self.logit(h).squeeze(1)
        if self.class_embedding is not None:
            logit = logit + (self.class_embedding(labels) * h).sum(1) / math.sqrt(h.shape[1])
        return logit


def _initialise(module: nn.Module) -> None:
    """Glorot-uniform kernels and zero biases: the defaults of Keras, which HiT keeps; class embeddings N(0, 1)."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
