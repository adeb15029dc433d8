"""A training from each kind of source, stopped and resumed: N + N updates are 2 N, bit for bit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from maxgan.config import (
    DataConfig,
    DiscriminatorConfig,
    EvaluationConfig,
    GanConfig,
    GeneratorConfig,
    RunConfig,
    TrainingConfig,
)
from maxgan.training.gan_run import train_gan
from maxgan.training.run import read_metrics


def train(directory: Path, source: DataConfig) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    config = GanConfig(
        data=replace(source, resolution=8, crop="random", crop_fraction=0.8, flip=True, workers=2),
        generator=GeneratorConfig(latent_dim=8, width=8, head_dim=8, latent_tokens=4),
        discriminator=DiscriminatorConfig(1 / 128, 8),
        training=TrainingConfig(images=32, batch_size=4, accumulation=2),
        evaluation=EvaluationConfig(enabled=False),
        run=RunConfig(
            directory=str(directory), log_every=12, sample_every=0, checkpoint_every=16, keep=9, tracker="none",
            threads=1,
        ),
    )  # fmt: skip
    assert train_gan(config) == 0


def state(directory: Path) -> dict[str, Any]:
    """Networks, moving average, meters, optimisers and the logged numbers but for the times."""
    folder = directory / "checkpoints" / "images-000000032"
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {f"{file.name}/{name}": tensor for name, tensor in load_file(file).items()}
    for file in sorted(folder.glob("optimizer*.bin")):
        for key, entry in torch.load(file, weights_only=True)["state"].items():
            found |= {f"{file.name}/{key}/{name}": torch.as_tensor(value) for name, value in entry.items()}
    for line in read_metrics(directory / "metrics.jsonl"):
        numbers = [value for name, value in line.items() if name not in ("seconds", "images_per_second")]
        found[f"line {line['images']}"] = torch.tensor(numbers, dtype=torch.float64)
    return found


@pytest.mark.slow
def test_each_source_is_resumed_bit_for_bit(each_source: DataConfig, tmp_path: Path) -> None:
    """11 images in 8 updates of 2 parts: the stop is amid the second pass and amid a logged interval."""
    train(tmp_path / "whole", each_source)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "images-000000032")
    train(tmp_path / "resumed", each_source)
    whole, resumed = state(tmp_path / "whole"), state(tmp_path / "resumed")
    assert whole.keys() == resumed.keys()
    assert len(whole) > 100
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
