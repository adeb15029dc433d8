"""The recipes in configs/ are valid, and say what they are for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from maxgan.cli import parse
from maxgan.config import ClassifierConfig, GanConfig, ImageFacts
from maxgan.models.build import build_discriminator, build_generator
from maxgan.training.dry_run import GPUS, DryRun, facts_of

FOLDER = Path(__file__).parents[1] / "configs"
# Parameters of generator and discriminator.
GANS = {
    "cifar10.yaml": (21_319_571, 13_922_433),
    "cifar10_study.yaml": (654_375, 1_276_057),
    "digits.yaml": (609_945, 1_259_089),
    "ffhq256.yaml": (24_137_051, 28_862_593),
    "imagenet128_best.yaml": (17_814_211, 23_880_833),
    "imagenet128_hit.yaml": (32_866_627, 23_880_833),
    "imagenet128_paper.yaml": (18_559_795, 23_880_833),
    "imagenet128_paper_cbaga.yaml": (18_559_795, 23_880_833),
}
EXAMPLES = {"maxvit_tiny_coco_detection.yaml"}  # read, and tested, by examples/
RECIPES = [file for file in sorted(FOLDER.glob("*.yaml")) if file.name not in EXAMPLES]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_a_recipe_parses_and_its_header_gives_command_and_hardware(file: Path) -> None:
    config, name = parse(GanConfig if file.name in GANS else ClassifierConfig, [f"--config={file}"])
    assert name == file.stem
    assert config is not None
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    for word in ("accelerate launch", "Hardware", "Expected"):
        assert word in text, word


@pytest.mark.parametrize("name", GANS)
def test_the_networks_of_a_recipe_have_the_parameters_that_they_shall(name: str) -> None:
    config, _ = parse(GanConfig, [f"--config={FOLDER}/{name}"])
    facts = ImageFacts(32, 3, 10) if name.startswith("cifar10") else facts_of(config)
    with torch.device("meta"):
        networks = build_generator(config, facts), build_discriminator(config, facts)
    assert tuple(sum(p.numel() for p in network.parameters()) for network in networks) == GANS[name]


def test_an_average_of_0999_an_update_is_a_half_life_in_images() -> None:
    config, _ = parse(GanConfig, [f"--config={FOLDER}/imagenet128_paper.yaml"])
    assert 0.5 ** (config.training.batch_size / config.ema.half_life) == pytest.approx(0.999, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(GANS.keys() - {"digits.yaml", "cifar10_study.yaml"}))
def test_the_hours_of_a_recipe_are_those_of_the_dry_run(name: str) -> None:
    text = (FOLDER / name).read_text()
    config, _ = parse(GanConfig, [f"--config={FOLDER}/{name}"])
    run = DryRun(config)
    processes = int(found[1]) if (found := re.search(r"--num_processes (\d+)", text)) else 1
    for gpu in (gpu for gpu in GPUS if gpu.name != "H200"):
        hours = run.seconds(gpu) * config.training.images / config.training.batch_size / 3600 / processes
        told = re.search(rf"([\d.]+) hours on {'an' if processes == 1 else processes} {gpu.name}", text)
        assert told is not None, gpu.name
        assert float(told[1]) == pytest.approx(hours, rel=0.05), gpu.name


def test_the_digits_recipes_are_the_defaults() -> None:
    assert parse(GanConfig, [f"--config={FOLDER}/digits.yaml"])[0] == GanConfig()
    assert parse(ClassifierConfig, [f"--config={FOLDER}/digits_classifier.yaml"])[0] == ClassifierConfig()
