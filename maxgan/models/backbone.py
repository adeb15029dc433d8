"""The MaxViT classification backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maxgan.config import BackboneConfig, GeluForm, Padding
from maxgan.models.block import MaxViTBlock
from maxgan.models.network import Network
from maxgan.nn.activation import make_gelu
from maxgan.nn.fuse import fold_after, in_parts
from maxgan.nn.mbconv import padded_conv
from maxgan.nn.norm import LAYER_NORM_EPS, make_norm


def _paper_size(stem_width: int, width: int, depths: tuple[int, ...]) -> BackboneConfig:
    widths = tuple(width * 2**i for i in range(len(depths)))
    return BackboneConfig(
        stem_width=stem_width, stem_stride=2, widths=widths, depths=depths, window_size=None, head_dim=32
    )


# Table 1 of the paper, and the official hparams.
SIZES = {
    "tiny": _paper_size(64, 64, (2, 2, 5, 2)),
    "small": _paper_size(64, 96, (2, 2, 5, 2)),
    "base": _paper_size(64, 96, (2, 6, 14, 2)),
    "large": _paper_size(128, 128, (2, 6, 14, 2)),
    "xlarge": _paper_size(192, 192, (2, 6, 14, 2)),
}
# Of RGB in [0, 1]; torchvision's figures, which the field has in common.
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Stem(nn.Module):
    """3x3 convolution (strided), norm, GELU, 3x3 convolution."""

    def __init__(
        self, channels: int, width: int, stride: int, gelu: GeluForm = "tanh", padding: Padding = "same"
    ) -> None:
        super().__init__()
        self.conv1 = padded_conv(channels, width, 3, stride, padding=padding)
        self.norm = make_norm("batch", width)
        self.gelu = make_gelu(gelu)
        self.conv2 = padded_conv(width, width, 3, padding=padding)
        self.fused = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return in_parts(self._layers, x, self.conv1.out_channels * x.shape[2] * x.shape[3])
        return self._layers(x)

    def _layers(self, x: Tensor) -> Tensor:
        return self.conv2(self.gelu(self.norm(self.conv1(x))))

    def fuse(self) -> None:
        """Fold the norm into the convolution before it; from here on take a few images at once."""
        self.fused = True
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv1 = fold_after(self.conv1, self.norm)
            self.norm = nn.Identity()


class Stage(nn.Sequential):
    """MaxViT blocks one after another, on `(N, C, H, W)`.

    Attributes:
        checkpointing: keep only the blocks' inputs for the backward pass, and compute the rest again (arXiv
            1604.06174). Gradients and BatchNorm's running statistics are those without it.
    """

    def __init__(self, *blocks: MaxViTBlock, checkpointing: bool = False) -> None:
        super().__init__(*blocks)
        self.checkpointing = checkpointing
        self.widest = 0

    def fuse(self) -> None:
        """From here on take a few images at once."""
        self.widest = max(module.out_channels for module in self.modules() if isinstance(module, nn.Conv2d))

    def forward(self, x: Tensor) -> Tensor:
        if self.widest:
            return in_parts(super().forward, x, self.widest * x.shape[2] * x.shape[3])
        for block in self:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
            else:
                x = block(x)
        return x


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts in which `checkpoint` runs `block` the first and the second time."""
    return nullcontext(), _without_statistics(block)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """Let BatchNorm leave its running statistics alone: the first run has counted this batch already."""
    kinds = (nn.BatchNorm2d, nn.SyncBatchNorm)
    norms = [(m, m.momentum, m.num_batches_tracked) for m in block.modules() if isinstance(m, kinds)]
    for norm, _, batches in norms:
        assert batches is not None  # every norm here counts
        norm.momentum, norm.num_batches_tracked = 0.0, batches.clone()
    try:
        yield
    finally:
        for norm, momentum, batches in norms:
            norm.momentum, norm.num_batches_tracked = momentum, batches


class Head(nn.Module):
    """LayerNorm, Linear, tanh, Linear to the classes: `(N, C)` to `(N, num_classes)`."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dense = nn.Linear(width, width)
        self.logits = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.dense(self.norm(x)).tanh())


class MaxViT(Network):
    """MaxViT (arXiv 2204.01697; numerics of the official TensorFlow code): stem, stages of MaxViT blocks,
    classification head.

    The first block of every stage halves the map. BatchNorm in the convolutions, LayerNorm before attention and
    feed-forward. Stochastic depth is the official code's (google-research/maxvit, models/maxvit.py): block i of n drops
    at drop_path * i / n, in MBConv as in both branches of the attention layers; the list of options from which
    MaxViTBlock rebuilds its config holds survival_prob, so that it reaches MBConv.

    Args:
        resolution: side of the images; any that the stages halve evenly and the windows fit, such as 224.
        channels: image channels, 1 to 4.
        num_classes: at least 2.
        config: settings; single fields can be given as keywords.

    Raises:
        ValueError: if a window does not fit the map of its stage, for a width that is no multiple of head_dim, and for
            fewer than 2 classes.
    """

    config_class = BackboneConfig
    config: BackboneConfig
    input_mean: Tensor
    input_deviation: Tensor

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 1000,
        config: BackboneConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)
        config = self.config
        _check_classes(num_classes)
        if not config.depths or min(config.depths) < 1:
            raise ValueError(f"backbone.depths must give every stage at least one block, not {config.depths}")
        window = window_size(config, resolution)
        total = sum(config.depths)
        blocks_before = 0
        width = config.stem_width
        if config.normalization == "imagenet":
            if channels != 3:
                raise ValueError(f"backbone.normalization imagenet is for 3 channels, not {channels}: set it to half")
            self.register_buffer("input_mean", 2 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1) - 1, persistent=False)
            self.register_buffer(
                "input_deviation", 2 * torch.tensor(IMAGENET_DEVIATION).view(3, 1, 1), persistent=False
            )
        self.stem = Stem(channels, width, config.stem_stride, config.gelu, config.padding)
        self.stages = nn.ModuleList()
        for outputs, depth in zip(config.widths, config.depths, strict=True):
            blocks = []
            for i in range(depth):
                blocks.append(
                    MaxViTBlock(
                        width,
                        outputs,
                        window,
                        config.order,
                        stride=2 if i == 0 else 1,
                        head_dim=config.head_dim,
                        drop_path=config.drop_path * blocks_before / total,
                        gelu=config.gelu,
                        padding=config.padding,
                        shortcut=config.shortcut,
                    )
                )
                width = outputs
                blocks_before += 1
            self.stages.append(Stage(*blocks, checkpointing=config.checkpointing))
        self.head = Head(width, num_classes)
        self.apply(initialise)

    @classmethod
    def from_name(
        cls, size: str, resolution: int = 224, num_classes: int = 1000, channels: int = 3, **settings: Any
    ) -> Self:
        """Return the paper's model of a size: tiny, small, base, large or xlarge, with random weights.

        Windows have resolution / 32 pixels a side. Stochastic depth is off; the paper trains tiny, small, base and
        large on ImageNet-1K with drop_path 0.2, 0.3, 0.4 and 0.6 (Table 12).

        Args:
            settings: fields of BackboneConfig in place of the paper's; for small images stem_stride 1, and fewer
                `widths` and `depths`.

        Raises:
            ValueError: for another size, and as the constructor.
        """
        if size not in SIZES:
            raise ValueError(f"the size of a MaxViT must be one of {', '.join(SIZES)}, not {size!r}")
        return cls(resolution, channels, num_classes, SIZES[size], **settings)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the map of every stage, `(N, C_i, H_i, W_i)`, for images `(N, channels, H, W)` in [-1, 1]."""
        if self.config.normalization == "imagenet":
            x = (x - self.input_mean) / self.input_deviation
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def pooled(self, x: Tensor) -> Tensor:
        """Return the mean over the last map, `(N, C)`."""
        return self.features(x)[-1].mean((2, 3))

    def classify(self, pooled: Tensor) -> Tensor:
        """Return logits `(N, num_classes)` for pooled features `(N, C)`."""
        return self.head(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(N, num_classes)` for images `(N, channels, H, W)` in [-1, 1]."""
        return self.classify(self.pooled(x))

    def reset_head(self, num_classes: int) -> None:
        """Put a new last layer, with random weights, in place of the old one: for fine-tuning on other classes.

        Raises:
            ValueError: for fewer than 2 classes.
        """
        _check_classes(num_classes)
        before = self.head.dense
        new = nn.Linear(before.out_features, num_classes, device=before.weight.device, dtype=before.weight.dtype)
        initialise(new)
        self.head.logits = new
        self.num_classes = num_classes
        self._hub_mixin_config = {"class": type(self).__name__, **self.arguments()}
        # These are of the old classes.
        for name in ("class_names", "accuracy"):
            self.info.pop(name, None)


def window_size(config: BackboneConfig, resolution: int) -> int:
    """Return the side of the windows of a backbone for images of `resolution`.

    Raises:
        ValueError: if such windows don't tile the map of every stage; it names windows and resolutions that would fit.
    """
    window = _window(config, resolution)
    fitting = _fitting_windows(config, resolution)
    if window in fitting:
        return window
    side, stage = resolution / config.stem_stride / 2, 1
    while window >= 2 and side % window == 0:
        side, stage = side / 2, stage + 1
    near = _nearest_resolutions(config, resolution)
    rule = "" if config.window_size is not None else " (resolution / 32)"
    raise ValueError(
        f"backbone.window_size {window}{rule} does not fit the {side:g} x {side:g} map of stage {stage} at "
        f"{resolution} px: {_either(fitting) if fitting else 'no window'} would fit this resolution, and "
        f"{_either(near) if near else 'none'} is the nearest resolution that this setting fits"
    )


def _window(config: BackboneConfig, resolution: int) -> int:
    return config.window_size if config.window_size is not None else resolution // 32


def _fitting_windows(config: BackboneConfig, resolution: int) -> list[int]:
    """Return the windows that tile every map: the divisors of the last side, as each map is twice the next."""
    side, rest = divmod(resolution, config.stem_stride * 2 ** len(config.depths))
    return [] if rest else [window for window in range(2, side + 1) if side % window == 0]


def _nearest_resolutions(config: BackboneConfig, resolution: int) -> list[int]:
    """Return the next smaller and the next larger resolution that fits, at most four times as large."""

    def fits(other: int) -> bool:
        return _window(config, other) in _fitting_windows(config, other)

    below = next(filter(fits, range(resolution - 1, 7, -1)), None)
    above = next(filter(fits, range(resolution + 1, 4 * resolution + 1)), None)
    return [other for other in (below, above) if other is not None]


def _either(numbers: list[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last


def _check_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, not {num_classes}: is the data labelled?")


def initialise(module: nn.Module) -> None:
    """N(0, 0.02) kernels, zero biases, as the official code draws them."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
