"""Curves of a run as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from maxgan.checkpoint import atomic_path

COLUMNS = 4
"""The most panels in a row."""
DOTTED = 30
"""Up to so many points of a curve each gets a dot: one alone would not be seen."""
FRACTIONS = frozenset(
    {"discriminator_accuracy_training", "discriminator_accuracy_held_out", "precision", "recall", "coverage"}
)
"""Metrics whose panel goes from 0 to 1: they come with scores, so few at first, and a narrow axis would make much of a
hundredth."""


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
    last = max((line["images"] for line in lines), default=1)
    columns = max(1, min(len(filled), COLUMNS))
    rows = max(1, math.ceil(len(filled) / COLUMNS))
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    for number, (title, names) in enumerate(filled.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        for name in names:
            points = [(line["images"], line[name]) for line in lines if name in line]
            marker = "." if len(points) <= DOTTED else None
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), linewidth=1, marker=marker)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("images seen")
        axes.set_xlim(0, 1.02 * last)
        if FRACTIONS.issuperset(names):
            axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)
