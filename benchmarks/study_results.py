"""What the runs of a study came to: tables at equal images and at equal time, curves, and samples of each variant."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from maxgan.checkpoint import atomic_path
from maxgan.cli import parse
from maxgan.config import GanConfig, ImageFacts
from maxgan.models.build import build_discriminator, build_generator
from maxgan.sampling import CONFIG, EXPORT_NAME, generate, load_generator
from maxgan.training.run import METRICS, SCORES, read_metrics
from maxgan.writers import image_grid

SAMPLES = 20


@dataclass(frozen=True)
class Run:
    """One training of a study."""

    variant: str
    images: int
    seed: int
    directory: Path
    command: tuple[str, ...]


Result = Mapping[str, float]
Results = Mapping[Run, Result]


def read(run: Run) -> dict[str, float]:
    """Return the scores of a run, its parameters in millions, and the seconds of its training without scoring."""
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


def by_length(results: Results) -> dict[tuple[int, str], list[Result]]:
    """Return the results of all seeds of each length and variant."""
    groups: dict[tuple[int, str], list[Result]] = {}
    for run, result in results.items():
        groups.setdefault((run.images, run.variant), []).append(result)
    return groups


def mean(group: Sequence[Result], name: str) -> float:
    """Return the mean of a number over seeds."""
    return statistics.mean(result[name] for result in group)


def table(results: Results) -> str:
    """Return the results as a table in Markdown: a row for each variant and length, the best FD of a length in bold."""
    rows = [
        "| images | variant | FD | of each seed | precision | recall | accuracy | G, D (M) | minutes |",
        "| --- " * 9 + "|",
    ]
    groups = by_length(results)
    for (images, variant), group in groups.items():
        fds = [result["fd"] for result in group]
        best = min(mean(other, "fd") for (length, _), other in groups.items() if length == images)
        fd = _bold(f"{mean(group, 'fd'):.3f}", mean(group, "fd") == best)
        if len(fds) > 1:
            fd += f" ± {statistics.stdev(fds):.3f}"
        cells = [f"{images:,}", variant, fd, ", ".join(f"{value:.3f}" for value in fds)]
        for metric in ("precision", "recall", "accuracy"):
            cells.append(f"{mean(group, metric):.3f}" if metric in group[0] else "-")
        cells.append(f"{group[0]['generator']:.2f}, {group[0]['discriminator']:.2f}")
        cells.append(f"{mean(group, 'seconds') / 60:.1f}")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def at_equal_time(results: Results) -> tuple[float, dict[str, tuple[int, float, float] | None]]:
    """Return the seconds of the fastest variant for the longest runs, and what each variant reaches in that time: the
    longest of its lengths that fits, its seconds and FD, means over seeds; None where none fits.

    Runs of one length are compared, and no stages of a longer one: schedules go by the length of a run.
    """
    groups = by_length(results)
    longest = max(images for images, _ in groups)
    seconds = {key: mean(group, "seconds") for key, group in groups.items()}
    limit = min(seconds[key] for key in groups if key[0] == longest)
    found: dict[str, tuple[int, float, float] | None] = {variant: None for _, variant in groups}
    for images, variant in sorted(groups):
        if seconds[images, variant] <= limit:
            found[variant] = (images, seconds[images, variant], mean(groups[images, variant], "fd"))
    return limit, found


def time_table(results: Results) -> str:
    """Return what is reached at equal time as a table in Markdown, the best FD in bold."""
    limit, found = at_equal_time(results)
    best = min(reached[2] for reached in found.values() if reached is not None)
    rows = [f"| in {limit / 60:.1f} minutes | images | minutes | FD |", "| --- " * 4 + "|"]
    for variant, reached in found.items():
        if reached is None:
            rows.append(f"| {variant} | none of the lengths fits | - | - |")
        else:
            images, seconds, fd = reached
            rows.append(f"| {variant} | {images:,} | {seconds / 60:.1f} | {_bold(f'{fd:.3f}', fd == best)} |")
    return "\n".join(rows) + "\n"


def _bold(text: str, chosen: bool) -> str:
    return f"**{text}**" if chosen else text


def course(run: Run) -> list[tuple[float, float, float]]:
    """Return images seen, seconds of training, and FD of every score along a run."""
    lines = read_metrics(run.directory / METRICS)
    times = [(line["images"], line["seconds"]) for line in lines if "seconds" in line]
    images, seconds = zip((0.0, 0.0), *times, strict=True)
    return [
        (line["images"], float(np.interp(line["images"], images, seconds)), line["fd"])
        for line in lines
        if "fd" in line
    ]


def curves(results: Results, path: Path) -> None:
    """Write FD over images and over minutes: lines along the longest runs of each variant, where they were scored on
    the way, and dots at the end of all; means over seeds."""
    groups = by_length(results)
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for i, variant in enumerate(dict.fromkeys(variant for _, variant in groups)):
        longest = max(images for images, name in groups if name == variant)
        scored = [course(run) for run in results if (run.images, run.variant) == (longest, variant)]
        along = np.mean([one for one in scored if len(one) == len(scored[0])], axis=0).reshape(-1, 3)
        ends = [
            (images, mean(group, "seconds"), mean(group, "fd"))
            for (images, name), group in groups.items()
            if name == variant
        ]
        for axes, column, unit in zip(panels, (0, 1), (1, 60), strict=True):
            axes.plot(along[:, column] / unit, along[:, 2], color=f"C{i}", linewidth=1)
            points = np.array(ends)
            axes.plot(points[:, column] / unit, points[:, 2], "o", color=f"C{i}", markersize=5, label=variant)
    for axes, label in zip(panels, ("images seen", "minutes of training"), strict=True):
        axes.set_xlabel(label)
        axes.set_yscale("log")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("Fréchet distance")
    panels[1].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def samples(runs: Sequence[Run], path: Path) -> None:
    """Write the samples of the longest runs of the first seed, a row for each variant."""
    longest = [run for run in runs if run.images == runs[-1].images]
    shown = [run for run in longest if run.seed == longest[0].seed]
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
