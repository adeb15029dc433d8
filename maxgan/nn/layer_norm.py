"""LayerNorm of maps in half precision, with sums in float32 and nothing kept in it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maxgan.nn.autocast import without_autocast


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return `torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)`, made for mixed precision.

    For half-precision x and float32 weights, autocast on a GPU computes and keeps float32 copies of the maps, and on a
    CPU sums the gradients of the weights in half precision, which loses a tenth of them. Here the kernel for half
    precision runs on a GPU, whose sums are float32 inside, and float32 on a CPU; only x is kept. Second derivatives are
    found in float32 on both.

    Args:
        x: `(..., C)`.
        weight, bias: `(C,)`.
        eps: added to the variance.
    """
    if x.dtype == weight.dtype or x.dtype not in (torch.bfloat16, torch.float16):
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    with without_autocast(x.device):
        normed: Tensor = _LayerNorm.apply(x, weight, bias, eps)
        return normed


def _inside(x: Tensor) -> torch.dtype:
    """Return the type that the kernels take: torch's for CPUs have their sums in that of their arguments."""
    return torch.float32 if x.device.type == "cpu" else x.dtype


class _LayerNorm(torch.autograd.Function):
    """y of x, the weight and the bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        inside = _inside(x)
        y, mean, rstd = torch.ops.aten.native_layer_norm(
            x.to(inside), weight.shape, weight.to(inside), bias.to(inside), eps
        )
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.eps = eps
        normed: Tensor = y.to(x.dtype)
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *_Gradients.apply(grads[0], *ctx.saved_tensors, ctx.eps, ctx.needs_input_grad[:3]), None


class _Gradients(torch.autograd.Function):
    """The gradients of x, the weight and the bias, those that are wanted, of the gradient of y."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        rstd: Tensor,
        eps: float,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(gradient, x, weight)
        ctx.eps, ctx.wanted = eps, wanted
        inside = _inside(x)
        scale = weight.to(inside)
        # Of the last tensor it matters only that it is there: the values of the bias are in no gradient.
        found = torch.ops.aten.native_layer_norm_backward(
            gradient.to(inside), x.to(inside), weight.shape, mean, rstd, scale, scale, list(wanted)
        )
        types = (x.dtype, weight.dtype, weight.dtype)
        return tuple(f.to(t) if want else None for f, t, want in zip(found, types, wanted, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        with torch.enable_grad():
            gradient, x, weight = (t.detach().float().requires_grad_() for t in ctx.saved_tensors)
            normed = F.layer_norm(x, weight.shape, None, None, ctx.eps)
            (of_x,) = torch.autograd.grad(normed, x, gradient * weight, create_graph=True)
            axes = tuple(range(x.ndim - 1))
            first = (of_x, (gradient * normed).sum(axes), gradient.sum(axes))
            found = [(f, g.float()) for f, g, want in zip(first, grads, ctx.wanted, strict=True) if want]
        outputs, upstream = zip(*found, strict=True)
        second = torch.autograd.grad(outputs, (gradient, x, weight), upstream, materialize_grads=True)
        return *(s.to(t.dtype) for s, t in zip(second, ctx.saved_tensors, strict=True)), *[None] * 4
