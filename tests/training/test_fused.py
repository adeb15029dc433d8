"""The fused Adam of the trainers: the formula, loss scales, and checkpoints of another one."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from maxgan.config import DiscriminatorConfig, GanConfig, GeneratorConfig, ImageFacts
from maxgan.runtime import fused_on
from maxgan.training.gan import GanTrainer

CPU = torch.device("cpu")


def gradients(shapes: list[torch.Size], steps: int) -> Iterator[list[Tensor]]:
    source = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield [torch.randn(shape, generator=source, dtype=torch.float64) for shape in shapes]


def test_it_is_adam_with_rates_and_betas_that_change() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(7, 13)).double()
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, 1.0, (0.9, 0.9), 1e-8, fused=fused_on(CPU))
    assert optimizer.param_groups[0]["fused"]
    plain = [p.detach().clone() for p in parameters]
    first, second = ([torch.zeros_like(p) for p in plain] for _ in range(2))
    group = optimizer.param_groups[0]
    for t, drawn in enumerate(gradients([p.shape for p in plain], 12), 1):
        # As schedules and lazy penalties set them: torch corrects the bias by the betas of the newest update.
        lr, beta1, beta2 = 1e-2 / t, 0.5 / t, 0.99 ** (t / 3)
        group["lr"], group["betas"] = lr, (beta1, beta2)
        for p, gradient in zip(parameters, drawn, strict=True):
            p.grad = gradient.clone()
        optimizer.step()
        for p, gradient, m, v in zip(plain, drawn, first, second, strict=True):
            m.copy_(beta1 * m + (1 - beta1) * gradient)
            v.copy_(beta2 * v + (1 - beta2) * gradient**2)
            p -= lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + 1e-8)
    for p, expected in zip(parameters, plain, strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)


def test_an_update_that_overflows_is_left_out_and_others_lose_the_loss_scale() -> None:
    Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    one, two = nn.Linear(4, 3), nn.Linear(4, 3)
    two.load_state_dict(one.state_dict())
    scaled = AcceleratedOptimizer(torch.optim.Adam(one.parameters(), 0.1, fused=fused_on(CPU)), False, scaler)
    plain = torch.optim.Adam(two.parameters(), 0.1)
    for spoilt in (False, True, False):
        x = torch.randn(2, 4)
        before = copy.deepcopy(one.state_dict())
        scaler.scale(one(x).square().sum()).backward()
        if spoilt:
            one.weight.grad[0, 0] = torch.inf
        else:
            two(x).square().sum().backward()
            plain.step()
        scaled.step()
        scaled.zero_grad()
        plain.zero_grad()
        if spoilt:
            assert all(torch.equal(before[name], p) for name, p in one.state_dict().items())
            assert scaler.get_scale() == 512
        for p, expected in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(p, expected)


def test_trainers_take_it_and_go_on_from_checkpoints_of_the_plain_one() -> None:
    config = GanConfig(
        generator=GeneratorConfig(latent_dim=8, width=8, head_dim=8, latent_tokens=4),
        discriminator=DiscriminatorConfig(1 / 128, 8),
    )
    trainer = GanTrainer(config, ImageFacts(16, 1, 10), Accelerator(cpu=True))
    for optimizer in (trainer.optimizer_g, trainer.optimizer_d):
        assert all(group["fused"] for group in optimizer.param_groups)

    torch.manual_seed(0)
    one = nn.Linear(4, 3).double()
    two = copy.deepcopy(one)
    optimizers = torch.optim.Adam(one.parameters(), 0.1), torch.optim.Adam(two.parameters(), 0.1, fused=fused_on(CPU))
    for t, drawn in enumerate(gradients([p.shape for p in one.parameters()], 4)):
        if t == 2:
            two.load_state_dict(one.state_dict())
            optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        for network, optimizer in zip((one, two), optimizers, strict=True):
            for p, gradient in zip(network.parameters(), drawn, strict=True):
                p.grad = gradient.clone()
            if t >= 2 or network is one:
                optimizer.step()
    for p, expected in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-14)
    assert fused_on(torch.device("meta")) is None


@pytest.mark.gpu
def test_it_is_fused_on_a_gpu() -> None:
    network = nn.Linear(4, 3, device="cuda")
    optimizer = torch.optim.Adam(network.parameters(), fused=fused_on(torch.device("cuda")))
    network(torch.ones(2, 4, device="cuda")).sum().backward()
    optimizer.step()
    assert optimizer.state[network.weight]["step"].device.type == "cuda"
