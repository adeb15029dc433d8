"""Our backbones in timm's registry: after `import maxgan.models.registry`, `timm.create_model("maxgan_maxvit_tiny")`.

An optional extra: it needs timm (`pip install timm`).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from maxgan.models.backbone import SIZES, MaxViT, Stage


class TimmMaxViT(nn.Module):
    """A MaxViT with the methods that timm's models have; `.model` is our own.

    Args:
        cfg: name of the size.
        img_size: side of the images, or (height, width), which must be equal.
        in_chans: image channels, 1 to 4.
        num_classes: at least 2; or 0 to leave out the last layer.
        global_pool: `avg`; or empty for the last map, with num_classes 0.
        drop_path_rate: stochastic depth by the official schedule.
        settings: fields of BackboneConfig.

    Raises:
        ValueError: for images that are not square, another pooling, and as MaxViT.
    """

    def __init__(
        self,
        cfg: str,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_path_rate: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height != width:
            raise ValueError(f"img_size must be square, not {height} x {width}")
        self.model = MaxViT.from_name(cfg, height, num_classes or 1000, in_chans, drop_path=drop_path_rate, **settings)
        config = self.model.config
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = config.widths[-1]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": config.stem_width, "reduction": config.stem_stride, "module": "model.stem"}
        ]
        for i, channels in enumerate(config.widths):
            reduction = config.stem_stride * 2 ** (i + 1)
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"model.stages.{i}"})
        self.num_classes = self.model.num_classes
        self.global_pool = "avg"
        if num_classes == 0 or global_pool != "avg":
            self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.model.head.logits

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new last layer in place of the old one, or none for 0 classes."""
        if global_pool is not None:
            if global_pool not in ("avg", "") or (global_pool == "" and num_classes):
                raise ValueError(f"global_pool must be avg, or empty with num_classes 0, not {global_pool!r}")
            self.global_pool = global_pool
        self.num_classes = num_classes
        if num_classes:
            self.model.reset_head(num_classes)
        else:
            self.model.head.add_module("logits", nn.Identity())

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out the stages after the last map that `indices` asks for, and the head; return the maps' numbers."""
        taken, last = feature_take_indices(len(self.model.stages) + 1, indices)
        if prune_head or last < len(self.model.stages):
            self.model.add_module("head", nn.Identity())
            self.num_classes, self.global_pool = 0, ""
        self.model.stages = self.model.stages[:last]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        return list(taken)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch gradient checkpointing on or off."""
        for stage in self.model.stages:
            assert isinstance(stage, Stage)
            stage.checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of the tables of relative positions."""
        return {name for name, _ in self.named_parameters() if name.endswith("relative_bias")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns by which timm groups parameters for layer-wise learning rates."""
        blocks = r"^model\.stages\.(\d+)" if coarse else r"^model\.stages\.(\d+)\.(\d+)"
        return {"stem": r"^model\.stem", "blocks": [(blocks, None), (r"^model\.head\.norm", (99999,))]}

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps `(N, C, H, W)` of the stem (0) and the stages (1 and up) that `indices` asks for.

        Args:
            x: images `(N, in_chans, H, W)`.
            indices: which maps; a number means the last so many, None all.
            norm: has no effect: our norm follows the pooling.
            stop_early: leave out the stages after the last map.
            output_fmt: NCHW.
            intermediates_only: return the maps alone, else the last one too.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, not {output_fmt!r}")
        taken, last = feature_take_indices(len(self.model.stages) + 1, indices)
        maps = []
        for i, part in enumerate((self.model.stem, *self.model.stages)):
            if stop_early and i > last:
                break
            x = part(x)
            if i in taken:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, `(N, C, H, W)`."""
        return self.model.features(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits for the last map; or, of pre_logits, what the last layer would see."""
        if not self.global_pool:
            return x
        x = x.mean((2, 3))
        head = self.model.head
        return torch.tanh(head.dense(head.norm(x))) if pre_logits else head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(N, num_classes)`; without classes what the last layer would see, `(N, C)`."""
        return self.forward_head(self.forward_features(x))


def _create(name: str, pretrained: bool, **kwargs: Any) -> TimmMaxViT:
    if pretrained:
        raise ValueError(f"there are no pretrained weights of {name}: see maxgan.models.convert for others'")
    model: TimmMaxViT = build_model_with_cfg(
        TimmMaxViT,
        name,
        pretrained,
        model_cfg=name.removeprefix("maxgan_maxvit_"),
        feature_cfg={"feature_cls": "getter"},
        **kwargs,
    )
    return model


default_cfgs = generate_default_cfgs(
    {
        f"maxgan_maxvit_{size}": {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.95,
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "model.stem.conv1",
            "classifier": "model.head.logits",
            "fixed_input_size": True,
            "license": "apache-2.0",
        }
        for size in SIZES
    }
)


@register_model
def maxgan_maxvit_tiny(pretrained: bool = False, **kwargs: Any) -> TimmMaxViT:
    """MaxViT-T."""
    return _create("maxgan_maxvit_tiny", pretrained, **kwargs)


@register_model
def maxgan_maxvit_small(pretrained: bool = False, **kwargs: Any) -> TimmMaxViT:
    """MaxViT-S."""
    return _create("maxgan_maxvit_small", pretrained, **kwargs)


@register_model
def maxgan_maxvit_base(pretrained: bool = False, **kwargs: Any) -> TimmMaxViT:
    """MaxViT-B."""
    return _create("maxgan_maxvit_base", pretrained, **kwargs)


@register_model
def maxgan_maxvit_large(pretrained: bool = False, **kwargs: Any) -> TimmMaxViT:
    """MaxViT-L."""
    return _create("maxgan_maxvit_large", pretrained, **kwargs)


@register_model
def maxgan_maxvit_xlarge(pretrained: bool = False, **kwargs: Any) -> TimmMaxViT:
    """MaxViT-XL."""
    return _create("maxgan_maxvit_xlarge", pretrained, **kwargs)
