"""What a run's folder tells, however far the run came; whatever can't be read is named and left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from maxgan.config import ClassifierConfig, GanConfig, to_dict
from maxgan.sampling import CONFIG
from maxgan.training.gan_run import HISTORY, PICTURES
from maxgan.training.run import ENVIRONMENT, METRICS, SCORES, read_metrics

NEIGHBOURS = "neighbours"
LARGEST = 3.5e38
"""Beyond float32: no network computed that."""
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """All of a run but its pictures.

    Attributes:
        directory: the run's folder.
        kind: what was trained.
        settings: its config as nested plain values.
        metrics: the lines of its metrics that hold finite numbers, by images seen.
        samples: images seen and file of every picture of samples, in their order.
        scores: what scores.json holds.
        history: images seen and scores of every file along the training.
        neighbours: what neighbours.json holds, of maxgan.explore.
        starts: where and with what it was started, each time.
        problems: a sentence for everything that couldn't be read.
    """

    directory: Path
    kind: Literal["GAN", "classifier"]
    settings: dict[str, Any]
    metrics: list[dict[str, float]]
    samples: list[tuple[int, Path]]
    scores: dict[str, Any] | None
    history: list[tuple[int, dict[str, Any]]]
    neighbours: dict[str, Any] | None
    starts: list[dict[str, Any]]
    problems: list[str]

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings that a run has without any argument."""
        return to_dict(GanConfig() if self.kind == "GAN" else ClassifierConfig())

    @property
    def images_seen(self) -> int:
        """Images seen at the last line of the metrics; 0 without one."""
        return max((int(line["images"]) for line in self.metrics), default=0)

    @property
    def images(self) -> int | None:
        """Images of the whole training, if its settings tell."""
        section = self.settings.get("training")
        value = section.get("images") if isinstance(section, dict) else None
        return value if isinstance(value, int) and value > 0 else None

    @property
    def seconds(self) -> float:
        """Time of training until the last line of the metrics, without that of scores."""
        return max((line["seconds"] for line in self.metrics if "seconds" in line), default=0.0)


def newest_run(runs: str | Path = "runs") -> Path:
    """Return the folder in `runs` of the run that was started last; ValueError if there is none."""
    # A start writes the config anew.
    configs = sorted(Path(runs).glob(f"*/{CONFIG}"), key=lambda file: file.stat().st_mtime)
    if not configs:
        raise ValueError(f"there is no run in {runs}: train one first, or name its folder")
    return configs[-1].parent


def read_record(directory: Path) -> Record:
    """Read a run's folder.

    Raises:
        ValueError: if it holds no run.
    """
    if not (directory / CONFIG).is_file():
        raise ValueError(f"{directory} holds no run ({CONFIG} is missing): name the folder of one")
    problems: list[str] = []

    def read(path: Path, parse: Callable[[str], T], kind: type[T]) -> T | None:
        if not path.exists():
            return None
        try:
            value = parse(path.read_text())
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            value = None
        if not isinstance(value, kind):
            problems.append(f"{path.relative_to(directory)} can't be read, and is left out.")
            return None
        return value

    settings = read(directory / CONFIG, yaml.safe_load, dict) or {}
    history = [
        (seen, scores)
        for seen, path in _numbered(directory / HISTORY, ".json")
        if (scores := read(path, json.loads, dict)) is not None
    ]
    return Record(
        directory=directory,
        kind="classifier" if "backbone" in settings else "GAN",
        settings=settings,
        metrics=_finite(read(directory / METRICS, lambda _: read_metrics(directory / METRICS), list) or []),
        samples=_numbered(directory / PICTURES, ".png"),
        scores=read(directory / SCORES, json.loads, dict),
        history=history,
        neighbours=read(directory / f"{NEIGHBOURS}.json", json.loads, dict),
        starts=[start for start in read(directory / ENVIRONMENT, json.loads, list) or [] if isinstance(start, dict)],
        problems=problems,
    )


def _numbered(folder: Path, suffix: str) -> list[tuple[int, Path]]:
    """Return the files of a folder that are named by images seen, in their order."""
    files = folder.glob(f"*{suffix}") if folder.is_dir() else []
    return sorted((int(file.stem), file) for file in files if file.stem.isdecimal())


def _finite(lines: list[Any]) -> list[dict[str, float]]:
    """Return lines with images seen, and of them what is a finite number."""
    found = []
    for line in lines:
        if not isinstance(line, dict):
            continue
        numbers = {
            str(name): float(value)
            for name, value in line.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
        }
        if numbers.get("images", -1) >= 0:
            found.append(numbers)
    return sorted(found, key=lambda line: line["images"])
