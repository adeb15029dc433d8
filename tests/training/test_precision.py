"""What stays in float32 in a bf16 training, and what doesn't: the page docs/speed.md, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maxgan.config import (
    AugmentConfig,
    DiscriminatorConfig,
    GanConfig,
    GeneratorConfig,
    LossConfig,
    MaxViTDiscriminatorConfig,
    NetworksConfig,
    TrainingConfig,
)
from maxgan.data.loader import ImageDataset, training_batches
from maxgan.training import objective
from maxgan.training.gan import GanTrainer

aten = torch.ops.aten
CONFIG = GanConfig(
    generator=GeneratorConfig(
        latent_dim=8, width=16, head_dim=8, latent_tokens=4, window_size=4, norm="batch", norm_group=4
    ),
    discriminator=DiscriminatorConfig(1 / 128, 16),
    loss=LossConfig(r1_gamma=1.0, r2_gamma=1.0),
    training=TrainingConfig(images=64, batch_size=8, precision="bf16"),
)
MAXVIT = replace(
    CONFIG,
    networks=NetworksConfig(discriminator="maxvit"),
    discriminator=GanConfig().discriminator,
    maxvit_discriminator=MaxViTDiscriminatorConfig(width=8, depth=1, head_dim=4, window_size=4),
    loss=replace(CONFIG.loss, penalty="finite_difference"),
)


AUGMENTED = replace(
    CONFIG,
    augment=AugmentConfig("ada,color,translation,cutout"),
    loss=replace(CONFIG.loss, bcr_real=1.0, bcr_fake=1.0),
)


class Types(TorchDispatchMode):
    """Notes the type of the first tensor that each operation takes."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[Any, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        if tensors:
            self.taken.setdefault(func.overloadpacket, set()).add(tensors[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG, id="residual"),
        pytest.param(MAXVIT, id="maxvit", marks=pytest.mark.slow),
        pytest.param(AUGMENTED, id="augmented", marks=pytest.mark.slow),
    ],
)
def test_float32_is_where_the_page_says(config: GanConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageDataset(config.data)
    trainer = GanTrainer(config, dataset.facts, Accelerator(cpu=True, mixed_precision="bf16"))
    logits: set[torch.dtype] = set()
    penalties: set[torch.dtype] = set()
    trainer.discriminator.register_forward_hook(lambda *call: logits.add(call[2].dtype))
    for name in ("gradient_penalty", "finite_difference_penalty"):
        compute = getattr(objective, name)

        def noted(*arguments: Any, compute: Any = compute) -> Tensor:
            penalty: Tensor = compute(*arguments)
            penalties.add(penalty.dtype)
            return penalty

        monkeypatch.setattr(objective, name, noted)
    with Types() as types:
        metrics = trainer.step(training_batches(dataset, 8, 0))

    half, full = {torch.bfloat16}, {torch.float32}
    # Products run in half precision, but for D's last layer.
    assert types.taken[aten.bmm] == types.taken[aten.convolution] == half
    assert types.taken[aten.addmm] == half | full
    assert logits == penalties == full
    # So do softmax, and the sums of batch statistics, in float32.
    assert types.taken[aten._softmax] == types.taken[aten.var_mean] == full
    assert all(value.dtype == torch.float32 and value.isfinite() for value in metrics.values())
    # And so do LayerNorm on a CPU, and augmentation and bCR: interpolation, mixing of colours, cuts, the distance.
    assert types.taken.get(aten.native_layer_norm, full) == full
    if config.augment.policy is not None:
        for operation in (aten.gather, aten.lerp, aten.where, aten.mse_loss):
            assert types.taken[operation] == full
    # What lasts from one update to the next: weights and running statistics, their averages, Adam's moments.
    kept = [*trainer.watchdog.networks["generator"].state_dict().values(), *trainer.discriminator.parameters()]
    kept += trainer.ema.module.state_dict().values()
    for optimizer in (trainer.optimizer_g, trainer.optimizer_d):
        kept += [t for entry in optimizer.state.values() for t in entry.values()]
    assert {t.dtype for t in kept if t.is_floating_point()} == full


def test_a_logit_is_not_rounded_to_half_precision() -> None:
    """Beside the same features in float64: the last layer alone adds nothing to their rounding."""
    torch.manual_seed(0)
    discriminator = GanTrainer(CONFIG, ImageDataset(CONFIG.data).facts, Accelerator(cpu=True)).discriminator
    features, labels = torch.randn(64, 16).bfloat16(), torch.arange(64) % 10
    with torch.autocast("cpu", torch.bfloat16):
        found = discriminator.judge(features, labels)
    expected = discriminator.double().judge(features.double(), labels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
