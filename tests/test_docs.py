"""What README and pages name is there: files, headings, and the settings of every command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from maxgan.cli import field_types
from maxgan.config import (
    BestAverageConfig,
    ClassifierConfig,
    ClassSheetConfig,
    EvaluateConfig,
    GanConfig,
    InterpolateConfig,
    InvertConfig,
    NeighboursConfig,
    PackConfig,
    ReconstructConfig,
    ReportConfig,
    SampleConfig,
)

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
COMMANDS: dict[str, Any] = {
    "train_gan.py": GanConfig,
    "train_classifier.py": ClassifierConfig,
    "sample.py": SampleConfig,
    "evaluate.py": EvaluateConfig,
    "maxgan.report": ReportConfig,
    "maxgan.data pack": PackConfig,
    "maxgan.explore classes": ClassSheetConfig,
    "maxgan.explore interpolate": InterpolateConfig,
    "maxgan.explore neighbours": NeighboursConfig,
    "maxgan.explore invert": InvertConfig,
    "maxgan.training.posthoc best": BestAverageConfig,
    "maxgan.training.posthoc reconstruct": ReconstructConfig,
}
COMMON = {"config", "help"}
# Of accelerate, SLURM, maxgan.models.convert and benchmarks/study.py, in the text between commands.
OTHERS = {"num_processes", "machine_rank", "main_process_ip", "main_process_port", "signal", "set", "tables"}
FIELDS = {command: set(field_types(config)) for command, config in COMMANDS.items()}
# What was measured was measured with the settings that there were.
NOW = sorted(set(PAGES) - {"results.md"})


def known(name: str, fields: set[str]) -> bool:
    """Whether it is a setting, or a part of one, as of a schedule."""
    return name in fields or name.rpartition(".")[0] in fields


def place(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = ROOT if page == "README.md" else ROOT / "docs"
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) if "://" not in link]
    for link in links:
        file, _, anchor = link.partition("#")
        target = (folder / file) if file else (folder / page)
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in map(place, headings), link


@pytest.mark.parametrize("page", NOW)
def test_commands_have_these_settings_and_files(page: str) -> None:
    lines = PAGES[page].replace("\\\n", " ").splitlines()
    for command, fields in FIELDS.items():
        for line in (line for line in lines if re.search(rf"\b{re.escape(command)}\b(?!`)", line)):
            arguments = line.partition(command)[2].partition("  #")[0].partition("`")[0]
            for flag in re.findall(r"(?<=\s)--([a-z][\w.]*)", arguments):
                assert flag in COMMON or known(flag, fields), f"{command} has no --{flag}: {line}"
    for file in re.findall(r"\b(?:configs|scripts|benchmarks|examples|tests)/[\w./]+\.\w+", PAGES[page]):
        assert (ROOT / file).is_file(), file
    for recipe in set(re.findall(r"`(\w+\.yaml)`", PAGES[page])) - {"config.yaml"}:
        assert (ROOT / "configs" / recipe).is_file(), recipe


@pytest.mark.parametrize("page", NOW)
def test_settings_in_the_text_are_there(page: str) -> None:
    every = set().union(*FIELDS.values())
    sections = {name.partition(".")[0] for name in every if "." in name}
    for flag in re.findall(r"`--([a-z][\w.]*)", PAGES[page]):
        assert flag in COMMON | OTHERS or known(flag, every), flag
    for name in re.findall(r"`([a-z][\w]*\.[a-z]\w*)`", PAGES[page]):
        is_file = name.endswith(".safetensors")
        assert is_file or name.partition(".")[0] not in sections or name in every, name
