"""Start of a process: accelerator, threads, and an orderly end."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env

from maxgan.cli import PREEMPTED, PREEMPTIONS, available_cores

PATIENCE = timedelta(hours=1)
"""How long processes wait for one that works alone, such as the main one while it hashes a reference. NCCL's own ten
minutes are less than ImageNet takes from a slow disk."""
PR_SET_PDEATHSIG = 1
# glibc's malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
KEPT_FREE_BYTES = 2**31 - 1
TOP_PAD_BYTES = 1 << 28
MMAP_THRESHOLD_BYTES, MMAP_MAX = 1 << 25, 1 << 16


def start(threads: int | None = None, precision: str = "no", cpu: bool = False, **options: Any) -> Accelerator:
    """Return this process's Accelerator: on the GPU if there is one, else on the CPU, alone or with others.

    On a CPU each process gets its share of the machine's cores, whatever OMP_NUM_THREADS a launcher exported: plain
    `accelerate launch` sets it to 1, which would leave a single process on one core.

    Args:
        threads: CPU threads of this process; None shares the cores among the processes of this machine.
        precision: `no`, `bf16` or `fp16`.
        cpu: stay on the CPU although there is an accelerator.
        options: further arguments of Accelerator.

    Raises:
        ValueError: if the launcher asks for FSDP, DeepSpeed or Megatron-LM.
    """
    _refuse_sharding()
    cpu = cpu or not torch.accelerator.is_available()
    patient = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[patient], **options)
    if accelerator.device.type == "cpu" or threads is not None:
        torch.set_num_threads(threads or own_cores(accelerator))
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    _follow_launcher()
    return accelerator


def own_cores(accelerator: Accelerator) -> int:
    """Return the CPU cores that are this process's part of those of its machine, at least 1."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return max(1, available_cores() // max(1, local))


def fused_on(device: torch.device) -> bool | None:
    """Return `fused` for an optimiser of torch whose weights are on a device: True where one kernel does the step of
    all, in the same arithmetic, and None, which leaves the choice to torch, elsewhere."""
    return True if device.type in ("cpu", "cuda") else None


def _refuse_sharding() -> None:
    """Raise ValueError where weights would be divided among the processes, before anything is made of them.

    The moving average, the penalties of D, and checkpoints that hold no pickled objects need them whole.
    """
    for name, flag in (
        ("FSDP", "ACCELERATE_USE_FSDP"),
        ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"),
        ("Megatron-LM", "ACCELERATE_USE_MEGATRON_LM"),
    ):
        if parse_flag_from_env(flag):
            raise ValueError(
                f"{name} divides the weights among the processes, and maxgan needs them whole in each: set "
                "distributed_type to MULTI_GPU in the accelerate config, and backbone.checkpointing to save memory"
            )


@contextmanager
def keeping_memory(device: torch.device) -> Iterator[None]:
    """With glibc on a CPU, take all memory within from what this process has, and keep what is freed for the next time.

    By default blocks of 32 MB and more, such as the maps of a batch, are taken from the system and given back each
    time. To get their pages anew cost a third of the time of training a classifier with batches of 128 at 32 px.

    For work that is the same every time and leaves nothing behind: something small that stays, made between large
    blocks that go, keeps glibc from using their place again. Scoring 50,000 images so took 15 GB in place of one.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, KEPT_FREE_BYTES), (M_TOP_PAD, TOP_PAD_BYTES)):
        libc.mallopt(parameter, value)
    try:
        yield
    finally:
        # Large blocks are the system's again, and what has been kept waits for the next time. The threshold is where
        # glibc's own, which moves until it is set, ends up with tensors.
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        libc.mallopt(M_MMAP_MAX, MMAP_MAX)


def _follow_launcher() -> None:
    """On Linux, turn the death of the launcher into a SIGTERM here.

    `accelerate launch` does not pass SIGTERM on: killing it would leave the training running, unseen, in its run
    directory.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(signal.SIGTERM)


def end_with_parent(number: int) -> None:
    """On Linux, send this process a signal when its parent ends, in whatever way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def share_of(count: int, accelerator: Accelerator) -> range:
    """Return the contiguous range of 0 ... count - 1 that this process works on.

    Not accelerate's split_between_processes: with fewer items than processes it gives the last one several times.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    return range(count * rank // processes, count * (rank + 1) // processes)


class StopSignal:
    """Remembers SIGINT, SIGTERM and SIGUSR1, so that the work can stop at a good place; a second SIGINT stops at once.

    Use as a context manager; the earlier handlers come back at its end.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, *PREEMPTIONS):
            self._earlier[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, accelerator: Accelerator) -> int | None:
        """Return the signal that any process has received, the same answer in all of them."""
        if accelerator.num_processes == 1:
            return self.received
        flag = torch.tensor(self.received or 0, device=accelerator.device)
        return int(accelerator.gather(flag.reshape(1)).max().item()) or None


def exit_code(number: int) -> int:
    """Return the exit code of a run that was saved and stopped by a signal: 130 for SIGINT, else PREEMPTED."""
    return 128 + number if number == signal.SIGINT else PREEMPTED
