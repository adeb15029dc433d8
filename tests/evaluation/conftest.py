"""A stand-in classifier whose features are its pixels, so that tests can see what an extractor was shown; and photos
and random weights for the published extractors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from benchmarks.stand_ins import save_port


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


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """uint8 `(2, 3, 299, 299)`: cut-outs of the two photographs that come with scikit-learn."""
    cuts = [load_sample_image(name)[60:359, 200:499] for name in ("china.jpg", "flower.jpg")]
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="session")
def port_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like torch-fidelity's, with random weights of which each matters, scaled so that features are of order
    1."""
    return save_port(tmp_path_factory.mktemp("port"))


@pytest.fixture(scope="session")
def fidelity(port_weights: Path) -> Any:
    """torch-fidelity's own extractor with those weights: features, logits without and with bias."""
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("port", ["2048", "logits_unbiased", "logits"], str(port_weights))


@pytest.fixture(scope="session")
def published_names() -> Callable[..., dict[str, np.ndarray]]:
    def rename(variables: dict[str, np.ndarray], first: int = 1) -> dict[str, np.ndarray]:
        """Return the case's variables by the names of Keras' file, whose layers count from `first`."""
        named = {}
        for name, array in variables.items():
            layer, leaf = name.split("/")
            kind, _, number = layer.partition("_")
            if number:
                kind = {"conv": "conv2d", "norm": "batch_normalization"}[kind]
                count = int(number) + first
                layer = f"{kind}_{count}" if count else kind
            named[f"{layer}/{layer}/{leaf}:0"] = array
        return named

    return rename
