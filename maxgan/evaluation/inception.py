"""Inception V3 (arXiv 1512.00567), as Keras publishes it and as the graph of 2015 has it, and their weights.

The two differ in the pooling of the last block's last branch, which the graph of 2015 does by maximum; in the classes,
1000 and 1008; and in their weights, since they are two trainings. torchvision's is a third.

Keras' weights are published as HDF5, for which none of our dependencies has a reader. With h5py,

    python -c "import sys, h5py, numpy; a = {}; h5py.File(sys.argv[1]).visititems(lambda n, v: a.update({n: v[()]})
    if isinstance(v, h5py.Dataset) else None); numpy.savez(sys.argv[2], **a)"
    inception_v3_weights_tf_dim_ordering_tf_kernels.h5 inception_v3_weights_tf_dim_ordering_tf_kernels.npz

writes a file that `keras_inception` takes. MD5 of the published file: 9a0d58056eeedaa3f26cb7ebd46da564.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from maxgan.models.convert import read_weights
from maxgan.nn.fuse import fold_after

RESOLUTION = 299
FEATURES = 2048
EPSILON = 1e-3
SPATIAL_BLOCK, SPATIAL_CHANNELS = 6, 7
KERAS_CLASSES = 1000
GRAPH_CLASSES = 1008


class ConvNorm(nn.Module):
    """A convolution without bias, BatchNorm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu_()

    def fuse(self) -> None:
        """Fold the norm into the convolution."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv, self.norm = fold_after(self.conv, self.norm), nn.Identity()


class Branches(nn.ModuleList):
    """Modules that all see the same map; what they make of it is joined along the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], 1)


def average() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def row(inputs: int, outputs: int, length: int) -> ConvNorm:
    """A convolution along the rows of a map."""
    return ConvNorm(inputs, outputs, (1, length), padding=(0, length // 2))


def column(inputs: int, outputs: int, length: int) -> ConvNorm:
    """A convolution along the columns of a map."""
    return ConvNorm(inputs, outputs, (length, 1), padding=(length // 2, 0))


def block_35(inputs: int, pooled: int) -> Branches:
    """A block on the map of 35 x 35."""
    return Branches(
        [
            ConvNorm(inputs, 64),
            nn.Sequential(ConvNorm(inputs, 48), ConvNorm(48, 64, 5, padding=2)),
            nn.Sequential(ConvNorm(inputs, 64), ConvNorm(64, 96, 3, padding=1), ConvNorm(96, 96, 3, padding=1)),
            nn.Sequential(average(), ConvNorm(inputs, pooled)),
        ]
    )


def block_17(width: int) -> Branches:
    """A block on the map of 17 x 17."""
    return Branches(
        [
            ConvNorm(768, 192),
            nn.Sequential(ConvNorm(768, width), row(width, width, 7), column(width, 192, 7)),
            nn.Sequential(
                ConvNorm(768, width), column(width, width, 7), row(width, width, 7), column(width, width, 7),
                row(width, 192, 7),
            ),
            nn.Sequential(average(), ConvNorm(768, 192)),
        ]
    )  # fmt: skip


def block_8(inputs: int, pool: nn.Module) -> Branches:
    """A block on the map of 8 x 8."""
    return Branches(
        [
            ConvNorm(inputs, 320),
            nn.Sequential(ConvNorm(inputs, 384), Branches([row(384, 384, 3), column(384, 384, 3)])),
            nn.Sequential(
                ConvNorm(inputs, 448),
                ConvNorm(448, 384, 3, padding=1),
                Branches([row(384, 384, 3), column(384, 384, 3)]),
            ),
            nn.Sequential(pool, ConvNorm(inputs, 192)),
        ]
    )


class Inception(nn.Module):
    """Inception V3 with 94 convolutions, which stand in the order in which Keras' builder creates them.

    Args:
        num_classes: of the head.
        last_pool_is_max: as in the graph of 2015.
    """

    resolution = RESOLUTION
    channels = 3

    def __init__(self, num_classes: int, last_pool_is_max: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(
            ConvNorm(3, 32, 3, stride=2),
            ConvNorm(32, 32, 3),
            ConvNorm(32, 64, 3, padding=1),
            nn.MaxPool2d(3, 2),
            ConvNorm(64, 80),
            ConvNorm(80, 192, 3),
            nn.MaxPool2d(3, 2),
        )
        to_17 = Branches(
            [
                ConvNorm(288, 384, 3, stride=2),
                nn.Sequential(ConvNorm(288, 64), ConvNorm(64, 96, 3, padding=1), ConvNorm(96, 96, 3, stride=2)),
                nn.MaxPool2d(3, 2),
            ]
        )
        to_8 = Branches(
            [
                nn.Sequential(ConvNorm(768, 192), ConvNorm(192, 320, 3, stride=2)),
                nn.Sequential(
                    ConvNorm(768, 192), row(192, 192, 7), column(192, 192, 7), ConvNorm(192, 192, 3, stride=2)
                ),
                nn.MaxPool2d(3, 2),
            ]
        )
        self.blocks = nn.Sequential(
            block_35(192, 32), block_35(256, 64), block_35(288, 64), to_17,
            block_17(128), block_17(160), block_17(160), block_17(192), to_8,
            block_8(1280, average()), block_8(FEATURES, nn.MaxPool2d(3, 1, 1) if last_pool_is_max else average()),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        """Return features `(N, 2048)` of images `(N, 3, 299, 299)`, normalised as the weights expect."""
        return self.blocks(self.stem(x)).mean((2, 3))

    def pooled_and_spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `pooled` does, and the features `(N, 2023)` of the sFID (arXiv 2103.03841) as ADM takes them.

        Those are the first 7 channels of `mixed_6/conv` in the graph of 2015, a map of 17 x 17, flattened with the
        channels last: the first that the third block on this map joins.
        """
        x = self.blocks[: SPATIAL_BLOCK + 1](self.stem(x))
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return self.blocks[SPATIAL_BLOCK + 1 :](x).mean((2, 3)), spatial

    def classify(self, pooled: Tensor) -> Tensor:
        """Return logits `(N, num_classes)` of features `(N, 2048)`."""
        return self.head(pooled)

    def convolutions(self) -> list[tuple[str, ConvNorm]]:
        """Return the 94 convolutions by name, in order."""
        return [(name, module) for name, module in self.named_modules() if isinstance(module, ConvNorm)]


def keras_inception(weights: str | Path | Mapping[str, Tensor]) -> Inception:
    """Return Keras-applications' InceptionV3 in eval mode; it expects images in [-1, 1] and has 1000 logits.

    Args:
        weights: of `keras.applications.InceptionV3`, by the names of the published file, such as
            `conv2d_1/conv2d_1/kernel:0`; or a .npz of them (see above). Only the order of the numbers in the names of
            the layers counts, as that of their creation; kernels are `(H, W, in, out)`.

    Raises:
        ValueError: if a weight is missing, left over or of another shape, or the file can't be read.
    """
    origin, tensors = _read(weights)
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    left_over = []
    for name in tensors:
        match = re.search(r"(?:^|/)(conv2d|batch_normalization)(?:_(\d+))?/(?:.*/)?(\w+)(?::0)?$", name)
        if match:
            found.setdefault((match[1], match[3]), []).append((int(match[2] or 0), name))
        elif not re.search(r"(?:^|/)predictions/(kernel|bias)(?::0)?$", name):
            left_over.append(name)
    model = _unfilled(KERAS_CLASSES, last_pool_is_max=False)
    names: dict[str, str] = {}
    kinds = {
        ("conv2d", "kernel"): "conv.weight",
        ("batch_normalization", "beta"): "norm.bias",
        ("batch_normalization", "moving_mean"): "norm.running_mean",
        ("batch_normalization", "moving_variance"): "norm.running_var",
    }
    convolutions = model.convolutions()
    for kind, ours in kinds.items():
        theirs = [name for _, name in sorted(found.pop(kind, []))]
        if len(theirs) != len(convolutions):
            raise ValueError(
                f"{origin} have {len(theirs)} arrays {kind[0]}_*/{kind[1]} in place of {len(convolutions)}: they are "
                "not those of Keras' InceptionV3 with its head"
            )
        names |= {f"{prefix}.{ours}": name for (prefix, _), name in zip(convolutions, theirs, strict=True)}
    left_over += [name for entries in found.values() for _, name in entries]
    for ours, leaf in (("head.weight", "kernel"), ("head.bias", "bias")):
        names[ours] = next(
            (n for n in tensors if re.search(rf"(?:^|/)predictions/{leaf}(?::0)?$", n)), f"predictions/{leaf}"
        )
    _fill(model, names, tensors, left_over, origin, keras_layout=True)
    return model.eval()


def inception_2015(weights: str | Path | Mapping[str, Tensor]) -> Inception:
    """Return the Inception of the graph `inception-2015-12-05`, which FID stands for, in eval mode.

    It expects grey levels as (level - 128) / 128. Its 1008 logits are without bias, as the Inception score takes them.

    Args:
        weights: of torch-fidelity's or pytorch-fid's port (one and the same file), by its names, or that file.

    Raises:
        ValueError: if a weight is missing, left over or of another shape, or the file can't be read.
    """
    origin, tensors = _read(weights)
    model = _unfilled(GRAPH_CLASSES, last_pool_is_max=True)
    names = {"head.weight": "fc.weight", "head.bias": "fc.bias"}
    for (ours, _), theirs in zip(model.convolutions(), port_names(), strict=True):
        names[f"{ours}.conv.weight"] = f"{theirs}.conv.weight"
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            names[f"{ours}.norm.{leaf}"] = f"{theirs}.bn.{leaf}"
    known = set(names.values())
    left_over = [n for n in tensors if n not in known and not n.endswith(".num_batches_tracked")]
    _fill(model, names, tensors, left_over, origin)
    torch.nn.init.zeros_(model.head.bias)
    return model.eval()


def port_names() -> list[str]:
    """Return what the port calls the 94 convolutions, in our order."""
    a = "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool"
    b = "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
    c = "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4"
    c += " branch7x7dbl_5 branch_pool"
    d = "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"
    e = "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a branch3x3dbl_3b"
    e += " branch_pool"
    blocks = {"5b": a, "5c": a, "5d": a, "6a": b, "6b": c, "6c": c, "6d": c, "6e": c, "7a": d, "7b": e, "7c": e}
    stem = [f"Conv2d_{part}" for part in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")]
    return stem + [f"Mixed_{block}.{branch}" for block, branches in blocks.items() for branch in branches.split()]


def _read(weights: str | Path | Mapping[str, Tensor]) -> tuple[str, Mapping[str, Tensor]]:
    if isinstance(weights, Mapping):
        return "the weights", weights
    return f"the weights of {weights}", read_weights(weights)


def _unfilled(num_classes: int, last_pool_is_max: bool) -> Inception:
    """Return a network whose weights have no values yet, since to draw them takes longer than to read others."""
    with torch.device("meta"):
        return Inception(num_classes, last_pool_is_max)


def _fill(
    model: Inception,
    names: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    left_over: list[str],
    origin: str,
    keras_layout: bool = False,
) -> None:
    """Give `model` under each of our names the tensor of theirs; Keras' norms have no scale, so that theirs is 1.

    Raises:
        ValueError: which lists everything that doesn't fit.
    """
    wanted = model.state_dict()
    weights: dict[str, Tensor] = {}
    problems = [f"{name} is left over" for name in left_over]
    for ours, theirs in names.items():
        if theirs not in tensors:
            problems.append(f"{theirs} is missing")
            continue
        weight = tensors[theirs]
        if keras_layout and weight.ndim in (2, 4):
            weight = weight.permute(3, 2, 0, 1) if weight.ndim == 4 else weight.T
        if weight.shape != wanted[ours].shape:
            shape = tuple(wanted[ours].shape)
            problems.append(f"{theirs} has the shape {tuple(weight.shape)} in place of {shape}")
        weights[ours] = weight.float().contiguous()
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise ValueError(f"{origin} are not those of this Inception: {shown}")
    for name, tensor in wanted.items():
        if name not in weights:
            value = 1 if name.endswith(".norm.weight") else 0
            weights[name] = torch.full(tensor.shape, value, dtype=tensor.dtype)
    model.load_state_dict(weights, assign=True)
