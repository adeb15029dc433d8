from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from maxgan.models.stages import stage_depths, stage_orders, stage_widths, stage_windows


def test_rules_hold_unless_settings_are_given() -> None:
    assert stage_widths("g", [64, 32, 8], None, 16) == (64, 32, 16)
    assert stage_widths("g", [64, 32, 8], (16, 48, 32), 16) == (16, 48, 32)
    assert stage_depths("g", 3, 2, None) == (2, 2, 2)
    assert stage_depths("g", 3, 2, (1, 5, 2)) == (1, 5, 2)
    assert stage_orders("g", 3, "GA-C", None) == ("GA-C",) * 3
    assert stage_orders("g", 3, "GA-C", ("BA-C", "C")) == ("GA-C", "BA-C", "C")
    assert stage_windows("g", [4, 8, 16], 8, None) == (4, 8, 8)
    assert stage_windows("g", [4, 8, 16], 8, (2, 4, 16)) == (2, 4, 16)
    assert stage_windows("g", [6, 12], 4, (3, 4)) == (3, 4)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (stage_widths, ([8, 8], (8,), 8), r"g\.widths \(8,\) has 1 entries, but there are 2 stages: give one"),
        (stage_widths, ([8, 8], (8, 12), 8), r"\(8, 12\) must be multiples of g\.head_dim 8: change g\.widths or"),
        (stage_widths, ([24, 20], None, 8), r"\(24, 20\) must be multiples of g\.head_dim 8: change g\.width or"),
        (stage_widths, ([8], None, 0), r"g\.head_dim must be at least 1, not 0"),
        (stage_depths, (2, 1, (1, 1, 1)), r"g\.depths \(1, 1, 1\) has 3 entries, but there are 2 stages: give one"),
        (stage_depths, (2, 0, None), r"g\.depths must be at least 1 in every stage, not \(0, 0\)"),
        (
            stage_orders,
            (1, "C", ("C", "C")),
            r"g\.orders \('C', 'C'\) has 2 entries, but there are 1 stages: give at most",
        ),
        (stage_windows, ([4, 8], 8, (4,)), r"g\.window_sizes \(4,\) has 1 entries, but there are 2 stages: give one"),
        (stage_windows, ([4, 8], 6, None), r"g\.window_size 6 does not fit the 8 x 8 map: use a power of two"),
        (stage_windows, ([4, 8], 8, (4, 16)), r"g\.window_sizes 16 does not fit the 8 x 8 map: use a divisor"),
        (stage_windows, ([4, 8], 8, (1, 8)), r"g\.window_sizes 1 does not fit the 4 x 4 map"),
    ],
)
def test_settings_that_do_not_fit(function: Callable[..., object], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function("g", *arguments)
