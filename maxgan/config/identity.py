"""Configs as plain values: which of them make a run another run, and in what two differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

# Sections and fields that don't change what is learned: a run may be continued with other values of these.
FREE = (
    "run", "evaluation", "watchdog", "dry_run", "dry_classes", "test", "test_crop", "evaluate", "data.workers",
    "data.on_error", "data.streaming", "data.cache", "backbone.checkpointing", "ema.standing_images",
)  # fmt: skip


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested plain values (tuples become lists), ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def learning_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return those of a config's plain values (`to_dict`) that change what is learned."""
    free = {name for name in FREE if "." not in name}
    nested = {tuple(name.split(".")) for name in FREE if "." in name}
    return {
        section: {key: v for key, v in value.items() if (section, key) not in nested}
        if isinstance(value, dict)
        else value
        for section, value in settings.items()
        if section not in free
    }


def learning_hash(config: Any) -> str:
    """Return eight hexadecimal digits that change exactly when a setting that changes learning does."""
    text = json.dumps([type(config).__name__, learning_settings(to_dict(config))], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return a line `name: old -> new` for every setting in which two nested dicts differ."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines
