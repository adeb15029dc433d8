"""GELU, in the form that is asked for."""

from __future__ import annotations

from torch import nn

from maxgan.config import GeluForm


def make_gelu(form: GeluForm) -> nn.GELU:
    """Return GELU (arXiv 1606.08415): `erf`, exact; or `tanh`, its approximation, as the official MaxViT has it."""
    return nn.GELU(approximate="tanh" if form == "tanh" else "none")
