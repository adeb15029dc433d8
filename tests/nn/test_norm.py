from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maxgan.nn.norm import GhostBatchNorm2d, LayerNorm2d, make_norm


def randomise(norm: nn.BatchNorm2d) -> None:
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)


def test_layer_norm_is_over_the_channels() -> None:
    ours, truth = LayerNorm2d(6), nn.LayerNorm(6, eps=1e-5)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    truth.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 3, 5).contiguous(memory_format=torch.channels_last)
    out = ours(x)
    torch.testing.assert_close(out.permute(0, 2, 3, 1), truth(x.permute(0, 2, 3, 1)))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("group", [2, 3, 6])
def test_ghost_batch_norm_is_a_batch_norm_for_each_group(group: int) -> None:
    torch.manual_seed(0)
    channels, momentum = 4, 0.3
    ours = GhostBatchNorm2d(channels, group, momentum=momentum).double()
    randomise(ours)
    start = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    x = (torch.randn(6, channels, 3, 5, dtype=torch.float64) * 3 + 1).requires_grad_()
    weights = torch.randn_like(x)
    out = ours(x)
    (out * weights).sum().backward()

    separate, means, variances = [], [], []
    x_truth = x.detach().clone().requires_grad_()
    gradients = {"weight": torch.zeros(()), "bias": torch.zeros(())}
    for part, weight in zip(x_truth.split(group), weights.split(group), strict=True):
        truth = nn.BatchNorm2d(channels, eps=1e-3, momentum=momentum).double()
        truth.load_state_dict(start)
        separate.append(truth(part))
        (separate[-1] * weight).sum().backward()
        means.append(truth.running_mean)
        variances.append(truth.running_var)
        gradients = {name: gradients[name] + getattr(truth, name).grad for name in gradients}
    torch.testing.assert_close(out, torch.cat(separate))
    torch.testing.assert_close(x.grad, x_truth.grad)
    torch.testing.assert_close({name: getattr(ours, name).grad for name in gradients}, gradients)
    torch.testing.assert_close(ours.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(ours.running_var, torch.stack(variances).mean(0))
    assert ours.num_batches_tracked == start["num_batches_tracked"] + 1


def test_an_image_depends_on_its_group_alone() -> None:
    norm = GhostBatchNorm2d(3, 2)
    x = torch.randn(4, 3, 4, 4)
    other = torch.cat([x[:2], torch.randn(2, 3, 4, 4)])
    assert torch.equal(norm(x)[:2], norm(other)[:2])


def test_ghost_batch_norm_has_second_derivatives() -> None:
    norm = GhostBatchNorm2d(2, 2).double()
    x = torch.randn(4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,), fast_mode=True)


def test_evaluation_is_plain_batch_norm_for_any_number_of_images() -> None:
    ours, truth = GhostBatchNorm2d(4, 8), nn.BatchNorm2d(4, eps=1e-3)
    randomise(ours)
    truth.load_state_dict(ours.state_dict())
    ours.eval()
    truth.eval()
    x = torch.randn(5, 4, 3, 3)
    assert torch.equal(ours(x), truth(x))
    torch.testing.assert_close(ours.state_dict(), truth.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("group", [2, 4])
def test_ghost_batch_norm_keeps_channels_last_and_the_type(group: int) -> None:
    x = torch.randn(4, 3, 2, 2, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    out = GhostBatchNorm2d(3, group)(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == torch.bfloat16


def test_statistics_of_bfloat16_maps_are_taken_in_float32() -> None:
    # In bfloat16 the mean of 513 equal numbers is wrong by percents.
    x = torch.full((4, 1, 16, 16), 1.01).bfloat16()
    norm = GhostBatchNorm2d(1, 2, momentum=1.0)
    norm(x)
    torch.testing.assert_close(norm.running_mean, x[0, 0, 0, :1].float(), rtol=1e-6, atol=0)


def test_a_batch_that_does_not_split_into_groups_is_refused() -> None:
    norm = GhostBatchNorm2d(3, 4)
    before: dict[str, Tensor] = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    with pytest.raises(ValueError, match=r"6 images don't split into groups of 4: make the generator's norm_group"):
        norm(torch.randn(6, 3, 2, 2))
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_norms_by_name_have_the_official_constants() -> None:
    batch = make_norm("batch", 5)
    assert type(batch) is nn.BatchNorm2d
    assert (batch.num_features, batch.eps, batch.momentum) == (5, 1e-3, 0.01)
    ghost = make_norm("batch", 5, 8)
    assert isinstance(ghost, GhostBatchNorm2d)
    assert (ghost.group, ghost.eps, ghost.momentum) == (8, 1e-3, 0.01)
    layer = make_norm("layer", 5)
    assert isinstance(layer, LayerNorm2d)
    assert layer.eps == 1e-5
    with pytest.raises(ValueError, match="norm must be batch, layer or none, not 'instance'"):
        make_norm("instance", 5)
    with pytest.raises(ValueError, match="norm_group must be at least 2, not 1"):
        make_norm("batch", 5, 1)
    with pytest.raises(ValueError, match="norm_group is for norm: batch"):
        make_norm("layer", 5, 8)
