"""Convolution with groups whose second derivative doesn't run group by group."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Strides = tuple[int, ...]


def grouped_conv2d(x: Tensor, weight: Tensor, stride: Strides, padding: Strides, groups: int) -> Tensor:
    """Return `torch.nn.functional.conv2d(x, weight, None, stride, padding, groups=groups)`, made for penalties.

    Autograd's own second derivative of a convolution takes one convolution for each group, which for a depthwise one
    is each channel. A convolution is linear in both of its arguments, and so are its two derivatives, each of which is
    a convolution of all groups at once again: three functions whose derivatives are each other.

    Args:
        x: `(N, C, H, W)`.
        weight: `(outputs, C / groups, kernel, kernel)`.
        stride, padding, groups: as conv2d's.
    """
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        # Here and not inside: all three functions then see one type, also where they run out of autocast's reach.
        x, weight = (t.to(torch.get_autocast_dtype(device)) for t in (x, weight))
    convolved: Tensor = _Conv.apply(x, weight, (stride, padding, groups))
    return convolved


def _derivative(gradient: Tensor, x: Tensor, weight: Tensor, options: tuple[Any, ...], of_weight: bool) -> Tensor:
    stride, padding, groups = options
    wanted = [not of_weight, of_weight, False]
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, stride, padding, (1, 1), False, (0, 0), groups, wanted
    )
    derivative: Tensor = found[of_weight]
    return derivative


class _Conv(torch.autograd.Function):
    """y of x and the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, options: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = options
        stride, padding, groups = options
        return F.conv2d(x, weight, None, stride, padding, groups=groups)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight = ctx.saved_tensors
        for_x = _OfInput.apply(grads[0], weight, x, ctx.options) if ctx.needs_input_grad[0] else None
        for_weight = _OfWeight.apply(grads[0], x, weight, ctx.options) if ctx.needs_input_grad[1] else None
        return for_x, for_weight, None


class _OfInput(torch.autograd.Function):
    """The derivative by x, of that by y and the weight; of `like` only the shape counts."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, like: Tensor, options: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.options = options
        return _derivative(gradient, like, weight, options, of_weight=False)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gradient, weight = ctx.saved_tensors
        for_gradient = _Conv.apply(grads[0], weight, ctx.options) if ctx.needs_input_grad[0] else None
        for_weight = _OfWeight.apply(gradient, grads[0], weight, ctx.options) if ctx.needs_input_grad[1] else None
        return for_gradient, for_weight, None, None


class _OfWeight(torch.autograd.Function):
    """The derivative by the weight, of that by y and x; of `like` only the shape counts."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor, like: Tensor, options: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(gradient, x)
        ctx.options = options
        return _derivative(gradient, x, like, options, of_weight=True)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gradient, x = ctx.saved_tensors
        for_gradient = _Conv.apply(x, grads[0], ctx.options) if ctx.needs_input_grad[0] else None
        for_x = _OfInput.apply(gradient, grads[0], x, ctx.options) if ctx.needs_input_grad[1] else None
        return for_gradient, for_x, None, None
