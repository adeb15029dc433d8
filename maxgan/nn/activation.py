"""GELU, in the form that is asked for, and the slope of leaky ReLU."""

from __future__ import annotations

from torch import nn

from maxgan.config import GeluForm

SLOPE = 0.2
"""Of leaky ReLU below zero, as in StyleGAN2."""


def make_gelu(form: GeluForm) -> nn.GELU:
    """Return GELU (arXiv 1606.08415): `erf`, exact; or `tanh`, its approximation, as the official MaxViT has it."""
    return nn.GELU(approximate="tanh" if form == "tanh" else "none")
