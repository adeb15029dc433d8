"""The recipes in configs/ are valid, and say what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from maxgan.cli import parse
from maxgan.config import ClassifierConfig, GanConfig

FOLDER = Path(__file__).parents[1] / "configs"
GANS = {"digits.yaml"}
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


def test_the_digits_recipes_are_the_defaults() -> None:
    assert parse(GanConfig, [f"--config={FOLDER}/digits.yaml"])[0] == GanConfig()
    assert parse(ClassifierConfig, [f"--config={FOLDER}/digits_classifier.yaml"])[0] == ClassifierConfig()
