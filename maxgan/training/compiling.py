"""Compiled networks: torch.compile in place, so that modules, weights and files keep their names."""

from __future__ import annotations

import os
import tempfile
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from maxgan.config import CompileMode


class Compiling:
    """What `run.compile` does to a training: nothing, or networks that run as compiled code.

    Shapes are those of micro-batches and don't change, so every network is compiled once for each way in which it is
    used: with gradients of its weights, of its input alone, and without.

    Args:
        mode: `none`, `inductor`, or `cudagraphs`, which also records the kernels of a pass and replays them.
        device: of the networks; on `meta` there is nothing to compile.
        accumulation: micro-batches of an update.

    Raises:
        ValueError: if nothing can be compiled here, or CUDA graphs are asked for where they can't be.
    """

    def __init__(self, mode: CompileMode, device: torch.device, accumulation: int = 1) -> None:
        self.on = mode != "none" and device.type != "meta"
        self.graphs = self.on and mode == "cudagraphs"
        if self.graphs and device.type != "cuda":
            raise ValueError(f"run.compile cudagraphs needs a CUDA device, and this is {device.type}: take inductor")
        if self.graphs and accumulation > 1:
            # A graph writes gradients to the same place each time (pytorch#169545).
            raise ValueError(
                f"run.compile cudagraphs can't sum gradients over training.accumulation {accumulation} micro-batches: "
                "take inductor"
            )
        if self.on:
            _try(device)

    def apply(self, network: nn.Module) -> None:
        """Let a network run as compiled code from its next call on."""
        if self.on:
            # Not network.forward: what accelerate wraps around that later is compiled with it.
            network.compile(dynamic=False, mode="reduce-overhead" if self.graphs else None)

    def begin(self) -> None:
        """Start an update: graphs may use the memory of the last one again."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def eager(self, needed: bool = True) -> AbstractContextManager[Any]:
        """Return a context in which networks run as they are written, if that is needed.

        Compiled code has no second derivative (pytorch#91469). A graph gives its results in memory that the next one
        writes to, which is too little where several passes have one backward pass.
        """
        return torch.compiler.set_stance("force_eager") if self.on and needed else nullcontext()

    def keep(self, result: Tensor) -> Tensor:
        """Return what a network gave in memory of its own, as the next graph writes to that of this one."""
        return result.clone() if self.graphs else result


def _try(device: torch.device) -> None:
    """Raise ValueError with one sentence where torch.compile has no working compiler."""

    def probe(x: Tensor) -> Tensor:
        return x.sin() + x

    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    # What was compiled once would be taken from the cache without any compiler.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[variable] = folder
        try:
            torch.compile(probe)(torch.ones(8, device=device))
        except Exception as error:  # of any kind: the compiler, Triton, or what they need may be missing or broken
            reason = str(error).strip().partition("\n")[0] or repr(error)
            needs = "Triton and a C compiler" if device.type == "cuda" else "a C++ compiler such as g++"
            raise ValueError(
                f"run.compile needs {needs}, which fails here ({reason}): mend that, or set run.compile none"
            ) from error
        finally:
            os.environ.pop(variable)
            if before is not None:
                os.environ[variable] = before
