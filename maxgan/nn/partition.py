"""Block and grid partition of feature maps, and their inverses (MaxViT, arXiv 2204.01697, section 3.2).

With side P, a map of (H, W) splits in two ways:

- `block`: (H/P x W/P) windows of P x P neighbouring pixels;
- `grid`: (H/P x W/P) groups of P x P pixels that lie H/P and W/P apart, the cells of a fixed P x P grid.

Both views are the same six-axis reshape with the axes of group and member exchanged, so one permutation serves both.
Splitting the attention heads in the same permutation costs one copy instead of three.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Axis = Literal["block", "grid"]


def check_fit(height: int, width: int, size: int) -> None:
    """Raise ValueError unless windows of side `size` tile a map of (`height`, `width`)."""
    if size < 2:
        raise ValueError(f"window_size must be at least 2, not {size}: a window of one pixel mixes nothing")
    if height % size or width % size:
        raise ValueError(
            f"a feature map of {height} x {width} can't be split by window_size {size}: "
            f"use a window_size that divides both sides, or another resolution"
        )


def split(x: Tensor, size: int, axis: Axis, parts: int = 1, heads: int = 1) -> tuple[Tensor, ...]:
    """Split a map into groups of size * size tokens, and its channels into `parts` tensors of `heads` heads.

    Args:
        x: `(N, H, W, parts * heads * d)`.
        size: side P of the windows or of the grid.
        axis: `block` or `grid`.
        parts: number of tensors packed in the channels (3 for query, key and value).
        heads: attention heads of each.

    Returns:
        `parts` tensors of `(N * H/P * W/P, heads, P*P, d)`, groups and tokens in row-major order.
    """
    n, height, width, channels = x.shape
    check_fit(height, width, size)
    rows, columns, d = height // size, width // size, channels // (parts * heads)
    if axis == "block":
        x = x.reshape(n, rows, size, columns, size, parts, heads, d).permute(5, 0, 1, 3, 6, 2, 4, 7)
    else:
        x = x.reshape(n, size, rows, size, columns, parts, heads, d).permute(5, 0, 2, 4, 6, 1, 3, 7)
    return x.reshape(parts, n * rows * columns, heads, size * size, d).unbind(0)


def merge(x: Tensor, height: int, width: int, size: int, axis: Axis) -> Tensor:
    """Invert `split` for one tensor: `(N * H/P * W/P, heads, P*P, d)` to `(N, H, W, heads * d)`."""
    _, heads, _, d = x.shape
    rows, columns = height // size, width // size
    x = x.reshape(-1, rows, columns, heads, size, size, d)
    x = x.permute(0, 1, 4, 2, 5, 3, 6) if axis == "block" else x.permute(0, 4, 1, 5, 2, 3, 6)
    return x.reshape(-1, height, width, heads * d)
