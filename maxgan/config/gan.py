"""The whole of `train_gan.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from maxgan.config.checks import changed
from maxgan.config.images import DataConfig
from maxgan.config.networks import (
    DiscriminatorConfig,
    GeneratorConfig,
    HiTConfig,
    MaxViTDiscriminatorConfig,
    NetworksConfig,
    ResidualGeneratorConfig,
)
from maxgan.config.objective import AugmentConfig, LossConfig
from maxgan.config.scores import EvaluationConfig
from maxgan.config.training import GanEmaConfig, GanWatchdogConfig, OptimConfig, RunConfig, TrainingConfig


@dataclass(frozen=True)
class GanConfig:
    """Train a MaxViT-GAN. Without any argument it learns the embedded handwritten digits."""

    data: DataConfig = field(default_factory=DataConfig)
    networks: NetworksConfig = field(default_factory=NetworksConfig)
    generator: GeneratorConfig = field(default_factory=lambda: GeneratorConfig(orders=("C",)))
    hit: HiTConfig = field(default_factory=HiTConfig)
    residual_generator: ResidualGeneratorConfig = field(default_factory=ResidualGeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=lambda: DiscriminatorConfig(3 / 64, 192))
    maxvit_discriminator: MaxViTDiscriminatorConfig = field(default_factory=MaxViTDiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: GanEmaConfig = field(default_factory=GanEmaConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    watchdog: GanWatchdogConfig = field(default_factory=GanWatchdogConfig)
    dry_run: bool = False
    """Train nothing: print the networks stage by stage, their memory, and an estimate of the time; without a GPU, and
    without data where data.resolution is set (data.channels is then 3 unless set)."""
    dry_classes: int = 0
    """Classes that a dry run without data counts with."""

    def __post_init__(self) -> None:
        for kind, sections in (
            ("generator", {"maxvit": "generator", "hit": "hit", "residual": "residual_generator"}),
            ("discriminator", {"residual": "discriminator", "maxvit": "maxvit_discriminator"}),
        ):
            chosen = getattr(self.networks, kind)
            for name, section in sections.items():
                if name != chosen and (idle := changed(self, section)):
                    raise ValueError(
                        f"{section}.{idle} is set, but networks.{kind} is {chosen}: leave it out (also of the "
                        f"config file), or set networks.{kind} to {name}"
                    )
        if self.dry_classes < 0:
            raise ValueError(f"dry_classes must be 0 or more, not {self.dry_classes}")
