"""What other implementations call the weights of our networks, and how they lay them out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from maxgan.models.backbone import MaxViT
from maxgan.models.discriminator import ResidualDiscriminator
from maxgan.models.hit import HiTGenerator, plan_stages

# Our name, the names of the tensors that it is made of (none: zeros), and the change of layout.
Entry = tuple[str, tuple[str, ...], Callable[..., Tensor]]

BLOCK = re.compile(r"stages\.(\d+)\.(\d+)\.(.+)")

# Our modules -> theirs; those of a block by their names inside it.
TIMM = {
    "stem.conv1": "stem.conv1",
    "stem.norm": "stem.norm1",
    "stem.conv2": "stem.conv2",
    "0.shortcut": "conv.shortcut.expand",
    "0.pre_norm": "conv.pre_norm",
    "0.expand": "conv.conv1_1x1",
    "0.expand_norm": "conv.norm1",
    "0.depthwise": "conv.conv2_kxk",
    "0.depthwise_norm": "conv.norm2",
    "0.se.reduce": "conv.se.fc1",
    "0.se.expand": "conv.se.fc2",
    "0.project": "conv.conv3_1x1",
    "head.norm": "head.norm",
    "head.dense": "head.pre_logits.fc",
    "head.logits": "head.fc",
}
TORCHVISION = {
    "stem.conv1": "stem.0.0",
    "stem.norm": "stem.0.1",
    "stem.conv2": "stem.1.0",
    "0.shortcut": "layers.MBconv.proj.1",
    "0.pre_norm": "layers.MBconv.layers.pre_norm",
    "0.expand": "layers.MBconv.layers.conv_a.0",
    "0.expand_norm": "layers.MBconv.layers.conv_a.1",
    "0.depthwise": "layers.MBconv.layers.conv_b.0",
    "0.depthwise_norm": "layers.MBconv.layers.conv_b.1",
    "0.se.reduce": "layers.MBconv.layers.squeeze_excitation.fc1",
    "0.se.expand": "layers.MBconv.layers.squeeze_excitation.fc2",
    "0.project": "layers.MBconv.layers.conv_c",
    "head.norm": "classifier.2",
    "head.dense": "classifier.3",
    "head.logits": "classifier.5",
}
# The attention layers, part 1 (block) and 2 (grid) of a block.
for part, theirs in (("1", "attn_block"), ("2", "attn_grid")):
    TIMM |= {
        f"{part}.norm": f"{theirs}.norm1",
        f"{part}.attention.qkv": f"{theirs}.attn.qkv",
        f"{part}.attention.out": f"{theirs}.attn.proj",
        f"{part}.attention.relative_bias": f"{theirs}.attn.rel_pos.relative_position_bias_table",
        f"{part}.ffn_norm": f"{theirs}.norm2",
        f"{part}.ffn.0": f"{theirs}.mlp.fc1",
        f"{part}.ffn.2": f"{theirs}.mlp.fc2",
    }
for part, theirs in (("1", "layers.window_attention"), ("2", "layers.grid_attention")):
    TORCHVISION |= {
        f"{part}.norm": f"{theirs}.attn_layer.0",
        f"{part}.attention.qkv": f"{theirs}.attn_layer.1.to_qkv",
        f"{part}.attention.out": f"{theirs}.attn_layer.1.merge",
        f"{part}.attention.relative_bias": f"{theirs}.attn_layer.1.relative_position_bias_table",
        f"{part}.ffn_norm": f"{theirs}.mlp_layer.0",
        f"{part}.ffn.0": f"{theirs}.mlp_layer.1",
        f"{part}.ffn.2": f"{theirs}.mlp_layer.3",
    }


def same(tensor: Tensor) -> Tensor:
    """Return `tensor`."""
    return tensor


def ours(model: MaxViT) -> list[Entry]:
    """Return the entries of another backbone of ours."""
    return [(name, (name,), same) for name in model.state_dict()]


def timm(model: MaxViT) -> list[Entry]:
    """Return the entries of timm's `maxvit_*_tf_*`."""
    return [(ours, (_rename(ours, TIMM, "stages.{}.blocks.{}."),), same) for ours in model.state_dict()]


def torchvision(model: MaxViT) -> list[Entry]:
    """Return the entries of torchvision's `maxvit_t`."""
    entries: list[Entry] = []
    for ours, tensor in model.state_dict().items():
        theirs: tuple[str, ...] = (_rename(ours, TORCHVISION, "blocks.{}.layers.{}."),)
        layout: Callable[..., Tensor] = same
        if ours in ("stem.conv1.bias", "head.logits.bias"):
            theirs = ()
        elif ours.endswith("relative_bias"):
            layout = _turned_table
        elif ".attention.qkv." in ours:
            # Their logits are scaled by C^-0.5, ours by d^-0.5.
            channels = len(tensor) // 3
            layout = _query_scaler(math.sqrt(model.config.head_dim / channels))
        entries.append((ours, theirs, layout))
    return entries


def clean_torchvision(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the indices of positions, which follow from the window."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".relative_position_index")}


def _rename(ours: str, modules: Mapping[str, str], prefix: str) -> str:
    block = BLOCK.fullmatch(ours)
    inner = block[3] if block else ours
    module, _, leaf = inner.rpartition(".")
    theirs = modules[inner] if inner in modules else f"{modules[module]}.{leaf}"
    return prefix.format(block[1], block[2]) + theirs if block else theirs


def _turned_table(table: Tensor) -> Tensor:
    """Turn `((2P-1)^2, heads)`, indexed by query minus key, into `(heads, 2P-1, 2P-1)`, by key minus query."""
    side = math.isqrt(len(table))
    return table.t().reshape(-1, side, side).flip(1, 2)


def _query_scaler(scale: float) -> Callable[[Tensor], Tensor]:
    def scaled(qkv: Tensor) -> Tensor:
        q, k, v = qkv.chunk(3)
        return torch.cat([scale * q, k, v])

    return scaled


MOVING_AVERAGE = "/ExponentialMovingAverage"
SCOPE = re.compile(r"^(?:.*?/)??(?=(?:conv_\d|norm_\d|block_\d\d_\d\d|final_layer_norm|inner_dense|logit_dense)/)")


def clean_tensorflow(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut the model's scope off the official names, and keep the moving averages alone where there are any."""
    if any(name.endswith(MOVING_AVERAGE) for name in arrays):
        arrays = {n.removesuffix(MOVING_AVERAGE): a for n, a in arrays.items() if n.endswith(MOVING_AVERAGE)}
    cleaned = {SCOPE.sub("", name): array for name, array in arrays.items()}
    if len(cleaned) != len(arrays):
        raise ValueError("these variables are of more than one model: keep one")
    return cleaned


def tensorflow(model: MaxViT) -> list[Entry]:
    """Return the entries of the official code; TensorFlow's layouts are those of `convert.from_tensorflow`."""
    return list(_tensorflow(model))


def _tensorflow(model: MaxViT) -> Iterator[Entry]:
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
    yield from _affine("head.dense", "inner_dense", "weight", torch.t)
    yield from _affine("head.logits", "logit_dense", "weight", torch.t)


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
    yield f"{ours}.attention.qkv.weight", tuple(f"{attention}/{part}/weight" for part in "qkv"), _join_qkv_weights
    yield f"{ours}.attention.qkv.bias", tuple(f"{attention}/{part}/bias" for part in "qkv"), _join_qkv_biases
    yield from _affine(f"{ours}.attention.out", f"{attention}/o", "weight", _join_heads)
    yield f"{ours}.attention.relative_bias", (f"{attention}/relative_bias",), same
    yield from _norm(f"{ours}.ffn_norm", f"{official}/ffn_layer_norm{suffix}")
    yield from _affine(f"{ours}.ffn.0", f"{official}/ffn{suffix}/expand_dense", "weight", torch.t)
    yield from _affine(f"{ours}.ffn.2", f"{official}/ffn{suffix}/shrink_dense", "weight", torch.t)


def hit(model: HiTGenerator) -> list[Entry]:
    """Return the entries of the official HiT generator."""
    return list(_hit(model))


def _hit(model: HiTGenerator) -> Iterator[Entry]:
    known = model.state_dict().keys()
    yield from _affine("first_map", "image_dense", "kernel", torch.t)
    yield from _affine("tokens", "token_dense", "kernel", torch.t)
    yield "token_position", ("token_position",), _tokens_first
    yield from _batch_norm("token_norm", "token_norm")
    for s, plan in enumerate(plan_stages(model.resolution, model.config)):
        stage, official = f"stages.{s}", f"stage_{s}"
        yield f"{stage}.position", (f"{official}/position",), _channels_first
        yield from _hit_attention(f"{stage}.cross_norm", f"{stage}.cross_attention", f"{official}/cross_attention")
        yield from _hit_mlp(f"{stage}.cross_mlp.norm", f"{stage}.cross_mlp.ffn", f"{official}/cross_attention/mlp")
        for b in range(plan.depth):
            block, theirs = f"{stage}.blocks.{b}", f"{official}/block_{b}"
            if plan.patch_size:
                yield from _hit_attention(f"{block}.norm", f"{block}.attention", theirs)
                yield from _hit_mlp(f"{block}.ffn_norm", f"{block}.ffn", f"{theirs}/mlp")
            else:
                yield from _hit_mlp(f"{block}.norm", f"{block}.ffn", theirs)
        if f"ups.{s}.project.weight" in known:
            yield from _affine(f"ups.{s}.project", f"{official}/upsample", "kernel", _pointwise)
        if f"to_rgb.{s}.0.weight" in known:
            yield from _batch_norm(f"to_rgb.{s}.0", f"{official}/to_rgb/norm")
            yield from _affine(f"to_rgb.{s}.1", f"{official}/to_rgb", "kernel", _pointwise)


def _hit_attention(norm: str, attention: str, official: str) -> Iterator[Entry]:
    yield from _batch_norm(norm, f"{official}/norm")
    for part in ("q", "kv"):
        yield f"{attention}.{part}.weight", tuple(f"{official}/{p}/kernel" for p in part), _join_qkv_weights
        yield f"{attention}.{part}.bias", tuple(f"{official}/{p}/bias" for p in part), _join_qkv_biases
    yield from _affine(f"{attention}.out", f"{official}/out", "kernel", _join_heads)


def _hit_mlp(norm: str, ffn: str, official: str) -> Iterator[Entry]:
    yield from _batch_norm(norm, f"{official}/norm")
    yield from _affine(f"{ffn}.0", f"{official}/fc1", "kernel", torch.t)
    yield from _affine(f"{ffn}.2", f"{official}/fc2", "kernel", torch.t)


def residual(model: ResidualDiscriminator) -> list[Entry]:
    """Return the entries of HiT's official discriminator."""
    return list(_residual(model))


def _residual(model: ResidualDiscriminator) -> Iterator[Entry]:
    yield from _affine("from_rgb", "from_rgb", "kernel", _convolution)
    for i in range(len(model.blocks)):
        yield f"blocks.{i}.skip.weight", (f"block_{i}/skip/kernel",), _convolution
        for part in ("conv1", "conv2"):
            yield from _affine(f"blocks.{i}.{part}", f"block_{i}/{part}", "kernel", _convolution)
    yield from _affine("final_conv", "final_conv", "kernel", _convolution)
    yield from _affine("dense", "dense", "kernel", torch.t)
    yield from _affine("logit", "logit", "kernel", torch.t)


def _affine(ours: str, official: str, kernel: str, layout: Callable[[Tensor], Tensor]) -> Iterator[Entry]:
    yield f"{ours}.weight", (f"{official}/{kernel}",), layout
    yield f"{ours}.bias", (f"{official}/bias",), same


def _norm(ours: str, official: str) -> Iterator[Entry]:
    yield f"{ours}.weight", (f"{official}/gamma",), same
    yield f"{ours}.bias", (f"{official}/beta",), same


def _batch_norm(ours: str, official: str) -> Iterator[Entry]:
    yield from _norm(ours, official)
    yield f"{ours}.running_mean", (f"{official}/moving_mean",), same
    yield f"{ours}.running_var", (f"{official}/moving_variance",), same


def _convolution(kernel: Tensor) -> Tensor:
    return kernel.permute(3, 2, 0, 1)


def _depthwise(kernel: Tensor) -> Tensor:
    return kernel.permute(2, 3, 0, 1)


def _join_qkv_weights(*weights: Tensor) -> Tensor:
    return torch.cat([weight.flatten(1).t() for weight in weights])


def _join_qkv_biases(*biases: Tensor) -> Tensor:
    return torch.cat([bias.flatten() for bias in biases])


def _join_heads(weight: Tensor) -> Tensor:
    return weight.flatten(0, 1).t()


def _pointwise(kernel: Tensor) -> Tensor:
    return kernel.t()[:, :, None, None]


def _channels_first(position: Tensor) -> Tensor:
    return position.permute(0, 3, 1, 2)


def _tokens_first(position: Tensor) -> Tensor:
    return position.transpose(1, 2)
