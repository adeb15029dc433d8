"""Attention whose heads share one key and one value a token (multi-query, arXiv 1911.02150), as HiT has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maxgan.nn.attention import attend
from maxgan.nn.partition import Axis, merge, split


def attend_shared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v for each head of q, with the one key and value that all heads share.

    As they are shared, a head is no more than a further query: a view of the channels, without the transposition that
    heads of their own keys need.

    Args:
        q: `(G, 1, T, heads * d)`; k, v: `(G, 1, S, d)`. The result has the shape of q.
    """
    d = k.shape[-1]
    queries = q.reshape(len(q), 1, -1, d)
    return attend(queries * d**-0.5, k, v).reshape(q.shape)


class MultiAxisAttention(nn.Module):
    """HiT's multi-axis self-attention (arXiv 2106.07631, section 3.2): two attentions at the same time.

    The map is cut into patches of P x P pixels. The first half of the heads attends inside each patch (local), the
    other half to the pixels at the same place of all patches (dilated); all heads share one key and one value.

    Args:
        channels: width C, a multiple of `heads`.
        heads: number of heads, even.
        patch_size: side P of the patches, at least 2; the map is square, and its side a multiple, at least twice P.

    Raises:
        ValueError: for sizes that don't fit.
    """

    def __init__(self, channels: int, heads: int, patch_size: int) -> None:
        super().__init__()
        d = head_dim(channels, heads)
        if heads % 2:
            raise ValueError(f"heads must be even, not {heads}: half of them is local, the other half dilated")
        self.patch_size = patch_size
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * d)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(N, H, W, C)` to `(N, H, W, C)`."""
        _, height, width, _ = x.shape
        assert height == width, tuple(x.shape)
        kv = self.kv(x)
        halves = []
        # The pixels at the same place of all patches are a grid of as many cells as there are patches.
        axes: tuple[tuple[Axis, int], ...] = (("block", self.patch_size), ("grid", height // self.patch_size))
        for half, (axis, size) in zip(self.q(x).chunk(2, -1), axes, strict=True):
            (q,), (k, v) = split(half, size, axis), split(kv, size, axis, parts=2)
            halves.append(merge(attend_shared(q, k, v), height, width, size, axis))
        return self.out(torch.cat(halves, -1))

    def extra_repr(self) -> str:
        return f"patch_size={self.patch_size}"


class MultiQueryCrossAttention(nn.Module):
    """Multi-query attention from every pixel of a map to a few tokens: HiT's self-modulation (arXiv 2106.07631, section
    3.3).

    Args:
        channels: width C of the map, a multiple of `heads`.
        token_channels: width of the tokens.
        heads: number of heads.

    Raises:
        ValueError: if the width is no multiple of the heads.
    """

    def __init__(self, channels: int, token_channels: int, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(token_channels, 2 * head_dim(channels, heads))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Map x `(N, H, W, C)` and tokens `(N, T, D)` to `(N, H, W, C)`."""
        k, v = self.kv(tokens)[:, None].chunk(2, -1)
        return self.out(attend_shared(self.q(x).flatten(1, 2)[:, None], k, v).view_as(x))


def head_dim(channels: int, heads: int) -> int:
    """Return channels / heads, or raise ValueError if that is no whole number."""
    if heads < 1 or channels < 1 or channels % heads:
        raise ValueError(f"a width of {channels} is no multiple of {heads} heads: change widths or heads")
    return channels // heads
