from __future__ import annotations

import pytest
import torch

from maxgan.nn.partition import Axis, check_fit, merge, split

AXES: list[Axis] = ["block", "grid"]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 4), (6, 12, 3), (4, 4, 4), (14, 7, 7)])
def test_merge_inverts_split_for_every_part(axis: Axis, height: int, width: int, size: int) -> None:
    x = torch.randn(2, height, width, 3 * 2 * 5)
    parts = split(x, size, axis, parts=3, heads=2)
    assert [tuple(p.shape) for p in parts] == [(2 * height * width // size**2, 2, size * size, 5)] * 3
    # Channels are packed part by part, then head by head.
    for part, channels in zip(parts, x.chunk(3, dim=-1), strict=True):
        torch.testing.assert_close(merge(part, height, width, size, axis), channels, rtol=0, atol=0)


@pytest.mark.parametrize("axis", AXES)
def test_members_are_neighbours_in_blocks_and_strided_in_grids(axis: Axis) -> None:
    height, width, size, heads = 6, 9, 3, 2
    # Every channel of a pixel holds the pixel's number and its own: n, y, x, channel.
    images = torch.stack(torch.meshgrid(*map(torch.arange, (2, height, width, heads * 4)), indexing="ij"), -1)
    (groups,) = split((images * torch.tensor([1000, 100, 10, 1])).sum(-1), size, axis, heads=heads)
    rows, columns = height // size, width // size
    expected = torch.empty(2 * rows * columns, heads, size * size, 4, dtype=torch.long)
    group = 0
    for n in range(2):
        for row in range(rows):
            for column in range(columns):
                for head in range(heads):
                    for i in range(size):
                        for j in range(size):
                            if axis == "block":
                                y, x = row * size + i, column * size + j
                            else:
                                y, x = row + i * (height // size), column + j * (width // size)
                            first = 1000 * n + 100 * y + 10 * x + 4 * head
                            expected[group, head, i * size + j] = torch.arange(first, first + 4)
                group += 1
    torch.testing.assert_close(groups, expected, rtol=0, atol=0)


def test_a_window_of_one_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="window_size must be at least 2, not 1"):
        check_fit(8, 8, 1)


@pytest.mark.parametrize(("height", "width"), [(9, 8), (8, 9)])
@pytest.mark.parametrize("axis", AXES)
def test_a_window_that_does_not_divide_the_map_is_refused(axis: Axis, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height} x {width} can't be split by window_size 4"):
        split(torch.zeros(1, height, width, 2), 4, axis)


@pytest.mark.parametrize("axis", AXES)
def test_the_split_is_one_copy(axis: Axis) -> None:
    q, k, v = split(torch.randn(2, 8, 8, 3 * 2 * 4), 4, axis, parts=3, heads=2)
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    assert q.is_contiguous()
