"""A stand-in classifier whose features are its pixels, so that tests can see what an extractor was shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


class PixelClassifier(nn.Module):
    """Features are the pixels; logits a linear map of them."""

    def __init__(self, resolution: int = 4, channels: int = 1, num_classes: int = 3) -> None:
        super().__init__()
        self.resolution, self.channels, self.num_classes = resolution, channels, num_classes
        self.dropout = nn.Dropout()
        self.head = nn.Linear(channels * resolution**2, num_classes)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            self.head.weight.normal_(generator=generator)
            self.head.bias.zero_()

    def pooled(self, x: Tensor) -> Tensor:
        return self.dropout(x.flatten(1))

    def classify(self, pooled: Tensor) -> Tensor:
        return self.head(pooled)


@pytest.fixture
def classifier() -> type[PixelClassifier]:
    return PixelClassifier
