"""Curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from maxgan.checkpoint import atomic_path


def plot_curves(
    lines: Sequence[Mapping[str, float]], panels: Mapping[str, Sequence[str]], path: Path, dpi: int = 110
) -> None:
    """Write a PNG with one panel for each entry of `panels`: a title, and the metrics drawn over images seen.

    Args:
        lines: the lines of a metrics.jsonl; metrics that a line lacks are left out of its curve.
        panels: title -> names of metrics; a panel without any values is left out.
        path: the PNG.
        dpi: dots an inch.
    """
    filled = {title: [name for name in names if any(name in line for line in lines)] for title, names in panels.items()}
    filled = {title: names for title, names in filled.items() if names}
    figure = Figure(figsize=(4.2 * max(1, len(filled)), 3.2), layout="constrained")
    for axes, (title, names) in zip(
        figure.subplots(1, max(1, len(filled)), squeeze=False)[0], filled.items(), strict=False
    ):
        for name in names:
            points = [(line["images"], line[name]) for line in lines if name in line]
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("images seen")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
