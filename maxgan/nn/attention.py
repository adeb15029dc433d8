"""Relative attention in blocks and grids, cross-attention to tokens, and the transformer layers around them."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.config import GeluForm
from maxgan.nn.activation import make_gelu
from maxgan.nn.partition import Axis, merge, split


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T + bias) v for queries that are already scaled.

    Written out instead of `scaled_dot_product_attention`, whose fused kernels have no second derivative (needed by R1
    and R2 through an attention discriminator) and which is slower on a CPU at the 16 to 64 tokens of a window. Softmax
    in float32 at least.

    Args:
        q: `(G, heads, T, d)`; k, v: `(G, heads, S, d)`; bias: broadcastable to `(G, heads, T, S)`.
    """
    logits = q @ k.transpose(-2, -1)
    if bias is not None:
        logits += bias
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return weights.to(v.dtype) @ v


def count_heads(channels: int, head_dim: int) -> int:
    """Return channels / head_dim, or raise ValueError if that is no whole number."""
    if head_dim < 1 or channels % head_dim:
        raise ValueError(f"a width of {channels} is no multiple of head_dim {head_dim}: change the width or head_dim")
    return channels // head_dim


def relative_bias(table: Tensor) -> Tensor:
    """Spread a table of relative positions over all pairs of tokens of a window.

    Args:
        table: `(heads, 2P-1, 2P-1)`, indexed by key position minus query position, plus P - 1.

    Returns:
        `(heads, P*P, P*P)`, query by key. Made of overlapping views and one copy, whose gradient is summed in a fixed
        order: training on a CPU is reproducible bit for bit with many threads.
    """
    size = (table.shape[-1] + 1) // 2
    windows = table.unfold(1, size, 1).unfold(2, size, 1)  # [h, a, b, ky, kx] = table[h, a + ky, b + kx]
    return windows.flip(1, 2).reshape(table.shape[0], size * size, size * size)


def resize_relative_bias(table: Tensor, size: int) -> Tensor:
    """Resize a table of relative positions `(heads, 2Q-1, 2Q-1)` to windows of side `size`: `(heads, 2P-1, 2P-1)`.

    Bilinear with half-pixel centres and no antialiasing, as the official MaxViT does for fine-tuning at another
    resolution (`scale_ratio`, tf.image.resize).
    """
    side = 2 * size - 1
    if table.shape[1:] == (side, side):
        return table
    return F.interpolate(table[None], (side, side), mode="bilinear", align_corners=False)[0]


class RelativeAttention(nn.Module):
    """Multi-head self-attention in the windows or the grids of a map, with learned relative-position biases.

    softmax(q k^T / sqrt(d) + B) v, B from a table of `(heads, 2P-1, 2P-1)` indexed by key minus query (MaxViT, section
    3.1).

    Args:
        channels: width C, a multiple of `head_dim`.
        size: side P of the windows or grids; the map's sides must be multiples of it.
        axis: `block` (local) or `grid` (global, sparse).
        head_dim: channels d of a head.
    """

    def __init__(self, channels: int, size: int, axis: Axis, head_dim: int = 32) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"window_size must be at least 2, not {size}: a window of one pixel mixes nothing")
        self.heads = count_heads(channels, head_dim)
        self.size = size
        self.axis: Axis = axis
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.relative_bias = nn.Parameter(torch.empty(self.heads, 2 * size - 1, 2 * size - 1))
        nn.init.normal_(self.relative_bias, std=0.02)
        self.fused_bias: Tensor | None
        self.register_buffer("fused_bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, H, W, C)` to `(N, H, W, C)`."""
        q, k, v = split(self.qkv(x), self.size, self.axis, parts=3, heads=self.heads)
        if self.fused_bias is None:
            q, bias = q * self.scale, relative_bias(self.relative_bias)
        else:
            bias = self.fused_bias
        y = attend(q, k, v, bias.to(q.dtype))
        return self.out(merge(y, x.shape[1], x.shape[2], self.size, self.axis))

    def fuse(self) -> None:
        """Spread the table of biases, and scale the queries by scaling the layer that makes them."""
        channels = self.qkv.in_features
        scale = torch.ones_like(self.qkv.bias)
        scale[:channels] = self.scale
        self.qkv = copy.deepcopy(self.qkv).requires_grad_(False)
        self.qkv.weight.mul_(scale[:, None])
        self.qkv.bias.mul_(scale)
        self.fused_bias = relative_bias(self.relative_bias.detach())

    def extra_repr(self) -> str:
        return f"axis={self.axis}, size={self.size}, heads={self.heads}"


class CrossAttention(nn.Module):
    """Multi-head attention from every pixel of a map to a few tokens: HiT's self-modulation (arXiv 2106.07631, section
    3.3).

    Args:
        channels: width C of the map, a multiple of `head_dim`.
        token_channels: width of the tokens.
        head_dim: channels of a head.
    """

    def __init__(self, channels: int, token_channels: int, head_dim: int = 32) -> None:
        super().__init__()
        self.heads = count_heads(channels, head_dim)
        self.scale = head_dim**-0.5
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(token_channels, 2 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Map x `(N, H, W, C)` and tokens `(N, T, D)` to `(N, H, W, C)`."""
        n, height, width, channels = x.shape
        q = self.q(x).view(n, height * width, self.heads, -1).transpose(1, 2)
        k, v = self.kv(tokens).view(n, tokens.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = attend(q * self.scale, k, v)
        return self.out(y.transpose(1, 2).reshape(n, height, width, channels))


class FeedForward(nn.Sequential):
    """Linear to `expansion` times the channels, GELU, Linear back; on `(..., C)`."""

    def __init__(self, channels: int, expansion: int = 4, gelu: GeluForm = "tanh") -> None:
        super().__init__(
            nn.Linear(channels, expansion * channels),
            make_gelu(gelu),
            nn.Linear(expansion * channels, channels),
        )


def to_tokens(x: Tensor) -> Tensor:
    """View `(N, C, H, W)` as `(N, H, W, C)`; no copy in channels_last memory."""
    return x.permute(0, 2, 3, 1)


def to_map(x: Tensor) -> Tensor:
    """View `(N, H, W, C)` as `(N, C, H, W)` in channels_last memory."""
    return x.permute(0, 3, 1, 2)
