from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maxgan.nn import layer_norm as module
from maxgan.nn.layer_norm import layer_norm

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def in_float64(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def found(norm: Callable[..., Tensor], device: str, half: torch.dtype | None) -> list[Tensor]:
    """Return the norm, its gradients, and gradients of the square of the first; in float64 or with maps in `half`."""
    generator = torch.Generator().manual_seed(0)
    spread, shift = torch.rand(512, 1, generator=generator) * 3, torch.randn(512, 1, generator=generator) * 4
    rounded = torch.bfloat16 if half is None else half
    x, upstream = (
        (torch.randn(512, 48, generator=generator) * spread + shift).to(device, rounded).view(8, 8, 8, 48)
        for _ in range(2)
    )
    weight, bias = (torch.randn(48, generator=generator).to(device) for _ in range(2))
    if half is None:
        x, upstream, weight, bias = (t.double() for t in (x, upstream, weight, bias))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = norm(*leaves, 1e-5)
    assert y.dtype == x.dtype
    first = torch.autograd.grad(y, leaves, upstream, create_graph=True)
    assert [g.dtype for g in first] == [t.dtype for t in leaves]
    penalty = sum(g.to(weight.dtype).square().sum() for g in first)
    assert isinstance(penalty, Tensor)
    return [t.detach().double() for t in (y, *first, *torch.autograd.grad(penalty, [x, weight]))]


def errors(ours: list[Tensor], truth: list[Tensor]) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(ours, truth, strict=True)]


@pytest.mark.parametrize("device", DEVICES)
def test_maps_in_half_precision_cost_their_own_rounding_alone(device: str) -> None:
    """Beside float64, from the same rounded maps: bfloat16 has a relative rounding of 2e-3 in the mean of squares."""
    truth = found(in_float64, device, None)
    y, of_x, of_weight, of_bias, *second = errors(found(layer_norm, device, torch.bfloat16), truth)
    assert max(y, of_x, *second) < 4e-3
    # Sums over many pixels: a GPU's kernel gives them in half precision too, a CPU's would lose a tenth.
    assert max(of_weight, of_bias) < (1e-5 if device == "cpu" else 4e-3)


def test_the_kernel_for_half_precision_that_gpus_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU it keeps means and deviations in bfloat16, and its gradients of weights are too rough to be compared."""
    truth = found(in_float64, "cpu", None)
    monkeypatch.setattr(module, "_inside", lambda x: x.dtype)
    y, of_x, *_, second_of_x, second_of_weight = errors(found(layer_norm, "cpu", torch.bfloat16), truth)
    assert max(y, second_of_weight) < 4e-3 and max(of_x, second_of_x) < 0.04


def test_weights_that_want_no_gradient() -> None:
    """As D's in the update of G, and with a penalty besides."""

    def second(norm: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        x.requires_grad_()
        y = norm(x, weight, bias, 1e-5)
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y).cumsum(-1), create_graph=True)
        return [t.double() for t in (gradient, *torch.autograd.grad(gradient.square().sum(), x))]

    x, weight, bias = torch.randn(64, 6, dtype=torch.bfloat16) * 2, torch.rand(6), torch.rand(6)
    truth = second(in_float64, x.double(), weight.double(), bias.double())
    assert max(errors(second(layer_norm, x, weight, bias), truth)) < 0.01


def test_only_the_map_itself_is_kept() -> None:
    x = torch.randn(2, 4, 4, 32, dtype=torch.bfloat16).requires_grad_()
    kept: list[Tensor] = []

    def note(tensor: Tensor) -> Any:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        layer_norm(x, torch.ones(32, requires_grad=True), torch.zeros(32, requires_grad=True), 1e-5)
    assert [t.data_ptr() for t in kept if t.numel() == x.numel()] == [x.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_type_is_torchs_own(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(3, 5, 8).to(dtype), torch.randn(8).to(dtype), torch.randn(8).to(dtype)
    assert torch.equal(layer_norm(x, weight, bias, 1e-5), F.layer_norm(x, (8,), weight, bias, 1e-5))
