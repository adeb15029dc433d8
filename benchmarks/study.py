"""Compare variants of a training at equal images seen, over several seeds: a table, and samples of each.

    python benchmarks/study.py configs/studies/digits.yaml [--output DIR] [--jobs 2] [--only NAME ...]

A study is a YAML file:

    base: ../digits.yaml            # config of every run, beside the study
    settings: {run.threads: 1}      # settings of every run, by their dotted names
    images: [12800, 25600]          # lengths; schedules that go by the share of the run scale with them
    seeds: [0, 1, 2]
    variants:
      name: {loss.name: hinge}      # what this variant changes

Runs that are there already are not done again, and one that was interrupted goes on. Numbers are those of the runs'
scores.json; FD is mean and deviation over the seeds. Samples are chosen by rule: of the longest runs the first seed,
latents 0 to 19, with classes in turn.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from timing import environment, write_report
from tqdm import tqdm

from maxgan.checkpoint import atomic_path
from maxgan.cli import parse, plain_errors
from maxgan.config import GanConfig, ImageFacts
from maxgan.models.build import build_discriminator, build_generator
from maxgan.sampling import EXPORT_NAME, generate, load_generator
from maxgan.training.run import CONFIG, METRICS, SCORES, read_metrics
from maxgan.writers import image_grid

ROOT = Path(__file__).parents[1]
SAMPLES = 20
KEYS = {"base", "settings", "images", "seeds", "variants"}


@dataclass(frozen=True)
class Run:
    """One training of the study."""

    variant: str
    images: int
    seed: int
    directory: Path
    command: tuple[str, ...]


def plan(file: Path, output: Path, only: Iterable[str]) -> list[Run]:
    """Return the runs of a study, the shortest first.

    Raises:
        ValueError: if the file isn't there or no YAML, lacks a key or has another, if nothing is to be trained, or if
            `only` names no variant.
    """
    if not file.is_file():
        raise ValueError(f"there is no study {file}: name a file such as configs/studies/digits.yaml")
    try:
        study = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(study, dict) or study.keys() != KEYS:
        raise ValueError(f"{file} must have exactly the keys {', '.join(sorted(KEYS))}")
    for key in ("images", "seeds", "variants"):
        if not study[key]:
            raise ValueError(f"{file} has nothing in {key}: give at least one")
    variants: dict[str, dict[str, Any]] = study["variants"]
    unknown = set(only) - variants.keys()
    if unknown:
        raise ValueError(f"{file} has no variant {', '.join(sorted(unknown))}: it has {', '.join(variants)}")
    runs = []
    for images in sorted(study["images"]):
        for seed in study["seeds"]:
            for name in only or variants:
                directory = output / f"{name}-{images}-{seed}"
                settings = {
                    **study["settings"],
                    **variants[name],
                    "training.images": images,
                    "training.seed": seed,
                    "run.directory": str(directory),
                }
                flags = (
                    f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
                    for key, value in settings.items()
                )
                base = str(file.parent / study["base"])
                runs.append(Run(name, images, seed, directory, (str(ROOT / "train_gan.py"), "--config", base, *flags)))
    return runs


def train(run: Run) -> None:
    """Train one run unless it is complete; its output goes to a log beside its folder.

    Raises:
        RuntimeError: if the training fails.
    """
    log = run.directory.with_suffix(".log")
    with log.open("a") as stream:
        done = subprocess.run([sys.executable, *run.command], stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{run.directory.name} ended with code {done.returncode}: see {log}")


def read(run: Run) -> dict[str, float]:
    """Return the scores of a run, its parameters in millions, and the seconds of its training."""
    config, _ = parse(GanConfig, ["--config", str(run.directory / CONFIG)])
    exported = load_generator(run.directory / EXPORT_NAME)
    facts = ImageFacts(exported.resolution, exported.channels, exported.num_classes)
    with torch.device("meta"):
        networks = {"generator": build_generator(config, facts), "discriminator": build_discriminator(config, facts)}
    found: dict[str, float] = dict(json.loads((run.directory / SCORES).read_text())["metrics"])
    for name, network in networks.items():
        found[name] = sum(p.numel() for p in network.parameters()) / 1e6
    found["seconds"] = max(line.get("seconds", 0.0) for line in read_metrics(run.directory / METRICS))
    return found


def table(results: Mapping[Run, Mapping[str, float]]) -> str:
    """Return the results as a table in Markdown: a row for each variant and length, the best FD of a length in bold."""
    rows = [
        "| images | variant | FD | of each seed | precision | recall | accuracy | G, D (M) | minutes |",
        "| --- " * 9 + "|",
    ]
    groups: dict[tuple[int, str], list[Mapping[str, float]]] = {}
    for run, result in results.items():
        groups.setdefault((run.images, run.variant), []).append(result)
    means = {key: statistics.mean(r["fd"] for r in group) for key, group in groups.items()}
    for (images, variant), group in groups.items():
        fds = [result["fd"] for result in group]
        fd = f"{means[images, variant]:.3f}"
        if means[images, variant] == min(mean for (length, _), mean in means.items() if length == images):
            fd = f"**{fd}**"
        if len(fds) > 1:
            fd += f" ± {statistics.stdev(fds):.3f}"
        cells = [f"{images:,}", variant, fd, ", ".join(f"{value:.3f}" for value in fds)]
        for metric in ("precision", "recall", "accuracy"):
            cells.append(f"{statistics.mean(r[metric] for r in group):.3f}" if metric in group[0] else "-")
        cells.append(f"{group[0]['generator']:.2f}, {group[0]['discriminator']:.2f}")
        cells.append(f"{statistics.mean(r['seconds'] for r in group) / 60:.1f}")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def picture(runs: Iterable[Run], path: Path) -> None:
    """Write the samples of the longest runs of the first seed, a row for each variant."""
    runs = list(runs)
    shown = [run for run in runs if run.images == runs[-1].images and run.seed == runs[0].seed]
    figure = Figure(figsize=(11, 1.25 * len(shown)), layout="constrained")
    for axes, run in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        generator = load_generator(run.directory / EXPORT_NAME)
        classes = list(range(min(generator.num_classes, SAMPLES // 2))) or None
        images = torch.cat([batch.images for batch in generate(generator, range(SAMPLES), SAMPLES, "cpu", classes)])
        axes.imshow(image_grid(images, SAMPLES // 2), cmap="gray", interpolation="nearest")
        axes.set_ylabel(run.variant, rotation=0, ha="right", va="center", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def main() -> None:
    """Train what is missing, then write results.md, results.json and samples.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--output", type=Path, help="folder of the runs; unset: runs/studies/NAME")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="variants; unset: all")
    options = parser.parse_args()
    output = options.output or Path("runs") / "studies" / options.study.stem
    runs = plan(options.study, output, options.only)
    output.mkdir(parents=True, exist_ok=True)
    start = time.time()
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for _ in tqdm(pool.map(train, runs), total=len(runs), unit="run", desc=output.name):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    results = {run: read(run) for run in runs}
    text = table(results)
    with atomic_path(output / "results.md") as temporary:
        temporary.write_text(text)
    report = {
        "study": yaml.safe_load(options.study.read_text()),
        "seconds": time.time() - start,
        "environment": environment(torch.device("cpu")) | {"python": platform.python_version()},
        "runs": [{"variant": r.variant, "images": r.images, "seed": r.seed, **found} for r, found in results.items()],
    }
    write_report(report, output / "results.json")
    picture(runs, output / "samples.png")
    print(text)


if __name__ == "__main__":
    with plain_errors():
        main()
