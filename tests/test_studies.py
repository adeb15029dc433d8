"""The studies in configs/studies: their plans, their networks, and what is made of their results."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from maxgan.cli import parse
from maxgan.config import EvaluationConfig, GanConfig, ImageFacts, RunConfig
from maxgan.models import ResidualGenerator
from maxgan.models.build import build_discriminator, build_generator
from maxgan.training.dry_run import GPUS, DryRun

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "studies"
# Resolution, channels, and the most parameters of a network.
STUDIES = {
    "cifar10": (32, 3, 5_000_000),
    "cifar10_16px": (16, 3, 1_300_000),
    "cifar10_16px_recipe": (16, 3, 1_300_000),
    "cifar10_16px_long": (16, 3, 1_300_000),
    "digits": (16, 1, 2_000_000),
    "digits_precision": (16, 1, 2_000_000),
}


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import study

    yield study
    for name in ("study", "study_results", "timing"):
        sys.modules.pop(name, None)


def variants(study: ModuleType, name: str) -> dict[str, GanConfig]:
    """The settings of every variant's longest run."""
    configs = {}
    for run in study.plan(FOLDER / f"{name}.yaml", Path("out")):
        configs[run.variant], _ = (
            parse(GanConfig, list(run.command[1:])) if run.seed == 0 else (configs[run.variant], 0)
        )
        assert configs[run.variant].training.images == run.images
    return configs


def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_every_study_is_known() -> None:
    assert {file.stem for file in FOLDER.glob("*.yaml")} == STUDIES.keys()


def test_best_at_16_px_is_the_same_in_all_its_studies(study: ModuleType) -> None:
    names = [name for name in STUDIES if name.startswith("cifar10_16px")]
    found = [
        replace(config, run=RunConfig(), training=replace(config.training, images=1), evaluation=EvaluationConfig())
        for config in (variants(study, name)["best"] for name in names)
    ]
    assert len(names) == 3 and all(config == found[0] for config in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_builds_and_networks_are_of_one_size(study: ModuleType, name: str) -> None:
    resolution, channels, most = STUDIES[name]
    facts = ImageFacts(resolution, channels, 10)
    sizes = {}
    for variant, config in variants(study, name).items():
        assert config.data.resolution in (resolution, None)
        with torch.device("meta"):
            generator, discriminator = build_generator(config, facts), build_discriminator(config, facts)
        labels = torch.zeros(8, dtype=torch.int64, device="meta")
        images = generator(torch.empty(8, generator.latent_dim, device="meta"), labels)
        assert discriminator(images, labels).shape == (8,)
        if variant.startswith("latent_"):
            continue
        sizes[variant] = parameters(generator)
        assert max(sizes[variant], parameters(discriminator)) <= most, variant
    if name.startswith("cifar10"):
        assert max(sizes.values()) <= 1.05 * min(sizes.values()), sizes


@pytest.mark.slow
def test_no_run_of_cifar10_takes_longer_than_eight_minutes_on_an_h200(study: ModuleType) -> None:
    names = [run.variant for run in study.plan(FOLDER / "cifar10.yaml", Path("out"))]
    names = [name for name in dict.fromkeys(names) if name != "order_c_last"]  # `best` in another order
    runs = study.plan(FOLDER / "cifar10.yaml", Path("out"), names, {"dry_classes": "10"})
    head, _, *rows = (line.strip("| ").split(" | ") for line in study.estimates(runs).splitlines())
    assert head[0] == "1,000,000 images" and [row[0] for row in rows] == names
    assert all(0 < float(row[head.index("H200")]) < 8 for row in rows), rows
    # Of one of them by hand: parameters, and minutes of all updates.
    config, _ = parse(GanConfig, list(runs[-1].command[1:]))
    facts = ImageFacts(32, 3, 10)
    with torch.device("meta"):
        networks = build_generator(config, facts), build_discriminator(config, facts)
    assert rows[-1][1:3] == [f"{parameters(network):,}" for network in networks]
    (gpu,) = [gpu for gpu in GPUS if gpu.name == "H200"]
    residual = names.index("residual")
    config, _ = parse(GanConfig, list(runs[len(runs) - len(names) + residual].command[1:]))
    minutes = DryRun(config).seconds(gpu) * 1_000_000 / 128 / 60
    assert float(rows[residual][head.index("H200")]) == pytest.approx(minutes, abs=0.06)


def results(study: ModuleType, *rows: tuple[str, int, int, float, float]) -> dict[Any, dict[str, float]]:
    """Results of runs of (variant, images, seed, FD, seconds)."""
    return {
        study.Run(variant, images, seed, Path("out"), ()): {
            "fd": fd, "seconds": seconds, "generator": 1.5, "discriminator": 2.5, "precision": 0.75,
        }
        for variant, images, seed, fd, seconds in rows
    }  # fmt: skip


def test_variants_are_compared_at_equal_images_and_at_equal_time(study: ModuleType) -> None:
    found = results(
        study,
        ("slow", 100, 0, 9.0, 50.0), ("slow", 100, 1, 11.0, 70.0), ("slow", 200, 0, 1.0, 130.0),
        ("fast", 100, 0, 12.0, 30.0), ("fast", 200, 0, 4.0, 66.0), ("fast", 200, 1, 6.0, 54.0),
        ("slowest", 100, 0, 1.0, 61.0), ("slowest", 200, 0, 0.5, 140.0),
    )  # fmt: skip
    lines = study.table(found).splitlines()
    assert "| 100 | slow | 10.000 ± 1.414 | 9.000, 11.000 | 0.750 | - | - | 1.50, 2.50 | 1.0 |" in lines
    assert "| 100 | slowest | **1.000** | 1.000 | 0.750 | - | - | 1.50, 2.50 | 1.0 |" in lines
    assert sum("**" in line for line in lines) == 2
    # `fast` needs 60 seconds for 200 images, in which `slow` sees 100, and `slowest` not even those.
    assert study.time_table(found).splitlines() == [
        "| in 1.0 minutes | images | minutes | FD |",
        "| --- | --- | --- | --- |",
        "| slow | 100 | 1.0 | 10.000 |",
        "| fast | 200 | 1.0 | **5.000** |",
        "| slowest | none of the lengths fits | - | - |",
    ]


def test_the_course_of_a_run_is_read_with_its_times(study: ModuleType, tmp_path: Path) -> None:
    import study_results

    lines = [
        {"images": 10, "seconds": 4.0, "images_per_second": 1.0}, {"images": 15, "fd": 7.0},
        {"images": 20, "seconds": 8.0}, {"images": 20, "fd": 3.0},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = study.Run("one", 20, 0, tmp_path, ())
    assert study_results.course(run) == [(15, 6.0, 7.0), (20, 8.0, 3.0)]
    # Runs without scores on the way, or without any line, have dots alone.
    other = study.Run("other", 20, 0, tmp_path / "none", ())
    found = {run: {"fd": 3.0, "seconds": 8.0}, other: {"fd": 2.0, "seconds": 5.0}}
    study.curves(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("text", "changed", "message"),
    [
        ("images: 100", {}, r"images must be like \[12800\], not 100"),
        ("seeds: 0", {}, "has nothing in seeds"),
        ("variants: [best]", {}, r"variants must be like \{best: \{\}\}, not \['best'\]"),
        ("variants: {best: 3}", {}, "best must be settings by their names, not 3"),
        ("settings: [1]", {}, r"settings must be settings by their names, not \[1\]"),
        (
            "settings: {training.seed: 1}",
            {},
            "training.seed in settings would be overwritten: the study says",
        ),
        ("variants: {best: {training.images: 9}}", {}, "training.images in best would be overwritten"),
        ("", {"training.images": "9"}, "training.images in --set would be overwritten: the study says it in images"),
        ("", {"run.directory": "x"}, "run.directory in --set would be overwritten: name the folder of all runs"),
    ],
)
def test_mistakes_in_a_study_are_named(
    study: ModuleType, tmp_path: Path, text: str, changed: dict[str, str], message: str
) -> None:
    lines = {"base": "a.yaml", "settings": "", "images": "[8]", "seeds": "[0]", "variants": "{best: }"}
    key, _, value = text.partition(": ")
    lines |= {key: value} if key else {}
    file = tmp_path / "study.yaml"
    file.write_text("\n".join(f"{name}: {value}" for name, value in lines.items()))
    with pytest.raises(ValueError, match=message):
        study.plan(file, tmp_path, (), changed)


def test_nothing_behind_a_colon_changes_nothing(study: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("base: a.yaml\nsettings:\nimages: [8]\nseeds: [0]\nvariants:\n  best:\n")
    (run,) = study.plan(file, tmp_path)
    assert run.command[3:] == ("--training.images=8", "--training.seed=0", f"--run.directory={tmp_path}/best-8-0")


def test_samples_are_of_the_first_seed_that_has_the_longest_run(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []

    def load(path: Path) -> Any:
        drawn.append(path)
        return ResidualGenerator(8, 1, 0, latent_dim=4, width=8, norm="batch").eval()

    monkeypatch.setattr(sys.modules["study_results"], "load_generator", load)
    runs = [study.Run("a", 100, 0, tmp_path / "short", ()), study.Run("a", 200, 1, tmp_path / "long", ())]
    study.samples(runs, tmp_path / "samples.png")
    assert [path.parent.name for path in drawn] == ["long"]


def test_settings_of_all_runs_can_be_given(study: ModuleType) -> None:
    changed = study.settings_of(["data.source=a=b.zip", "run.threads=1"])
    assert changed == {"data.source": "a=b.zip", "run.threads": "1"}
    runs = study.plan(FOLDER / "digits.yaml", Path("out"), ["attention_everywhere", "no_norm"], changed)
    assert [run.variant for run in runs] == ["attention_everywhere", "no_norm"] * 3
    for run in runs:
        config = SimpleNamespace(**dict(flag[2:].split("=", 1) for flag in run.command[3:]))
        assert vars(config)["data.source"] == "a=b.zip" and vars(config)["run.threads"] == "1"
    with pytest.raises(ValueError, match=r"--set takes NAME=VALUE, such as data\.source=train\.zip, not 'threads'"):
        study.settings_of(["threads"])
