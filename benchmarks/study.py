"""Compare variants of a training at equal images seen and at equal time, over several seeds.

    python benchmarks/study.py configs/studies/digits.yaml [--output DIR] [--jobs 2] [--only NAME ...]
    python benchmarks/study.py configs/studies/digits.yaml --tables     (of the runs that are there)
    python benchmarks/study.py configs/studies/cifar10.yaml --set data.source=cifar10/train
    python benchmarks/study.py configs/studies/cifar10.yaml --dry_run --set dry_classes=10

A study is a YAML file:

    base: ../digits.yaml            # config of every run, beside the study
    settings: {run.threads: 1}      # settings of every run, by their dotted names
    images: [12800, 25600]          # lengths; schedules that go by the share of the run scale with them
    seeds: [0, 1, 2]
    variants:
      name: {loss.name: hinge}      # what this variant changes

Runs that are there already are not done again, and one that was interrupted goes on; one that fails is named, and the
others go on. Numbers are those of the runs'
scores.json; FD is mean and deviation over the seeds; minutes are those of training alone, and only of worth where the
runs had the machine for themselves (--jobs 1). curves.png has FD over images and over minutes. Samples are chosen by
rule: of the longest runs the first seed, latents 0 to 19, with classes in turn.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from study_results import Run, curves, read, samples, table, time_table
from timing import environment, write_report
from tqdm import tqdm

from maxgan.checkpoint import atomic_path
from maxgan.cli import parse, plain_errors
from maxgan.config import GanConfig
from maxgan.training.dry_run import GPUS, DryRun
from maxgan.training.run import SCORES

ROOT = Path(__file__).parents[1]
KEYS = {"base", "settings", "images", "seeds", "variants"}
OWN = {
    "training.images": "the study says it in images",
    "training.seed": "the study says it in seeds",
    "run.directory": "name the folder of all runs with --output",
}
"""Settings that a study sets for every run."""


def plan(file: Path, output: Path, only: Iterable[str] = (), changed: Mapping[str, str] | None = None) -> list[Run]:
    """Return the runs of a study, the shortest first.

    Args:
        file: the study.
        output: folder of the runs.
        only: names of variants; none: all.
        changed: settings of every run in place of the study's, by their dotted names.

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
    for key, kind, example in (("images", list, "[12800]"), ("seeds", list, "[0]"), ("variants", dict, "{best: {}}")):
        if not study[key]:
            raise ValueError(f"{file} has nothing in {key}: give at least one")
        if not isinstance(study[key], kind):
            raise ValueError(f"{file}: {key} must be like {example}, not {study[key]!r}")
    # Nothing behind a colon changes nothing.
    common = study["settings"] or {}
    variants: dict[str, dict[str, Any]] = {name: chosen or {} for name, chosen in study["variants"].items()}
    for where, settings in {"settings": common, **variants, "--set": changed or {}}.items():
        if not isinstance(settings, dict):
            raise ValueError(f"{file}: {where} must be settings by their names, not {settings!r}")
        for name, key in OWN.items():
            if name in settings:
                raise ValueError(f"{name} in {where} would be overwritten: {key}")
    unknown = set(only) - variants.keys()
    if unknown:
        raise ValueError(f"{file} has no variant {', '.join(sorted(unknown))}: it has {', '.join(variants)}")
    runs = []
    for images in sorted(study["images"]):
        for seed in study["seeds"]:
            for name in only or variants:
                directory = output / f"{name}-{images}-{seed}"
                settings = {
                    **common,
                    **variants[name],
                    **(changed or {}),
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


def train(run: Run) -> int:
    """Train one run unless it is complete, and return its exit code; its output goes to a log beside its folder."""
    with log_of(run).open("a") as stream:
        return subprocess.run([sys.executable, *run.command], stdout=stream, stderr=subprocess.STDOUT).returncode


def log_of(run: Run) -> Path:
    """Return the log of a run."""
    return run.directory.with_suffix(".log")


def train_all(runs: Sequence[Run], jobs: int, name: str) -> list[str]:
    """Train runs, so many at a time; return a sentence for each that failed, which ends no other: that a variant
    diverges is a result too."""
    failed = []
    with ThreadPoolExecutor(jobs) as pool:
        try:
            codes = pool.map(train, runs)
            for run, code in zip(runs, tqdm(codes, total=len(runs), unit="run", desc=name), strict=True):
                if code:
                    failed.append(f"{run.directory.name} ended with code {code}: see {log_of(run)}")
                    tqdm.write(failed[-1])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def estimates(runs: Sequence[Run]) -> str:
    """Return a table in Markdown of the longest runs: parameters, and minutes by the dry run on each GPU it knows."""
    rows = [
        f"| {runs[-1].images:,} images | G | D | multiply-adds of G | {' | '.join(gpu.name for gpu in GPUS)} |",
        "| --- " * (4 + len(GPUS)) + "|",
    ]
    for run in runs:
        if (run.images, run.seed) == (runs[-1].images, runs[-1].seed):
            config, _ = parse(GanConfig, list(run.command[1:]))
            dry = DryRun(config)
            generator, discriminator = dry.generator[-1], dry.discriminator[-1]
            updates = config.training.images / config.training.batch_size
            minutes = [f"{dry.seconds(gpu) * updates / 60:.1f}" for gpu in GPUS]
            cells = [run.variant, f"{generator.parameters:,}", f"{discriminator.parameters:,}"]
            rows.append("| " + " | ".join([*cells, f"{generator.multiply_adds / 1e6:,.0f} M", *minutes]) + " |")
    return "\n".join(rows) + "\n"


def settings_of(texts: Iterable[str]) -> dict[str, str]:
    """Return the settings of texts such as data.source=train.zip; ValueError if one has no name or no value."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"--set takes NAME=VALUE, such as data.source=train.zip, not {text!r}")
        settings[name] = value
    return settings


def main() -> None:
    """Train what is missing, then write results.md, results.json, curves.png and samples.png of what is complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--output", type=Path, help="folder of the runs; unset: runs/studies/NAME")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="variants; unset: all")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of all runs, such as data.source"
    )
    parser.add_argument("--tables", action="store_true", help="train nothing: tables and pictures of what is there")
    parser.add_argument("--dry_run", action="store_true", help="train nothing: tell sizes, and minutes on GPUs")
    options = parser.parse_args()
    output = options.output or Path("runs") / "studies" / options.study.stem
    runs = plan(options.study, output, options.only, settings_of(options.set))
    if options.dry_run:
        print(estimates(runs))
        return
    output.mkdir(parents=True, exist_ok=True)
    start = time.time()
    failed = [] if options.tables else train_all(runs, options.jobs, output.name)
    # Of all that is there, also where only some variants were trained now.
    complete = [run for run in plan(options.study, output) if (run.directory / SCORES).is_file()]
    if not complete:
        raise ValueError(f"no run in {output} is complete" + (", or leave out --tables" if options.tables else ""))
    results = {run: read(run) for run in complete}
    text = "\n".join([table(results), time_table(results), *(f"- {sentence}" for sentence in failed)])
    with atomic_path(output / "results.md") as temporary:
        temporary.write_text(text)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report = {
        "study": yaml.safe_load(options.study.read_text()),
        "set": options.set,
        "seconds": time.time() - start,
        "environment": environment(device) | {"python": platform.python_version()},
        "runs": [{"variant": r.variant, "images": r.images, "seed": r.seed, **found} for r, found in results.items()],
        "failed": failed,
    }
    write_report(report, output / "results.json")
    curves(results, output / "curves.png")
    samples(complete, output / "samples.png")
    print(text)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    with plain_errors():
        main()
