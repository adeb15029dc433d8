from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from maxgan import config as module
from maxgan.config import (
    AugmentConfig,
    BackboneConfig,
    BestAverageConfig,
    ClassifierConfig,
    ClassifierOptimConfig,
    DataConfig,
    EmaConfig,
    GanConfig,
    GanEmaConfig,
    ImageFacts,
    LossConfig,
    NetworksConfig,
    OptimConfig,
    ReconstructConfig,
    RunConfig,
    Schedule,
    TrainingConfig,
    differences,
    learning_hash,
    learning_settings,
    to_dict,
)

TRAININGS = [GanConfig, ClassifierConfig]
# Another allowed value for fields where a plain change of the default would be refused.
OTHERS: dict[str, Any] = {
    "data.crop_fraction": 0.5,
    "training.accumulation": 2,
    "training.batch_size": 128,
    "backbone.stem_stride": 2,
    "backbone.widths": (16, 32),
    "backbone.depths": (2, 1),
    "optim.min_lr": 1e-4,
    "loss.bcr_augment": "color",
    "augment.policy": "ada,cutout",
}


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, Schedule):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def changed(config: Any, name: str) -> Any:
    """Return `config` with another value of one setting."""
    section, _, field = name.rpartition(".")
    owner = getattr(config, section) if section else config
    old = getattr(owner, field)
    kind = typing.get_type_hints(type(owner))[field]
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    if name in OTHERS:
        new = OTHERS[name]
    elif isinstance(old, Schedule):
        new = dataclasses.replace(old, end=old.end / 2)
    elif choices:
        new = next(choice for choice in choices if choice != old)
    elif isinstance(old, bool):
        new = not old
    elif isinstance(old, int):
        new = old + 1
    elif isinstance(old, float):
        new = old / 2 + 0.01
    elif isinstance(old, str):
        new = old + "x"
    else:
        new = (
            (0.1, 0.2)
            if "float, ..." in str(kind)
            else (1, 2)
            if "tuple" in str(kind)
            else 3
            if "int" in str(kind)
            else 0.25
            if "float" in str(kind)
            else "x"
        )
    assert new != old
    owner = dataclasses.replace(owner, **{field: new})
    return dataclasses.replace(config, **{section: owner}) if section else owner


FREE = {
    "data.workers", "data.on_error", "data.streaming", "data.cache", "test", "test_crop", "evaluate",
    "backbone.checkpointing", "dry_run", "dry_classes", "ema.standing_images",
}  # fmt: skip
# Settings of a network, an augmentation and the like can be changed where there is one.
CHOOSING: dict[str, dict[str, Any]] = {
    "hit": {"networks": NetworksConfig(generator="hit")},
    "residual_generator": {"networks": NetworksConfig(generator="residual")},
    "maxvit_discriminator": {"networks": NetworksConfig(discriminator="maxvit")},
    "augment": {"augment": AugmentConfig("color")},
    "augment.adapt_images": {"augment": AugmentConfig("color", target=0.6)},
    "loss.penalty_step": {"loss": LossConfig(penalty="finite_difference")},
    "loss.bcr_augment": {"loss": LossConfig(bcr_real=1.0)},
}


@pytest.mark.parametrize("config_class", TRAININGS)
def test_the_hash_changes_with_each_learning_setting_and_no_other(config_class: Callable[[], Any]) -> None:
    default = config_class()
    hashes = [learning_hash(default)]
    assert re.fullmatch("[0-9a-f]{8}", hashes[0])
    for name, _ in fields(default):
        if (config_class, name) == (ClassifierConfig, "run.sample_every"):
            continue  # a classifier has but one value of it
        config = dataclasses.replace(default, **CHOOSING.get(name, CHOOSING.get(name.partition(".")[0], {})))
        original = learning_hash(config)
        new = learning_hash(changed(config, name))
        free = name in FREE or name.startswith(("run.", "evaluation.", "watchdog."))
        assert (new == original) == free, name
        if not free:
            hashes.append(new)
    assert len(set(hashes)) == len(hashes)


def test_the_hash_is_the_same_in_every_process_and_tells_the_trainings_apart() -> None:
    assert learning_hash(GanConfig()) == learning_hash(GanConfig())
    assert learning_hash(GanConfig()) != learning_hash(ClassifierConfig())


def test_plain_values_are_those_of_json() -> None:
    plain = to_dict(ClassifierConfig())
    assert plain["backbone"]["widths"] == list(ClassifierConfig().backbone.widths)
    assert plain["data"]["resolution"] is None
    assert "run" not in learning_settings(plain)
    assert "workers" not in learning_settings(plain)["data"]
    assert plain["data"]["workers"] == 0


def test_differences_are_named_with_both_values() -> None:
    old = {"a": {"b": 1, "c": 2}, "d": 3}
    new = {"a": {"b": 1, "c": 4}, "d": 3, "e": None, "f": 5}
    assert differences(old, new) == ["a.c: 2 -> 4", "f: None -> 5"]
    assert differences(old, old) == []


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ImageFacts(7), "at least 8 x 8 pixels, not 7"),
        (lambda: ImageFacts(8, 5), "1 to 4 channels, not 5"),
        (lambda: ImageFacts(8, 0), "1 to 4 channels, not 0"),
        (lambda: ImageFacts(8, 3, -1), "num_classes must be 0 or more, not -1"),
        (lambda: module.check_gan_resolution(24), "power of two from 8 to 1024, not 24: set data.resolution"),
        (lambda: module.check_gan_resolution(2048), "power of two from 8 to 1024, not 2048"),
        (lambda: DataConfig(crop_fraction=0), r"data.crop_fraction must be in \(0, 1\], not 0"),
        (lambda: DataConfig(crop_fraction=1.1), r"data.crop_fraction .* not 1.1"),
        (lambda: DataConfig(workers=-1), "data.workers must be 0 or more, not -1"),
        (
            lambda: BackboneConfig(widths=(1,)),
            r"backbone.widths \(1,\) and backbone.depths \(1, 1\) must have the same",
        ),
        (lambda: BackboneConfig(stem_stride=3), "backbone.stem_stride must be 1 or 2, not 3"),
        (lambda: BackboneConfig(drop_path=1), r"backbone.drop_path must be in \[0, 1\), not 1"),
        (lambda: LossConfig(r1_gamma=-1), "loss.r1_gamma and loss.r2_gamma must be 0 or more, or auto, not -1, 0.0"),
        (lambda: LossConfig(penalty_interval=0), "loss.penalty_interval must be at least 1, not 0"),
        (lambda: LossConfig(penalty_step=0), "loss.penalty_step must be above 0, not 0: take 0.03"),
        (lambda: LossConfig(bcr_fake=-1), "loss.bcr_real and loss.bcr_fake must be 0 or more, not 0.0, -1"),
        (lambda: LossConfig(bcr_augment="color,blur"), "loss.bcr_augment must join some of color, translation, cutout"),
        (lambda: LossConfig(bcr_augment="color,color"), "each once, like color,translation; not 'color,color'"),
        (lambda: LossConfig(bcr_augment=""), "loss.bcr_augment must join .* not ''"),
        (lambda: AugmentConfig("ada,hue"), "augment.policy 'ada,hue' names parts of ada beside ada"),
        (lambda: AugmentConfig("blur"), "augment.policy must join some of color, .*, ada, xflip, .* not 'blur'"),
        (lambda: AugmentConfig("ada", 1.5), "augment.probability must be from 0 to 1, not 1.5"),
        (lambda: AugmentConfig(target=0.6), "augment.target 0.6 adapts the probability of augment.policy: set that"),
        (lambda: AugmentConfig("ada", 0.5, 0.6), "leave augment.probability out"),
        (lambda: AugmentConfig("ada", target=1), "augment.target must be between -1 and 1, not 1: take 0.6"),
        (lambda: AugmentConfig("ada", adapt_images=0), "augment.adapt_images must be at least 1, not 0"),
        (lambda: AugmentConfig(probability=0.5), "augment.probability 0.5 is for augmentation, .*: set augment.policy"),
        (lambda: AugmentConfig("ada", adapt_images=9), "augment.adapt_images 9 is for .*: set augment.target"),
        (lambda: LossConfig(r1_gamma=0, penalty_interval=2), "loss.penalty_interval 2 is for penalties, whose"),
        (lambda: LossConfig(r1_gamma=0, penalty="finite_difference"), "loss.penalty finite_difference is for penalt"),
        (lambda: LossConfig(penalty_step=0.2), "loss.penalty_step 0.2 is for finite differences: set loss"),
        (lambda: LossConfig(bcr_augment="color"), "loss.bcr_augment color is for bCR, .*: set loss.bcr_real"),
        (lambda: OptimConfig(eps=-1), "optim.eps must be 0 or more, not -1"),
        (lambda: EmaConfig(half_life=math.nan), "ema.half_life and ema.warmup must be 0 or more, not nan, 0.4"),
        (lambda: EmaConfig(warmup=math.nan), "ema.half_life and ema.warmup must be 0 or more, not 20000, nan"),
        (lambda: GanEmaConfig(others=(1e6, 1e6 + 1)), "ema.others must be different half-lives"),  # one file's name
        (lambda: ReconstructConfig(sigma_rel=0.3), "sigma_rel must be above 0 and below 0.2887, not 0.3"),
        (lambda: ReconstructConfig(images=0), "images must be at least 1, not 0"),
        (lambda: GanConfig(dry_classes=-1), "dry_classes must be 0 or more, not -1"),
        (lambda: OptimConfig(lr=0), "optim.lr and optim.discriminator_lr must be above 0, and may fall to 0, not 0, N"),
        (lambda: OptimConfig(lr=Schedule(0, 1)), r"must be above 0, and may fall to 0, not Schedule\(start=0, end=1"),
        (lambda: OptimConfig(beta2=Schedule(0.9, 1)), r"optim.beta2 must be in \[0, 1\), not 0.0, Schedule"),
        (lambda: LossConfig(r1_gamma=Schedule(1, -1)), "loss.r1_gamma .* must be 0 or more, or auto, not Schedule"),
        (lambda: AugmentConfig("ada", Schedule(0, 2)), "augment.probability must be from 0 to 1, not Schedule"),
        (lambda: EmaConfig(half_life=Schedule(-1, 2)), "ema.half_life and ema.warmup must be 0 or more, not Schedule"),
        (lambda: Schedule(1, 2, 0), "over, the images that a schedule takes, must be at least 1, not 0"),
        (lambda: OptimConfig(discriminator_lr=-1), "optim.discriminator_lr must be above 0, and may fall to 0"),
        (lambda: OptimConfig(beta1=1), r"optim.beta1 and optim.beta2 must be in \[0, 1\), not 1, 0.99"),
        (lambda: OptimConfig(beta2=-0.1), "optim.beta2 must be in"),
        (lambda: EmaConfig(half_life=-1), "ema.half_life and ema.warmup must be 0 or more, not -1, 0.4"),
        (lambda: GanEmaConfig(others=(5, 5)), r"ema.others must be different half-lives above 0, not \[5, 5\]"),
        (lambda: GanEmaConfig(power=(0.28868,)), r"ema.power must be .* below 0.2887, not \[0.28868\]"),
        (lambda: GanEmaConfig(power=(0.3,)), r"ema.power must be .* below 0.2887, not \[0.3\]: take \[0.05, 0.1\]"),
        (lambda: BestAverageConfig(sigma_rels=(0,)), r"sigma_rels must be above 0 and below 0.2887, not \[0\]"),
        (lambda: BestAverageConfig(refine=-1), "refine must be at least 0, .* not -1, 128, None"),
        (lambda: BestAverageConfig(metrics=("kernel",)), "add frechet to metrics"),
        (lambda: TrainingConfig(seed=-1), "training.seed must be 0 or more, not -1"),
        (lambda: TrainingConfig(images=0), "training.images must be at least 1, not 0"),
        (lambda: TrainingConfig(batch_size=8, accumulation=3), "training.batch_size 8 must be a positive multiple of"),
        (lambda: TrainingConfig(batch_size=0), "training.batch_size 0 must be a positive multiple"),
        (lambda: RunConfig(keep=0), "run.keep must be at least 1"),
        (lambda: RunConfig(sample_every=-1), "run.sample_every at least 0"),
        (lambda: RunConfig(threads=0), "run.threads must be at least 1, not 0"),
        (lambda: ClassifierOptimConfig(min_lr=1), "optim.min_lr from 0 to it"),
        (lambda: ClassifierOptimConfig(warmup=1), r"must be in \[0, 1\), not 1"),
        (lambda: ClassifierOptimConfig(gradient_clip=0), "optim.gradient_clip must be above 0"),
        (lambda: ClassifierConfig(run=RunConfig(sample_every=5)), "leave run.sample_every at 0, not 5"),
    ],
)
def test_values_out_of_range_are_refused_by_name(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_one_penalty_of_the_two_is_enough_to_choose_its_kind() -> None:
    for gammas in ({"r2_gamma": 1.0}, {"r2_gamma": "auto"}, {"r2_gamma": Schedule(0, 1)}):
        assert LossConfig(r1_gamma=0, penalty="finite_difference", penalty_interval=4, **gammas).penalty_interval == 4


@pytest.mark.parametrize("config_class", TRAININGS)
def test_configs_can_not_be_changed(config_class: Callable[[], Any]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config_class().training.seed = 1
