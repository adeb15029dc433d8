"""BatchNorm over the images of all processes."""

from __future__ import annotations

from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import nn

from maxgan.nn.norm import GhostBatchNorm2d

N = TypeVar("N", bound=nn.Module)


def sync_norms(network: N, accelerator: Accelerator) -> N:
    """Return `network` with its BatchNorm statistics taken over all processes; the parameters stay the same objects.

    Alone, a process has all images of a micro-batch already, and nothing changes.

    Raises:
        ValueError: if `network` has no BatchNorm or one of groups, or on a CPU, for which PyTorch has none such.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        raise ValueError("training.sync_batchnorm is set, but there is no BatchNorm to synchronise: leave it out")
    if any(isinstance(norm, GhostBatchNorm2d) for norm in norms):
        raise ValueError(
            "training.sync_batchnorm is set, but norm_group takes statistics over few images on purpose: set one"
        )
    if accelerator.device.type == "cpu":
        raise ValueError("training.sync_batchnorm needs GPUs, and this is a CPU: leave it out")
    if accelerator.num_processes == 1:
        return network
    converted: N = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted


@torch.no_grad()
def share_statistics(network: nn.Module, accelerator: Accelerator) -> None:
    """Give BatchNorm's running statistics the mean of all processes; every process must call this.

    DistributedDataParallel hands on those of the first process, which saw its own images alone, and at its next forward
    pass only: averages of the others would be other networks. With groups of images (ghost BatchNorm) the mean is what
    one process with all images has.

    Args:
        network: not wrapped.
        accelerator: of this process.
    """
    if accelerator.num_processes == 1:
        return
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    means = accelerator.reduce(torch.cat(statistics), reduction="mean")
    for own, mean in zip(statistics, means.split([len(s) for s in statistics]), strict=True):
        own.copy_(mean)
