"""Weights of other implementations for our networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from maxgan.models.backbone import MaxViT

Array = np.ndarray
OFFICIAL_ORDER = "C-BA-GA"


def from_tensorflow(model: MaxViT, arrays: Mapping[str, Array]) -> None:
    """Fill a backbone with the variables of the official MaxViT (google-research/maxvit).

    Args:
        model: of the same widths, depths, window and classes, with blocks in the order C-BA-GA.
        arrays: the variables by their names below the model's scope, such as `block_00_00/attention/q/weight`, in
            TensorFlow's
            layout: kernels (H, W, in, out), depthwise (H, W, C, 1), dense (in, out), q, k, v (C, heads, d), o (heads,
                d, C).

    Raises:
        ValueError: if a variable is missing, left over, or of another shape, or the blocks have another order. The
            model is then unchanged.
    """
    if model.config.order != OFFICIAL_ORDER:
        raise ValueError(f"official weights are for blocks in the order {OFFICIAL_ORDER}, not {model.config.order}")
    entries = list(_entries(model))
    known = {name for _, names, _ in entries for name in names}
    problems = [f"{name} is missing" for name in sorted(known - arrays.keys())]
    problems += [f"{name} is left over" for name in sorted(arrays.keys() - known)]
    wanted = model.state_dict()
    weights: dict[str, Tensor] = {}
    for ours, names, layout in entries:
        if all(name in arrays for name in names):
            # Variables that make up one of ours (q, k, v) are stacked along its outputs.
            weights[ours] = torch.from_numpy(np.concatenate([layout(np.asarray(arrays[name])) for name in names]))
            if weights[ours].shape != wanted[ours].shape:
                shapes = f"{tuple(weights[ours].shape)} in place of {tuple(wanted[ours].shape)}"
                problems.append(f"{', '.join(names)} give {ours} the shape {shapes}")
    if problems:
        raise ValueError(f"these weights don't fit the model: {'; '.join(problems)}")
    # What TensorFlow has no variable for (BatchNorm's count of batches) stays.
    model.load_state_dict({**wanted, **weights})


Entry = tuple[str, tuple[str, ...], Callable[[Array], Array]]


def _entries(model: MaxViT) -> Iterator[Entry]:
    """Yield (our name, names of the variables it is made of, change of layout) for every weight of `model`."""
    yield from _affine("stem.conv1", "conv_0", "kernel", _convolution)
    yield from _batch_norm("stem.norm", "norm_0")
    yield from _affine("stem.conv2", "conv_1", "kernel", _convolution)
    for s, depth in enumerate(model.config.depths):
        for b in range(depth):
            convolution, *attentions = (f"stages.{s}.{b}.{part}" for part in range(3))
            official = f"block_{s:02d}_{b:02d}"
            has_shortcut = f"{convolution}.shortcut.weight" in model.state_dict()
            yield from _mbconv(convolution, f"{official}/mbconv", has_shortcut)
            for ours, suffix in zip(attentions, ("", "_1"), strict=True):
                yield from _attention_layer(ours, official, suffix)
    yield from _norm("head.norm", "final_layer_norm")
    yield from _affine("head.dense", "inner_dense", "weight", np.transpose)
    yield from _affine("head.logits", "logit_dense", "weight", np.transpose)


def _mbconv(ours: str, official: str, has_shortcut: bool) -> Iterator[Entry]:
    if has_shortcut:
        yield from _affine(f"{ours}.shortcut", f"{official}/shortcut_conv", "kernel", _convolution)
    for part in ("pre", "expand", "depthwise"):
        yield from _batch_norm(f"{ours}.{part}_norm", f"{official}/{part}_norm")
    yield f"{ours}.expand.weight", (f"{official}/expand_conv/kernel",), _convolution
    yield f"{ours}.depthwise.weight", (f"{official}/depthwise_conv/depthwise_kernel",), _depthwise
    for part in ("reduce", "expand"):
        yield from _affine(f"{ours}.se.{part}", f"{official}/se/{part}_conv2d", "kernel", _convolution)
    yield from _affine(f"{ours}.project", f"{official}/shrink_conv", "kernel", _convolution)


def _attention_layer(ours: str, official: str, suffix: str) -> Iterator[Entry]:
    attention = f"{official}/attention{suffix}"
    yield from _norm(f"{ours}.norm", f"{official}/attn_layer_norm{suffix}")
    yield f"{ours}.attention.qkv.weight", tuple(f"{attention}/{part}/weight" for part in "qkv"), _split_heads
    yield f"{ours}.attention.qkv.bias", tuple(f"{attention}/{part}/bias" for part in "qkv"), np.ravel
    yield from _affine(f"{ours}.attention.out", f"{attention}/o", "weight", _join_heads)
    yield f"{ours}.attention.relative_bias", (f"{attention}/relative_bias",), np.asarray
    yield from _norm(f"{ours}.ffn_norm", f"{official}/ffn_layer_norm{suffix}")
    yield from _affine(f"{ours}.ffn.0", f"{official}/ffn{suffix}/expand_dense", "weight", np.transpose)
    yield from _affine(f"{ours}.ffn.2", f"{official}/ffn{suffix}/shrink_dense", "weight", np.transpose)


def _affine(ours: str, official: str, kernel: str, layout: Callable[[Array], Array]) -> Iterator[Entry]:
    yield f"{ours}.weight", (f"{official}/{kernel}",), layout
    yield f"{ours}.bias", (f"{official}/bias",), np.asarray


def _norm(ours: str, official: str) -> Iterator[Entry]:
    yield f"{ours}.weight", (f"{official}/gamma",), np.asarray
    yield f"{ours}.bias", (f"{official}/beta",), np.asarray


def _batch_norm(ours: str, official: str) -> Iterator[Entry]:
    yield from _norm(ours, official)
    yield f"{ours}.running_mean", (f"{official}/moving_mean",), np.asarray
    yield f"{ours}.running_var", (f"{official}/moving_variance",), np.asarray


def _convolution(kernel: Array) -> Array:
    return kernel.transpose(3, 2, 0, 1)


def _depthwise(kernel: Array) -> Array:
    return kernel.transpose(2, 3, 0, 1)


def _split_heads(weight: Array) -> Array:
    return weight.reshape(len(weight), -1).T


def _join_heads(weight: Array) -> Array:
    return weight.reshape(-1, weight.shape[-1]).T
