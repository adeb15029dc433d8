"""Whole networks, rebuilt from their exported file alone."""

from maxgan.models.backbone import MaxViT
from maxgan.models.block import MaxViTBlock
from maxgan.models.discriminator import ResidualDiscriminator
from maxgan.models.generator import MaxViTGenerator
from maxgan.models.hit import HiTGenerator
from maxgan.models.maxvit_discriminator import MaxViTDiscriminator
from maxgan.models.network import Network
from maxgan.models.residual_generator import ResidualGenerator

__all__ = [
    "HiTGenerator",
    "MaxViT",
    "MaxViTBlock",
    "MaxViTDiscriminator",
    "MaxViTGenerator",
    "Network",
    "ResidualDiscriminator",
    "ResidualGenerator",
]
