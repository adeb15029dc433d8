"""Timing for the benchmarks: contestants measured in turn, and the machine's own rates."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from maxgan.files import atomic_path

MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}


@dataclass
class Contestant:
    """Something that is timed: a model in one setting, or the matrix product."""

    name: str
    run: Callable[[], object]
    work: float
    """What one run does: images, operations, or bytes."""
    repeats: int = 1
    rates: list[float] = field(default_factory=list)
    """Work a second, one of each round."""


def measure(contestants: list[Contestant], rounds: int, seconds: float, device: torch.device) -> None:
    """Warm every contestant up, then time all of them in every round, for at least `seconds` each."""
    for contestant in contestants:
        contestant.run()  # compiles, and fills caches
        contestant.repeats = math.ceil(seconds / duration(contestant, device))
    for i in range(rounds):
        first = i % len(contestants)
        for contestant in contestants[first:] + contestants[:first]:
            elapsed = duration(contestant, device)
            contestant.rates.append(contestant.repeats * contestant.work / elapsed)


def duration(contestant: Contestant, device: torch.device) -> float:
    """Return the seconds that the contestant's repeats take."""
    # Of one thread the time of the process tells the same, without that of others that run beside it.
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    synchronize(device)
    begin = clock()
    for _ in range(contestant.repeats):
        contestant.run()
    synchronize(device)
    return clock() - begin


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def matrix_product(device: torch.device, dtype: torch.dtype) -> Contestant:
    """Return a large matrix product, whose work is its operations, two a multiply-add."""
    side = MATMUL_SIDE.get(device.type, MATMUL_SIDE["cuda"])
    factors = [torch.randn(side, side, device=device, dtype=dtype) for _ in range(2)]
    return Contestant("matrix product", lambda: factors[0] @ factors[1], 2 * side**3)


def copy(device: torch.device) -> Contestant:
    """Return a copy too large for caches, whose work is the bytes read and written."""
    size = COPY_BYTES.get(device.type, COPY_BYTES["cuda"])
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return Contestant("copy", lambda: target.copy_(source), 2 * size)


def write_report(report: dict[str, Any], output: str | Path | None) -> None:
    """Write what was measured as JSON, whole or not at all, or print it on a line where there is no file for it."""
    if output is None:
        print("\n" + json.dumps(report))
        return
    with atomic_path(output) as path:
        path.write_text(json.dumps(report, indent=2) + "\n")


def environment(device: torch.device) -> dict[str, Any]:
    """Return what figures depend on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(": ")[2] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
    }
