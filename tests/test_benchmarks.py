"""The benchmarks run, at their smallest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maxgan.checkpoint import export_model
from maxgan.models import MaxViTGenerator

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_gan_step_is_measured_against_its_floor(tmp_path: Path) -> None:
    output = tmp_path / "step.json"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "gan_step.py"), "--narrow=8", "--resolutions=32", "--batch=8",
        "--rounds=2", "--seconds=0.01", "--threads=1", f"--output={output}",
        "--precision", "fp32", "bf16", "--ways", "fused", "plain",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    rows = report["rows"]
    assert [(row["precision"], row["recipe"], row["way"]) for row in rows] == [
        (precision, recipe, way)
        for precision in ("fp32", "bf16")
        for recipe in ("imagenet128_paper", "imagenet128_hit")
        for way in ("fused", "plain")
    ]
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert row["recipe"] in result.stdout
        assert len(row["rounds"]) == 2
        assert 0 < row["bytes_fused"] < row["bytes"]
        # Both are lower bounds of the time, so shares of one; with a margin for a machine whose speed drifts.
        assert 0 < row["of_fused"] <= row["of_floor"] < 1.5
        floor = max(row["operations"] / report["matrix_product"], row["bytes"] / report["copy"])
        assert row["of_floor"] == pytest.approx(row["images_per_second"] * floor)


@pytest.mark.slow
def test_the_mathematics_of_scores_are_measured(tmp_path: Path) -> None:
    output = tmp_path / "evaluation.json"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "evaluation.py"), "--images=70", "--side=ours", f"--output={output}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    report = json.loads(output.read_text())
    assert report["scores"] == json.loads(result.stdout)["scores"]
    scores = report["scores"]["ours"]
    assert scores["fd"] > 0 and 1 < scores["inception_score_mean"] < 1008 and 0 < scores["precision"] <= 1
    assert report["seconds_per_1000_images"]["ours"] > 0 and report["peak_memory_gb"] > 0


@pytest.mark.slow
def test_a_study_compares_variants_and_goes_on_where_it_was(tmp_path: Path) -> None:
    study = tmp_path / "tiny.yaml"
    study.write_text(
        f"base: {ROOT / 'configs' / 'digits.yaml'}\n"
        "settings: {run.threads: 1, generator.width: 16, discriminator.channel_multiplier: 0.01, "
        f"evaluation.cache: {tmp_path / 'cache'}}}\n"
        "images: [16]\n"
        "seeds: [0, 1]\n"
        "variants: {wide: {}, narrow: {generator.widths: [16, 16, 16], generator.orders: [GA-C, BA-C, C]}, "
        "wild: {optim.lr: 1.0e+30}}\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / "study.py"),
            str(study),
            "--output",
            str(tmp_path / "out"),
            "--set",
            "training.batch_size=8",
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=600)

    result = run("--jobs=2", "--only", "wide", "narrow")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["variant"], row["seed"]) for row in report["runs"]] == [
        ("wide", 0), ("narrow", 0), ("wide", 1), ("narrow", 1),
    ]  # fmt: skip
    for row in report["runs"]:
        scores = json.loads((tmp_path / "out" / f"{row['variant']}-16-{row['seed']}" / "scores.json").read_text())
        assert row["fd"] == scores["metrics"]["fd"] and row["seconds"] > 0
    wide, narrow = report["runs"][:2]
    assert wide["generator"] > narrow["generator"] and wide["discriminator"] == narrow["discriminator"]
    # The best at equal images, and at equal time.
    assert result.stdout.count("**") == 4 and "| 16 | wide |" in result.stdout
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in ("samples.png", "curves.png"))

    checkpoints = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/generator.safetensors")}
    again = run("--tables")
    assert again.returncode == 0 and again.stdout == result.stdout
    # One that diverges is named, and takes nothing from the others.
    wild = run("--only", "wild", "wide")
    assert wild.returncode == 1
    table = result.stdout.strip()
    assert table in wild.stdout and "- wild-16-0 ended with code 1: see" in wild.stdout
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["failed"]) == 2
    assert checkpoints == {path: path.stat().st_mtime_ns for path in checkpoints}
    assert "has no variant narow: it has wide, narrow" in run("--only", "narow").stderr


@pytest.mark.slow
def test_standing_statistics_are_compared(tmp_path: Path) -> None:
    generator = MaxViTGenerator(
        16, 1, 10, latent_dim=8, width=16, head_dim=8, latent_tokens=4, norm="batch", norm_group=8
    )
    export_model(generator, tmp_path / "batch.safetensors", {"source": "digits-train"})
    export_model(
        MaxViTGenerator(16, 1, 10, latent_dim=8, width=16, head_dim=8, latent_tokens=4, norm="layer"),
        tmp_path / "layer.safetensors",
        {"source": "digits-train"},
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "benchmarks" / "standing.py"), *arguments, "--threads=1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    result = run(str(tmp_path / "batch.safetensors"), "--n=128", "--images", "64", "512")
    assert result.returncode == 0, result.stderr
    rows = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith("| ") and "-" * 3 not in line]
    names = ["averages of running ones", "of each batch", "standing, 64 samples", "standing, 512 samples"]
    assert [row[0].removeprefix("| ") for row in rows[-4:]] == names
    assert len({row[1] for row in rows[-4:]}) == 4
    assert "layer.safetensors has no BatchNorm" in run(str(tmp_path / "layer.safetensors")).stderr
    assert "--n must be a multiple of 128" in run(str(tmp_path / "batch.safetensors"), "--n=100").stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="reads what Linux tells of a thread")
def test_saving_is_measured(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "saving.py"), "--rounds=2", f"--folder={tmp_path / 'c'}",
        "--generator.width=16", "--generator.head_dim=8", "--discriminator.max_width=16", "--run.threads=1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    rows = {" ".join(words[: words.index("s") - 1]): float(words[words.index("s") - 1]) for words in lines[2:]}
    assert list(rows) == ["whole save", "computing", "disk", "copy"]
    assert rows["copy"] < rows["computing"] <= rows["whole save"]
    assert list(tmp_path.iterdir()) == []
