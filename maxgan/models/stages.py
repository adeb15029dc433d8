"""Sides, widths, depths, orders and windows of the stages of a network: by a rule, or as the settings give them.

`section` is the part of the config that an error names, such as `generator`.
"""

from __future__ import annotations

from collections.abc import Sequence


def stage_sides(section: str, base: int, resolution: int) -> list[int]:
    """Return the sides of the maps of a generator, from `base`, each twice the one before, to the resolution.

    Raises:
        ValueError: if `base` is no power of two from 4 to the resolution.
    """
    if base < 4 or base & (base - 1) or base > resolution:
        raise ValueError(
            f"{section}.base_resolution must be a power of two from 4 to the resolution {resolution}, not {base}"
        )
    return [base << i for i in range((resolution // base).bit_length())]


def stage_widths(
    section: str, rule: Sequence[int], widths: tuple[int, ...] | None, head_dim: int | None = None
) -> tuple[int, ...]:
    """Return the channels of every stage: `widths`, or those of the rule, but never less than one head.

    Args:
        head_dim: channels of a head; None where there are no heads.

    Raises:
        ValueError: if `widths` has another length than the rule, a width is below 1, or no multiple of head_dim.
    """
    if head_dim is not None and head_dim < 1:
        raise ValueError(f"{section}.head_dim must be at least 1, not {head_dim}")
    if widths is None:
        setting, widths = "width", tuple(max(width, head_dim or 0) for width in rule)
    else:
        setting = "widths"
        _check_length(f"{section}.widths", widths, len(rule))
    if head_dim is None:
        if min(widths) < 1:
            raise ValueError(f"{section}.{setting} must be at least 1 in every stage, not {widths}")
        return widths
    if any(width < 1 or width % head_dim for width in widths):
        raise ValueError(
            f"the stages' widths {widths} must be multiples of {section}.head_dim {head_dim}: "
            f"change {section}.{setting} or {section}.head_dim"
        )
    return widths


def stage_depths(section: str, stages: int, depth: int, depths: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the number of MaxViT blocks of every stage: `depths`, or `depth` in all.

    Raises:
        ValueError: if `depths` has another length than there are stages, or a stage has no block.
    """
    if depths is None:
        depths = (depth,) * stages
    _check_length(f"{section}.depths", depths, stages)
    if min(depths) < 1:
        raise ValueError(f"{section}.depths must be at least 1 in every stage, not {depths}")
    return depths


def stage_orders(section: str, stages: int, order: str, orders: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the order of the blocks of every stage: `orders` in the last ones, `order` in those before.

    Raises:
        ValueError: if `orders` has more entries than there are stages.
    """
    last = orders or ()
    if len(last) > stages:
        raise ValueError(
            f"{section}.orders {last} has {len(last)} entries, but there are {stages} stages: give at most one for each"
        )
    return (order,) * (stages - len(last)) + last


def stage_windows(
    section: str, sides: Sequence[int], window_size: int, window_sizes: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Return the side of the windows on maps of each of `sides`: `window_sizes`, or window_size but at most the map.

    Raises:
        ValueError: if `window_sizes` has another length than there are stages, for windows below 2, and for windows
            that don't divide their map.
    """
    if window_sizes is None:
        setting, windows = "window_size", tuple(min(window_size, side) for side in sides)
        advice = "use a power of two of at least 2"
    else:
        setting, windows = "window_sizes", window_sizes
        advice = "use a divisor of at least 2"
        _check_length(f"{section}.window_sizes", window_sizes, len(sides))
    for side, window in zip(sides, windows, strict=True):
        if window < 2 or side % window:
            raise ValueError(f"{section}.{setting} {window} does not fit the {side} x {side} map: {advice}")
    return windows


def _check_length(setting: str, values: tuple[int, ...] | tuple[str, ...], stages: int) -> None:
    if len(values) != stages:
        raise ValueError(
            f"{setting} {values} has {len(values)} entries, but there are {stages} stages: give one for each"
        )
