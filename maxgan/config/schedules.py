"""Settings that change with the images seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """A setting that changes with the images seen, from `start` to `end`, and then stays there."""

    start: float
    """Its value at the first image."""
    end: float
    """Its value after `over` images."""
    over: int | None = None
    """Images that the change takes; unset: training.images."""
    shape: Literal["cosine", "linear"] = "cosine"
    """`cosine`, half a period, flat at both ends; or `linear`."""

    def __post_init__(self) -> None:
        if self.over is not None and self.over < 1:
            raise ValueError(f"over, the images that a schedule takes, must be at least 1, not {self.over}")


Scheduled = float | Schedule
"""A number, or {start: ..., end: ...} with the fields of `Schedule`."""
Gamma = float | Literal["auto"] | Schedule


def values_of(setting: Scheduled) -> tuple[float, ...]:
    """Return both ends of a schedule, or the one value of a setting that stays: what a range can be checked by."""
    return (setting.start, setting.end) if isinstance(setting, Schedule) else (setting,)
