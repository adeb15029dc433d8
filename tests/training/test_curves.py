from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from maxgan.training.gan_run import PANELS
from maxgan.training.pictures import plot_curves


def test_shares_that_come_with_scores_stand_on_an_axis_from_0_to_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        drawn.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    accuracies = {"discriminator_accuracy_training": 0.628, "discriminator_accuracy_held_out": 0.616}
    line = {"images": 100, "r1": 0.04, "precision": 0.0, "recall": 0.0, **accuracies}
    plot_curves([line], PANELS, tmp_path / "curves.png", dpi=20)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    limits = {axes.get_title(): axes.get_ylim() for axes in drawn[0].axes}
    assert limits["D on held-out images"] == limits["likeness"] == (0, 1.02)
    low, high = limits["penalties"]
    assert 0.03 < low < 0.04 < high < 0.05
