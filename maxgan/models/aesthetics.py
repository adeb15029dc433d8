"""MaxViT as a judge of images: a distribution over ten scores in place of classes."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor

from maxgan.config import BackboneConfig
from maxgan.models.backbone import MaxViT

SCORES = 10


class MaxViTAesthetics(MaxViT):
    """MaxViT whose head gives the share of people who would score an image 1, 2, ..., 10 (NIMA, arXiv 1709.05424).

    The task of the paper's section 4.3, on the AVA photographs: the classification head with one output a score, and a
    softmax. Train with `emd_loss`, judge with `aesthetics_scores` (both in maxgan.evaluation.aesthetics).

    Args:
        resolution, channels, config, settings: as MaxViT has them.
        num_classes: scores, from 1 up.

    Raises:
        ValueError: as MaxViT does.
    """

    config_class = BackboneConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = SCORES,
        config: BackboneConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)

    @classmethod
    def from_name(
        cls, size: str, resolution: int = 224, num_classes: int = SCORES, channels: int = 3, **settings: Any
    ) -> Self:
        """Return a model of one of the paper's sizes, with random weights: see MaxViT."""
        return super().from_name(size, resolution, num_classes, channels, **settings)

    @classmethod
    def from_classifier(cls, classifier: MaxViT, num_classes: int = SCORES) -> Self:
        """Return a new model with copies of a classifier's weights, but a last layer of its own: to fine-tune."""
        model = cls(classifier.resolution, classifier.channels, classifier.num_classes, classifier.config)
        model.load_state_dict(classifier.state_dict())
        model.reset_head(num_classes)
        return model

    def distribution(self, pooled: Tensor) -> Tensor:
        """Return the shares of the scores `(N, num_classes)`, in float32 at least, for pooled features `(N, C)`."""
        logits = self.classify(pooled)
        return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Return the shares of the scores `(N, num_classes)` for images `(N, channels, H, W)` in [-1, 1]."""
        return self.distribution(self.pooled(x))


def mean_score(distribution: Tensor) -> Tensor:
    """Return the mean score `(N,)`, from 1 to K, of distributions `(N, K)` over the scores 1 to K."""
    scores = torch.arange(1, distribution.shape[1] + 1, device=distribution.device, dtype=distribution.dtype)
    return distribution @ scores
