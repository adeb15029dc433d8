"""Means of metrics over an interval of updates, kept on the device until they are read."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


class Meters:
    """Sums of scalar metrics since the last `read`; part of a checkpoint, so that a resumed run logs the same means."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one update's scalars, without waiting for the device."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all updates and processes, and start anew; every process must call this."""
        names = sorted(self.sums)
        if not names:
            return {}
        means = torch.stack([self.sums[name] / self.counts[name] for name in names])
        means = accelerator.reduce(means, reduction="mean")
        self.sums, self.counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))

    def share(self, accelerator: Accelerator) -> None:
        """Give every process the mean of all their sums, as a checkpoint has to hold one for them all.

        Those that go on have the same sums then as those that resume, so both log the same numbers, bit for bit.
        """
        names = sorted(self.sums)
        if names and accelerator.num_processes > 1:
            sums = accelerator.reduce(torch.stack([self.sums[name] for name in names]), reduction="mean")
            self.sums = dict(zip(names, sums.unbind(), strict=True))

    def state(self) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Return counts and sums for a checkpoint."""
        return dict(self.counts), dict(self.sums)

    def restore(self, counts: dict[str, Any], sums: dict[str, Tensor], device: torch.device) -> None:
        """Take back what `state` gave."""
        self.counts = {name: int(count) for name, count in counts.items()}
        self.sums = {name: value.to(device) for name, value in sums.items()}
