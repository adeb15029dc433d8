"""What is counted, against sums by hand and torch's own counter where that is right."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maxgan.models import MaxViTGenerator, ResidualDiscriminator
from maxgan.nn.mbconv import MBConv
from maxgan.training.cost import Cost, Kept

DEVICES = ["cpu", "meta"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_linear_layer_by_hand(device: str) -> None:
    layer = nn.Linear(8, 16, device=device)
    x = torch.randn(10, 8, device=device)
    with Cost() as cost:
        y = layer(x)
    # Reads x, the weight and the bias, and writes y: of 4 bytes each.
    assert cost.multiply_adds == 10 * 8 * 16
    assert cost.traffic() == cost.traffic(products_only=True) == 4 * (80 + 128 + 16 + 160)
    with Cost() as cost:
        y.mean().backward()
    assert cost.multiply_adds == 10 * 8 * 16  # the weight's gradient; x asks for none


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("groups", [1, 12])
def test_a_convolution_and_its_gradients_by_hand(device: str, groups: int) -> None:
    convolution = nn.Conv2d(12, 24, 3, stride=2, padding=1, groups=groups, device=device)
    x = torch.randn(2, 12, 8, 8, device=device, requires_grad=True)
    once = 2 * 4 * 4 * 24 * (12 // groups) * 9  # images, places, channels out, channels in of a group, kernel
    with Cost() as cost:
        y = convolution(x)
    assert cost.multiply_adds == once
    with Cost() as cost:
        y.sum().backward()
    assert cost.multiply_adds == 2 * once


def test_views_and_expanded_tensors_move_what_they_hold() -> None:
    x = torch.zeros(6, 4)
    with Cost() as cost:
        x.view(4, 6).t().unsqueeze(0).expand(5, 6, 4)
    assert cost.traffic() == 0
    wide = x[:1].expand(100, 4)
    with Cost() as cost:
        wide + 1
    assert cost.traffic() == 6 * 4 * 4 + 100 * 4 * 4


def test_seconds_are_those_of_the_slower_of_arithmetic_and_memory() -> None:
    x = torch.zeros(8, 8)
    with Cost() as cost:
        x @ x  # 512 multiply-adds, 768 bytes
        x + x  # 768 bytes
    assert cost.seconds(rate=512, bandwidth=768e3) == pytest.approx(1 + 1e-3)
    assert cost.seconds(rate=512e3, bandwidth=768) == pytest.approx(2)


def test_networks_without_groups_agree_with_torchs_counter() -> None:
    # Second derivatives included; the generator's without its depthwise convolutions, the blur's are torch's too.
    discriminator = ResidualDiscriminator(16, 3, max_width=16)
    generator = MaxViTGenerator(16, 3, 0, width=16, head_dim=8, latent_dim=8, latent_tokens=4, order="GA-BA")
    with Cost() as cost, FlopCounterMode(display=False) as counter:
        images = generator(torch.randn(2, 8))
        (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
        gradient.square().sum().backward()
    assert counter.get_total_flops() == 2 * cost.multiply_adds > 0


def test_the_gradient_of_a_depthwise_kernel_is_not_that_of_a_dense_one() -> None:
    block = MBConv(16, 16)
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    with Cost() as forward:
        y = block(x)
    with Cost() as backward:
        y.sum().backward()
    assert backward.multiply_adds == 2 * forward.multiply_adds
    with FlopCounterMode(display=False) as counter:
        block(x).sum().backward()
    if counter.get_total_flops() < 10 * (forward.multiply_adds + backward.multiply_adds):
        pytest.fail("torch counts grouped convolutions rightly now: cost.py may take its FlopCounterMode")


@pytest.mark.parametrize("device", DEVICES)
def test_kept_activations_by_hand(device: str) -> None:
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(device)
    x = torch.randn(10, 8, device=device)
    with Kept(network.parameters()) as kept:
        y = network(x)
        # x, and the output of ReLU, which ReLU and the second layer share; no weight.
        assert kept.now == kept.peak == 4 * (80 + 160)
        y.sum().backward()
        assert (kept.now, kept.peak) == (0, 4 * (80 + 160))
        # Two at once, one after the other let go.
        first, second = network(x), network(x)
        assert kept.now == kept.peak == 4 * (80 + 2 * 160)
        del first
        assert kept.now == 4 * (80 + 160)
        del second
    assert (kept.now, kept.peak) == (0, 4 * (80 + 2 * 160))
