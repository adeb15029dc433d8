"""Layers made faster for inference alone: norms folded into their neighbours, and what follows from weights alone
computed once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GELU_A = 2 * math.sqrt(2 / math.pi)
GELU_B = 0.044715 * GELU_A
PART_BYTES = 1 << 24
"""Bytes that a part's largest tensor may have; twice and half as many were slower."""

Layer = TypeVar("Layer", bound=nn.Conv2d | nn.Linear)


@runtime_checkable
class Fusible(Protocol):
    """A module that can make itself faster for inference."""

    def fuse(self) -> None:
        """Fold, once, what evaluation allows; the outputs stay the same to rounding."""


def fuse_modules(network: nn.Module) -> None:
    """Fuse every part of a network that is in eval mode, and put SigmoidGelu in place of GELU's tanh form."""
    for name, child in network.named_children():
        if isinstance(child, Fusible):
            child.fuse()  # before its own parts, some of which it replaces
        fuse_modules(child)
        if isinstance(child, nn.GELU) and child.approximate == "tanh":
            setattr(network, name, SigmoidGelu())


def fold_before(norm: nn.BatchNorm2d, layer: Layer) -> Layer:
    """Return a layer that computes `layer(norm(x))` in evaluation; `layer` is linear or a 1x1 convolution."""
    if isinstance(layer, nn.Conv2d):
        # A border of zeros would have to be one of norm(0).
        assert layer.kernel_size == (1, 1) and layer.groups == 1
    scale, shift = _affine(norm)
    weight: Tensor = layer.weight.double()
    inputs = (-1, *[1] * (weight.ndim - 2))
    bias = weight.flatten(1) @ shift
    return _with(layer, weight * scale.view(inputs), bias if layer.bias is None else bias + layer.bias.double())


def absorb(norm: nn.Module, *layers: nn.Module) -> Any:
    """Return `norm` and `layers`, or, of a BatchNorm, an identity and layers with the norm folded in."""
    if not isinstance(norm, nn.BatchNorm2d):
        return norm, *layers
    return nn.Identity(), *(fold_before(norm, layer) for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear))


def fold_after(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return a convolution that computes `norm(layer(x))` in evaluation."""
    scale, shift = _affine(norm)
    bias = shift if layer.bias is None else shift + scale * layer.bias.double()
    return _with(layer, layer.weight.double() * scale.view(-1, 1, 1, 1), bias)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each channel, in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _with(layer: Layer, weight: Tensor, bias: Tensor) -> Layer:
    result = copy.deepcopy(layer)
    dtype = layer.weight.dtype
    result.weight = nn.Parameter(weight.to(dtype).contiguous(memory_format=_format(layer.weight)), requires_grad=False)
    result.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return result


def _format(weight: Tensor) -> torch.memory_format:
    channels_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, widest: int) -> Tensor:
    """Return `function(x)`; on a CPU for a few of the N items at once, if what it makes of them all is large.

    Glibc takes memory of 32 MB and more from the system anew each time, whose first use costs as much as the
    arithmetic; and what fits the cache is there when the next layer reads it.

    Args:
        function: maps each item by itself.
        x: `(N, ...)`.
        widest: numbers in the largest tensor that `function` makes of one item.
    """
    items = max(1, PART_BYTES // (widest * x.element_size()))
    if x.device.type != "cpu" or len(x) <= items or torch.compiler.is_compiling():
        return function(x)
    return torch.cat([function(part) for part in x.split(items)])


class SigmoidGelu(nn.Module):
    """The tanh form of GELU as x * sigmoid(x * (a + b * x^2)), which is the same function: no gradient is kept.

    On a CPU in float32, four passes of which one is an exponential take less than half the time of F.gelu, whose tanh
    is slow. Elsewhere, and when it is compiled, it is F.gelu.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return F.gelu(x, approximate="tanh")
        if torch.compiler.is_compiling():
            return x * (x * (GELU_A + GELU_B * x * x)).sigmoid()
        return torch.addcmul(torch.tensor(GELU_A), x, x, value=GELU_B).mul_(x).sigmoid_().mul_(x)
