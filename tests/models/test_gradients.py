"""First and second derivatives of every network of a GAN, at every resolution."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from maxgan.models import HiTGenerator, MaxViTDiscriminator, MaxViTGenerator, Network, ResidualDiscriminator
from maxgan.models.latent import LatentGenerator


def generator(resolution: int, channels: int, num_classes: int, **settings: Any) -> MaxViTGenerator:
    tiny = {"latent_dim": 8, "width": 4, "head_dim": 4, "latent_tokens": 3}
    return MaxViTGenerator(resolution, channels, num_classes, **tiny, **settings)


def hit(resolution: int, channels: int, num_classes: int) -> HiTGenerator:
    stages = resolution.bit_length() - 3
    tiny = {"widths": (8,) * stages, "depths": (1,) * stages, "heads": (2,) * stages, "latent_tokens": 3}
    return HiTGenerator(resolution, channels, num_classes, latent_dim=8, norm_group=2, **tiny)


NETWORKS: dict[str, Callable[[int, int, int], Network]] = {
    "generator": generator,
    "generator, BatchNorm": partial(generator, norm="batch", norm_group=2),
    "generator, HiT": hit,
    "residual": partial(ResidualDiscriminator, max_width=8),
    "residual, equalized": partial(ResidualDiscriminator, max_width=8, equalized_lr=True),
    "maxvit": partial(MaxViTDiscriminator, width=4, head_dim=4, depth=1),
}


def cases() -> list[Any]:
    sizes = [(kind, resolution) for kind in NETWORKS for resolution in (16, 32, 64, 128, 256)]
    sizes.remove(("generator, HiT", 16))  # it begins at 32 px
    slow = [resolution > (32 if kind.startswith("generator") else 64) for kind, resolution in sizes]
    return [pytest.param(*size, marks=pytest.mark.slow if s else ()) for size, s in zip(sizes, slow, strict=True)]


def zero_in_truth(kind: str, stages: int, name: str, parameter: Tensor, order: int) -> Tensor:
    """Return the entries of a parameter whose derivatives are zero by mathematics."""
    zero = torch.zeros_like(parameter, dtype=torch.bool)
    if name.endswith("attention.qkv.bias"):
        # A key's bias moves all logits of a query alike, which softmax doesn't see.
        zero.chunk(3)[1].fill_(True)
    if name.endswith("attention.kv.bias"):
        zero.chunk(2)[0].fill_(True)
    if kind in ("generator, BatchNorm", "generator, HiT"):
        # BatchNorm takes off what is added to a whole channel: before a convolution without bias, and to the map of the
        # last stage, by whatever way. In the others the pixel shuffle comes between.
        if name.endswith("pre_norm.bias"):
            zero.fill_(True)
        last = rf"stages\.{stages - 1}\..*(out|ffn\.2|project)\.bias|ups\.{stages - 2}\.project\.bias"
        if re.fullmatch(last, name):
            zero.fill_(True)
        if re.fullmatch(rf"stages\.{stages - 1}\..*attention\.(qkv|kv)\.bias", name):
            zero[-parameter.numel() // (3 if "qkv" in name else 2) :] = True  # values
    if order == 2:
        # What is added to the output has no part in the derivative by the input.
        if re.fullmatch(r"(logit|out|out_norm|to_rgb\..*)\.bias", name):
            zero.fill_(True)
        # Leaky ReLU has no second derivative: biases only move the places where its slope changes.
        if kind.startswith("residual") and name.endswith("bias"):
            zero.fill_(True)
    return zero


@pytest.mark.parametrize(("kind", "resolution"), cases())
def test_every_parameter_has_finite_first_and_second_derivatives(kind: str, resolution: int) -> None:
    network = NETWORKS[kind](resolution, 3, 2).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=1.0 if "equalized" in kind else 0.3)
    generates = isinstance(network, LatentGenerator)
    size = (8,) if generates else (3, resolution, resolution)
    x = torch.randn(2, *size, dtype=torch.float64, requires_grad=True)
    out = network(x, torch.tensor([0, 1]))
    total = (out * torch.randn_like(out)).sum()
    # The penalty of R1, R2 and path length regularisation: the squared derivative by the input.
    (slope,) = torch.autograd.grad(total, x, create_graph=True)
    names, parameters = zip(*network.named_parameters(), strict=True)
    stages = len(network.stages) if generates else 0
    for order, value in ((1, total), (2, slope.square().sum())):
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        assert all(gradient.isfinite().all() for gradient in gradients)
        noise = 1e-12 * max(gradient.abs().max() for gradient in gradients)
        for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
            zero = zero_in_truth(kind, stages, name, parameter, order)
            assert (gradient[zero].abs() <= noise).all(), (name, order)
            assert zero.all() or (gradient[~zero].abs() > noise).any(), (name, order)


@pytest.mark.parametrize("kind", NETWORKS)
def test_without_classes_there_are_the_same_parameters_but_for_the_embedding(kind: str) -> None:
    with_classes, without = (NETWORKS[kind](32, 1, classes) for classes in (2, 0))
    names = [{name for name, _ in network.named_parameters()} for network in (with_classes, without)]
    assert names[0] - names[1] == {"class_embedding.weight"} and not names[1] - names[0]
    size = (8,) if isinstance(without, LatentGenerator) else (1, 32, 32)
    without(torch.randn(2, *size)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in without.parameters())
