"""Checks that several configs share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from maxgan.config.identity import differences, to_dict

WIDEST = 12**-0.5
"""sigma_rel of the plain mean of all weights so far (EDM2, arXiv 2312.02696); wider profiles favour the oldest."""


def at_least(config: Any, **least: int) -> None:
    """Raise ValueError for the first field that is set and less than what it must be."""
    for name, value in least.items():
        given = getattr(config, name)
        if given is not None and given < value:
            raise ValueError(f"{name} must be at least {value}, not {given}")


def refuse_idle(config: Any, section: str, names: Sequence[str], remedy: str) -> None:
    """Raise ValueError for the first of some fields that has another value than its default where nothing heeds it.

    Args:
        config: the section.
        section: its name.
        names: of the fields.
        remedy: what they are for, and what to set for it.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in names:
        given = getattr(config, name)
        if given != defaults[name]:
            raise ValueError(f"{section}.{name} {given} is for {remedy}, or leave it out")


def changed(config: Any, section: str) -> str | None:
    """Return the first field of a section that has another value than the section's default, if there is one."""
    default: Any = next(field for field in dataclasses.fields(config) if field.name == section).default_factory
    changes = differences(to_dict(default()), to_dict(getattr(config, section)))
    return changes[0].partition(":")[0] if changes else None
