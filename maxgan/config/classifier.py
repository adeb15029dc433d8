"""The whole of `train_classifier.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from maxgan.config.images import DataConfig
from maxgan.config.networks import BackboneConfig
from maxgan.config.training import EmaConfig, RunConfig, TrainingConfig, WatchdogConfig


@dataclass(frozen=True)
class ClassifierOptimConfig:
    """AdamW with linear warm-up, then a cosine or a constant rate."""

    lr: float = 3e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: a cosine from lr down to min_lr, or lr to the end."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup: float = 0.1
    """Fraction of the training that the rate rises for, in [0, 1)."""
    warmup_images: int | None = None
    """Images that the rate rises for, in place of `warmup`."""
    weight_decay: float = 0.05
    """Decoupled weight decay; not on biases, norms and relative-position tables."""
    label_smoothing: float = 0.1
    """Mass of the target spread over all classes, in [0, 1)."""
    gradient_clip: float | None = 1.0
    """Largest norm of the gradient; unset: any."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or not 0 <= self.min_lr <= self.lr:
            raise ValueError(f"optim.lr must be above 0 and optim.min_lr from 0 to it, not {self.lr}, {self.min_lr}")
        if not (0 <= self.warmup < 1 and 0 <= self.label_smoothing < 1):
            raise ValueError(
                f"optim.warmup and optim.label_smoothing must be in [0, 1), not {self.warmup}, {self.label_smoothing}"
            )
        if self.warmup_images is not None and self.warmup_images < 0:
            raise ValueError(f"optim.warmup_images must be 0 or more, or unset, not {self.warmup_images}")
        if self.weight_decay < 0:
            raise ValueError(f"optim.weight_decay must be 0 or more, not {self.weight_decay}")
        if self.gradient_clip is not None and self.gradient_clip <= 0:
            raise ValueError(f"optim.gradient_clip must be above 0, or unset for none, not {self.gradient_clip}")


@dataclass(frozen=True)
class AffineConfig:
    """Random rotation, scale and shift of the training images of a classifier, each uniform."""

    rotate: float = 10.0
    """Largest angle in degrees, either way."""
    scale: float = 0.1
    """Largest change of size, as a fraction of it, in [0, 1)."""
    shift: float = 0.08
    """Largest shift along each axis, as a fraction of the side, in [0, 1); by whole pixels where there is neither
    rotation nor scale, so that nothing is blurred."""
    border: Literal["black", "mirror"] = "black"
    """What comes in from outside: black, or the image's mirror image."""

    def __post_init__(self) -> None:
        if not 0 <= self.rotate <= 180:
            raise ValueError(f"affine.rotate must be from 0 to 180 degrees, not {self.rotate}")
        if not (0 <= self.scale < 1 and 0 <= self.shift < 1):
            raise ValueError(f"affine.scale and affine.shift must be in [0, 1), not {self.scale}, {self.shift}")


@dataclass(frozen=True)
class MixConfig:
    """RandAugment of each training image of a classifier, then MixUp or CutMix of pairs (all torchvision's, v2)."""

    randaugment_ops: int = 0
    """Random operations on each image, one after the other (arXiv 1909.13719); 0 for none."""
    randaugment_magnitude: int = 15
    """Their strength, from 0 to 30, the strongest."""
    mixup: float = 0.0
    """Alpha of MixUp (arXiv 1710.09412): a batch and its partners are blended by a share drawn from Beta(alpha, alpha);
    0 for none."""
    cutmix: float = 0.0
    """Alpha of CutMix (arXiv 1905.04899), the same with rectangles; 0 for none. With both, every update takes one of
    them at random."""

    def __post_init__(self) -> None:
        if self.randaugment_ops < 0 or not 0 <= self.randaugment_magnitude <= 30:
            raise ValueError(
                "mix.randaugment_ops must be 0 or more and mix.randaugment_magnitude from 0 to 30, not "
                f"{self.randaugment_ops}, {self.randaugment_magnitude}"
            )
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(f"mix.mixup and mix.cutmix must be 0 or more, not {self.mixup}, {self.cutmix}")


@dataclass(frozen=True)
class ClassifierConfig:
    """Train a MaxViT classifier. Without any argument it learns the embedded handwritten digits."""

    data: DataConfig = field(default_factory=DataConfig)
    test: str | None = "digits-test"
    """Images to measure accuracy on: `digits-test`, a folder or a zip; unset: none."""
    test_crop: Literal["center", "whole"] = "center"
    """What is kept of those: a central square by data.crop_fraction, or the whole image, its sides made equal."""
    init: str | None = None
    """Classifier file to start from, such as one trained at a lower resolution; unset: random weights."""
    evaluate: str | None = None
    """Classifier file whose accuracy on `test` is printed, in place of a training; no run is made."""
    affine: AffineConfig = field(default_factory=AffineConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    optim: ClassifierOptimConfig = field(default_factory=ClassifierOptimConfig)
    ema: EmaConfig = field(default_factory=lambda: EmaConfig(half_life=0))
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(images=60_000, batch_size=64))
    run: RunConfig = field(default_factory=lambda: RunConfig(sample_every=0, checkpoint_every=16_000))
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)

    def __post_init__(self) -> None:
        if self.run.sample_every:
            raise ValueError(f"a classifier makes no samples: leave run.sample_every at 0, not {self.run.sample_every}")
        if (self.optim.warmup_images or 0) >= self.training.images:
            raise ValueError(
                f"optim.warmup_images {self.optim.warmup_images} must be fewer than training.images "
                f"{self.training.images}"
            )
        if self.evaluate is not None and self.test is None:
            raise ValueError("evaluate needs images to measure accuracy on: set test")
