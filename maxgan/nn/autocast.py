"""Arithmetic that mixed precision must leave alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which operations on `device` take the types of their arguments, whatever autocast is on."""
    # Of the meta device, on which a dry run counts, there is no autocast to be switched off.
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
