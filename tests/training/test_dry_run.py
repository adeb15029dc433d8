"""A dry run against trainings that really run, and against torch's own counter."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from maxgan.config import (
    AugmentConfig,
    DataConfig,
    DiscriminatorConfig,
    GanConfig,
    GeneratorConfig,
    HiTConfig,
    ImageFacts,
    LossConfig,
    NetworksConfig,
    OptimConfig,
    Schedule,
    TrainingConfig,
)
from maxgan.models import MaxViTDiscriminator
from maxgan.models.build import build_discriminator, build_generator
from maxgan.training import dry_run
from maxgan.training.cost import Cost, Kept
from maxgan.training.dry_run import GPUS, DryRun, describe, facts_of, rows_of
from maxgan.training.gan import GanTrainer
from maxgan.training.gan_run import train_gan

MAXVIT = GanConfig(
    data=DataConfig(source="missing.zip", resolution=8),
    generator=GeneratorConfig(latent_dim=8, width=16, head_dim=8, latent_tokens=4, norm="batch", norm_group=2),
    discriminator=DiscriminatorConfig(1 / 128, 16),
    training=TrainingConfig(images=64, batch_size=4),
    dry_classes=3,
)
HIT = replace(
    MAXVIT,
    data=DataConfig(source="missing.zip", resolution=32, channels=1, labels=False),
    networks=NetworksConfig("hit"),
    generator=GanConfig().generator,
    hit=HiTConfig(8, 4, widths=(16, 16, 8), depths=(2, 1, 1), heads=(4, 2, 2), norm_group=4),
    loss=LossConfig("non_saturating", r1_gamma=1.0, penalty="finite_difference", bcr_real=1.0),
    optim=OptimConfig(updates="simultaneous"),
    training=TrainingConfig(images=64, batch_size=4),
    dry_run=True,
    dry_classes=0,
)


@cache
def dry(config: GanConfig) -> DryRun:
    return DryRun(config)


def real_update(config: GanConfig, facts: ImageFacts) -> tuple[Cost, Kept]:
    """What the first update of a training on the CPU costs."""
    trainer = GanTrainer(config, facts, Accelerator(cpu=True, mixed_precision=config.training.precision))
    images = config.training.batch_size // config.training.accumulation
    pixels = torch.zeros(images, facts.channels, facts.resolution, facts.resolution, dtype=torch.uint8)
    batches = itertools.repeat((pixels, torch.zeros(images, dtype=torch.int64)))
    with Kept([*trainer.generator.parameters(), *trainer.discriminator.parameters()]) as kept, Cost() as cost:
        trainer.step(batches)
    return cost, kept


@pytest.mark.parametrize(("config", "facts"), [(MAXVIT, ImageFacts(8, 3, 3)), (HIT, ImageFacts(32, 1, 0))])
def test_arithmetic_and_activations_are_those_of_a_real_update(config: GanConfig, facts: ImageFacts) -> None:
    run = dry(config)
    assert run.facts == facts
    cost, kept = real_update(config, facts)
    assert run.flops == 2 * cost.multiply_adds > 0
    # On meta some results lie in memory otherwise, and a copy more or less is kept.
    assert run.memory["activations"] == pytest.approx(kept.peak, rel=0.03)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_mixed_precision_keeps_what_autocast_keeps(norm: str) -> None:
    training = replace(MAXVIT.training, precision="bf16", accumulation=2)
    config = replace(MAXVIT, training=training, generator=replace(MAXVIT.generator, norm=norm, norm_group=None))
    assert DryRun(config).memory["activations"] == real_update(config, ImageFacts(8, 3, 3))[1].peak


def test_an_augmentation_has_no_products() -> None:
    half = replace(MAXVIT.training, precision="bf16")  # whose images are changed in float32
    config = replace(MAXVIT, augment=AugmentConfig("ada,cutout", target=0.6), training=half)
    assert DryRun(config).flops == dry(MAXVIT).flops


@pytest.mark.slow
def test_lazy_penalties_count_as_often_as_they_run() -> None:
    always = dry(MAXVIT).flops
    never = DryRun(replace(MAXVIT, loss=LossConfig(r1_gamma=0))).flops
    # Also those whose weight starts at 0.
    lazy = DryRun(replace(MAXVIT, loss=LossConfig(r1_gamma=Schedule(0, 1), penalty_interval=4))).flops
    assert lazy == pytest.approx(always / 4 + never * 3 / 4)
    assert always > never


@pytest.mark.parametrize("config", [MAXVIT, HIT], ids=["maxvit", "hit"])
def test_tables_hold_every_parameter_and_product_of_a_forward_pass(config: GanConfig) -> None:
    run = dry(config)
    generator = build_generator(config, run.facts).eval()
    discriminator = build_discriminator(config, run.facts).eval()
    labels = torch.zeros(1, dtype=torch.int64) if run.facts.num_classes else None
    for network, rows, inputs in (
        (generator, run.generator, torch.zeros(1, 8)),
        (discriminator, run.discriminator, generator(torch.zeros(1, 8), labels)),
    ):
        *parts, total = rows
        assert total.parameters == sum(p.numel() for p in network.parameters()) == sum(r.parameters for r in parts)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(inputs, labels)
        assert 2 * total.multiply_adds == counter.get_total_flops() == 2 * sum(r.multiply_adds for r in parts)
    weights = sum(p.numel() for network in (generator, discriminator) for p in network.parameters())
    assert run.memory["weights"] == 4 * weights
    assert run.memory["Adam's moments"] == 8 * weights
    averaged = sum(t.numel() * t.element_size() for t in generator.state_dict().values())
    assert run.memory["moving average"] == averaged + 8  # and the number of updates


def test_stages_are_told() -> None:
    rows = {row.name: row for row in dry(MAXVIT).generator}
    assert [(r.side, r.width, r.blocks, r.window) for r in (rows[f"stages.{i}"] for i in range(2))] == [
        (4, 16, 1, 4), (8, 16, 1, 4),
    ]  # fmt: skip
    rows = {row.name: row for row in dry(HIT).generator}
    assert [(r.side, r.width, r.blocks, r.window) for r in (rows[f"stages.{i}"] for i in range(3))] == [
        (8, 16, 2, 4), (16, 16, 1, 4), (32, 8, 1, 8),
    ]  # fmt: skip
    rows = {row.name: row for row in dry(HIT).discriminator}
    assert [(r.side, r.blocks, r.window) for r in (rows[f"blocks.{i}"] for i in range(3))] == [
        (16, 1, None), (8, 1, None), (4, 1, None),
    ]  # fmt: skip
    with torch.device("meta"):
        discriminator = MaxViTDiscriminator(32, width=8, depth=2, head_dim=4)
        rows = {row.name: row for row in rows_of(discriminator, torch.empty(1, 3, 32, 32))}
    assert [(r.side, r.width, r.blocks, r.window) for r in (rows[f"stages.{i}"] for i in range(3))] == [
        (16, 8, 2, 8), (8, 8, 2, 8), (4, 8, 2, 4),
    ]  # fmt: skip


def test_time_is_that_of_the_rates_which_are_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = dry(MAXVIT)
    gpu = GPUS[0]
    # With endless bandwidth all depends on arithmetic.
    fast = replace(gpu, bandwidth=1e12)
    assert run.seconds(fast) == pytest.approx(run.flops / (0.4 * gpu.float32 * 1e12))
    assert run.seconds(gpu) > run.seconds(fast)
    monkeypatch.setattr(dry_run, "OF_PEAK", 0.2)
    assert run.seconds(fast) == pytest.approx(run.flops / (0.2 * gpu.float32 * 1e12))


def test_the_report_names_all_that_was_asked_for_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "DryRun", dry)
    assert train_gan(HIT) == 0
    assert list(tmp_path.iterdir()) == []
    text = capsys.readouterr().out
    for words in (
        "images of 32 x 32 x 1, no classes", "map   width  blocks  window", "to_rgb.2", "micro-batches of 4 images",
        "Adam's moments", "16 updates", "A100: ", "H100: ", "40% of the GPU's float32 peak",
    ):  # fmt: skip
        assert words in text, words


def test_without_a_resolution_the_data_is_looked_at() -> None:
    assert facts_of(GanConfig()) == ImageFacts(16, 1, 10)
    assert facts_of(MAXVIT) == ImageFacts(8, 3, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(MAXVIT, data=DataConfig("missing.zip"), dry_classes=0), "a dry run needs no data where data.resol"),
        (replace(MAXVIT, data=DataConfig("digits")), "dry_classes 3 is for labels of data that is not looked at"),
        (replace(MAXVIT, data=DataConfig("digits", 16, labels=False)), "dry_classes 3 .* and data.labels true"),
        (replace(MAXVIT, data=DataConfig("digits", 24)), "power of two from 8 to 1024, not 24"),
        (replace(HIT, data=DataConfig("digits", 16)), "HiT needs images of at least 32 px, not 16"),
    ],
)
def test_mistakes_are_told(config: GanConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe(config)
