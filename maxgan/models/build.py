"""The networks of a GAN, as its settings choose them."""

from __future__ import annotations

from maxgan.config import GanConfig, ImageFacts
from maxgan.models.discriminator import Discriminator, ResidualDiscriminator
from maxgan.models.generator import MaxViTGenerator
from maxgan.models.hit import HiTGenerator
from maxgan.models.latent import LatentGenerator
from maxgan.models.maxvit_discriminator import MaxViTDiscriminator
from maxgan.models.residual_generator import ResidualGenerator


def build_generator(config: GanConfig, facts: ImageFacts) -> LatentGenerator:
    """Return the generator that `networks.generator` names, with random weights.

    Raises:
        ValueError: for sizes that don't fit, naming the setting.
    """
    size = (facts.resolution, facts.channels, facts.num_classes)
    if config.networks.generator == "hit":
        return HiTGenerator(*size, config=config.hit)
    if config.networks.generator == "residual":
        return ResidualGenerator(*size, config=config.residual_generator)
    return MaxViTGenerator(*size, config=config.generator)


def build_discriminator(config: GanConfig, facts: ImageFacts) -> Discriminator:
    """Return the discriminator that `networks.discriminator` names, with random weights.

    Raises:
        ValueError: for sizes that don't fit, naming the setting.
    """
    size = (facts.resolution, facts.channels, facts.num_classes)
    if config.networks.discriminator == "maxvit":
        return MaxViTDiscriminator(*size, config=config.maxvit_discriminator)
    return ResidualDiscriminator(*size, config=config.discriminator)
