"""DINOv2 (arXiv 2304.07193) at 224 px as an extractor: timm's vision transformer with the published weights."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maxgan.models.convert import read_weights

RESOLUTION = 224
PATCH = 14
# Width of the tokens, and the size that it tells.
SIZES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
# The official code enlarges the side that it resizes positions to by this, and the scale with it.
POSITION_OFFSET = 0.1


class DinoV2(nn.Module):
    """The normalised class token of DINOv2, `(N, D)`, of images `(N, 3, 224, 224)` normalised as ImageNet's.

    Args:
        size: `small`, `base`, `large` or `giant`.

    Raises:
        ValueError: if timm isn't installed.
    """

    resolution = RESOLUTION

    def __init__(self, size: str) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ValueError("DINOv2 needs timm: pip install timm") from error
        self.size = size
        name = f"vit_{size}_patch{PATCH}_dinov2"
        self.network = timm.create_model(name, pretrained=False, img_size=RESOLUTION, num_classes=0)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(x)
        return features


def load_dinov2(path: str | Path) -> DinoV2:
    """Return DINOv2 in eval mode with the weights of a file; the size follows from them.

    Args:
        path: the official backbone without registers, such as dinov2_vitl14_pretrain.pth of
            https://dl.fbaipublicfiles.com/dinov2, or timm's safetensors of vit_*_patch14_dinov2.lvd142m.

    Raises:
        ValueError: if the file can't be read, a weight is missing, left over or of another shape, or timm isn't
            installed.
    """
    tensors = {_timm_name(name): tensor for name, tensor in read_weights(path).items() if name != "mask_token"}
    token = tensors.get("cls_token")
    if token is None or token.shape[-1] not in SIZES or "pos_embed" not in tensors:
        raise ValueError(f"{path} holds no weights of DINOv2: it needs cls_token of width {', '.join(map(str, SIZES))}")
    # Without registers there is a position for each patch and for the class token; the official models have 518 px.
    positions = tensors["pos_embed"]
    side = round((positions.shape[1] - 1) ** 0.5)
    if side**2 + 1 != positions.shape[1] or "register_tokens" in tensors or "reg_token" in tensors:
        raise ValueError(f"{path} holds a DINOv2 with registers, or of a shape that isn't square: take that without")
    with torch.device("meta"):
        model = DinoV2(SIZES[token.shape[-1]])
    tensors["pos_embed"] = resize_positions(positions, RESOLUTION // PATCH)
    try:
        model.network.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        lines = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"{path} doesn't hold the weights of DINOv2 {model.size}: {lines}") from error
    return model.eval()


def resize_positions(positions: Tensor, side: int) -> Tensor:
    """Return positions `(1, 1 + S * S, D)` for a grid of `side` x `side` patches, the class token's as it is.

    As the official code does: bicubic, not antialiased, with the scale of a side larger by 0.1. timm's own way is
    antialiased, and gives other features.
    """
    given = round((positions.shape[1] - 1) ** 0.5)
    if given == side:
        return positions
    grid = positions[:, 1:].float().reshape(1, given, given, -1).permute(0, 3, 1, 2)
    scale = (side + POSITION_OFFSET) / given
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    assert grid.shape[-1] == side
    return torch.cat([positions[:, :1].float(), grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def _timm_name(name: str) -> str:
    """Return timm's name of an official weight; only the giant's feed-forward layers are called otherwise."""
    return name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
