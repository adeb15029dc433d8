"""Normalisation of `(N, C, H, W)` maps, chosen by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maxgan.nn.layer_norm import layer_norm

# The official MaxViT code (Keras): BatchNorm eps 1e-3 and momentum 0.99 (0.01 in torch's convention), LayerNorm eps
# 1e-5.
BATCH_NORM_EPS = 1e-3
BATCH_NORM_MOMENTUM = 0.01
LAYER_NORM_EPS = 1e-5


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of `(N, C, H, W)`; in channels_last memory no copy is made."""

    def __init__(self, channels: int, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x.permute(0, 2, 3, 1), self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class GhostBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are taken over consecutive groups of `group` images (arXiv 1705.08741).

    The result for an image depends on its group alone, so a recipe keeps its meaning on one GPU or many and with
    gradient accumulation, where plain BatchNorm follows the images that a process happens to hold. HiT and MaxViT-GAN
    were trained on TPUs with 8 images a replica; group 8 gives their model. Running statistics take one step of
    `momentum` towards the mean of the groups' means and unbiased variances, as the mean over replicas does.

    Raises:
        ValueError: in training, if the batch is not a multiple of `group`.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(
        self, channels: int, group: int, eps: float = BATCH_NORM_EPS, momentum: float = BATCH_NORM_MOMENTUM
    ) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if not self.training or n == self.group:
            return super().forward(x)
        if n % self.group:
            raise ValueError(
                f"ghost BatchNorm: {n} images don't split into groups of {self.group}: make the generator's norm_group "
                f"divide the images a process holds at once (batch_size / processes / accumulation)"
            )
        # Sums in float32 at least, whatever the autocast type, as BatchNorm itself takes them.
        groups = x.unflatten(0, (n // self.group, self.group)).to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(groups, dim=(1, 3, 4), keepdim=True, correction=0)
        scale = torch.rsqrt(var + self.eps) * self.weight.view(1, 1, c, 1, 1)
        out = torch.addcmul(self.bias.view(1, 1, c, 1, 1) - mean * scale, groups, scale)
        with torch.no_grad():
            count = self.group * h * w
            self.running_mean.lerp_(mean.mean(0).flatten(), self.momentum)
            self.running_var.lerp_(var.mean(0).flatten() * (count / max(count - 1, 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        return out.flatten(0, 1).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group}"


def make_norm(name: str, channels: int, group: int | None = None) -> nn.Module:
    """Return the norm called `name` for `(N, C, H, W)` maps.

    Args:
        name: `batch`, `layer`, or `none`, which leaves maps as they are.
        channels: C.
        group: images per batch statistic (ghost BatchNorm); None takes all that are there.

    Raises:
        ValueError: for another name, a group below 2, or a group without `batch`.
    """
    if name in ("layer", "none"):
        if group is not None:
            raise ValueError(f"norm_group is for norm: batch; norm: {name} has no batch statistics")
        return LayerNorm2d(channels) if name == "layer" else nn.Identity()
    if name != "batch":
        raise ValueError(f"norm must be batch, layer or none, not {name!r}")
    if group is None:
        return nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)
    if group < 2:
        raise ValueError(f"norm_group must be at least 2, not {group}")
    return GhostBatchNorm2d(channels, group)
