"""Modulation of a map by the mean of a few tokens."""

from __future__ import annotations

from torch import Tensor, nn


class Modulation(nn.Module):
    """Scale and shift each channel of a map: x * a + b, with (a, b) linear in the mean of the tokens.

    What cross-attention to the tokens is compared with: every pixel gets the same (FiLM, arXiv 1709.07871).

    Args:
        channels: width C of the map.
        token_channels: width of the tokens.
    """

    def __init__(self, channels: int, token_channels: int) -> None:
        super().__init__()
        self.out = nn.Linear(token_channels, 2 * channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Map x `(N, H, W, C)` and tokens `(N, T, D)` to `(N, H, W, C)`."""
        scale, shift = self.out(tokens.mean(1))[:, None, None].chunk(2, -1)
        return x * scale + shift
