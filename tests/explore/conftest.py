"""A small generator in a file, quick to draw from and curved enough to be worth exploring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maxgan.models.network import Network, export_model


@dataclass(frozen=True)
class PainterConfig:
    latent_dim: int = 6


class Painter(Network):
    """Two layers and tanh, with its class added to z."""

    config_class = PainterConfig
    config: PainterConfig

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        num_classes: int = 0,
        config: PainterConfig | None = None,
        **settings: object,
    ) -> None:
        super().__init__(resolution, channels, num_classes, config, **settings)
        self.embedding = nn.Embedding(num_classes, self.latent_dim) if num_classes else None
        self.first = nn.Linear(self.latent_dim, 32)
        self.second = nn.Linear(32, channels * resolution**2)

    @property
    def latent_dim(self) -> int:
        return self.config.latent_dim

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = z + 3 * self.embedding(labels)
        x = self.second(torch.tanh(self.first(z)))
        return torch.tanh(2 * x).unflatten(1, (self.channels, self.resolution, self.resolution))


@pytest.fixture
def painter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a generator of grey 16 x 16 images with 3 classes."""
    return export(tmp_path, monkeypatch, 1, 3)


@pytest.fixture
def plain_painter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a generator of RGB 16 x 16 images without classes."""
    return export(tmp_path, monkeypatch, 3, 0)


def export(folder: Path, monkeypatch: pytest.MonkeyPatch, channels: int, num_classes: int) -> Path:
    # Setting threads would outlast the test.
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    torch.manual_seed(0)
    path = folder / "run" / "generator.safetensors"
    names = ["nought", "one", "two"][:num_classes]
    export_model(Painter(16, channels, num_classes).eval(), path, {"source": "digits-train", "class_names": names})
    return path
