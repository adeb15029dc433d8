from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from maxgan.config import BackboneConfig
from maxgan.models import MaxViT
from maxgan.nn.norm import GhostBatchNorm2d
from maxgan.training.sync_norm import share_statistics, sync_norms


def gpus(count: int) -> Any:
    """What is asked of an accelerator with GPUs."""
    return cast(Accelerator, SimpleNamespace(device=torch.device("cuda"), num_processes=count))


def test_every_batch_norm_is_replaced_and_keeps_its_parameters() -> None:
    torch.manual_seed(0)
    network = MaxViT(16, 1, 3, config=BackboneConfig(widths=(16, 16), window_size=2))
    parameters, names = list(network.parameters()), list(network.state_dict())
    count = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    images = torch.randn(2, 1, 16, 16)
    expected = network.eval()(images)
    assert sync_norms(network, gpus(1)) is network
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == count
    synced = sync_norms(network, gpus(2))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in synced.modules()) == count > 0
    assert not any(isinstance(module, nn.BatchNorm2d) for module in synced.modules())
    assert list(synced.state_dict()) == names
    assert all(a is b for a, b in zip(synced.parameters(), parameters, strict=True))
    torch.testing.assert_close(synced.eval()(images), expected)


def test_checkpointing_counts_a_synchronised_batch_once() -> None:
    networks = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = BackboneConfig(widths=(16, 16), window_size=2, checkpointing=checkpointing)
        # Outside of a process group, the layers compute as those of one process do, on a CPU too.
        networks.append(sync_norms(MaxViT(16, 1, 3, config=config), gpus(2)).train())
        networks[-1](torch.ones(2, 1, 16, 16).cumsum(3)).sum().backward()
    for (name, a), b in zip(networks[0].named_buffers(), networks[1].buffers(), strict=True):
        assert torch.equal(a, b), name


def test_what_can_not_be_synchronised_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training.sync_batchnorm needs GPUs, and this is a CPU: leave it out"):
        sync_norms(nn.Sequential(nn.BatchNorm2d(2)), Accelerator(cpu=True))
    with pytest.raises(ValueError, match=r"training.sync_batchnorm is set, but there is no BatchNorm"):
        sync_norms(nn.Sequential(nn.LayerNorm(2)), gpus(2))
    with pytest.raises(ValueError, match="norm_group takes statistics over few images on purpose"):
        sync_norms(nn.Sequential(GhostBatchNorm2d(2, 2)), gpus(2))


def test_running_statistics_become_the_mean_of_all_processes() -> None:
    def network() -> nn.Module:
        found = nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(2), GhostBatchNorm2d(3, 2))
        for _ in range(3):
            found(torch.randn(4, 3, 2, 2) + 1)
        return found

    torch.manual_seed(0)
    ours, theirs = network(), network()
    names = [name for name in ours.state_dict() if "running" in name]
    flat = torch.cat([theirs.state_dict()[name] for name in names])
    expected = {name: (ours.state_dict()[name] + theirs.state_dict()[name]) / 2 for name in names}
    two = SimpleNamespace(num_processes=2, reduce=lambda own, reduction: {"mean": (own + flat) / 2}[reduction])
    share_statistics(ours, cast(Accelerator, two))
    share_statistics(ours, Accelerator(cpu=True))  # alone, nothing changes
    assert len(names) == 4
    for name in names:
        assert torch.equal(ours.state_dict()[name], expected[name]), name
