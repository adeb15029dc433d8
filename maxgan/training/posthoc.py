"""Averages of a run's generator, after its training (EDM2, arXiv 2312.02696, section 3).

`python -m maxgan.training.posthoc reconstruct RUN --sigma_rel 0.07` makes a power-function average of any width, `best
RUN` finds the width, or half-life, that scores best.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from maxgan.checkpoint import atomic_path, export_model, together
from maxgan.cli import fail, parse, plain_errors
from maxgan.config import BestAverageConfig, DataConfig, EvaluationConfig, GanEmaConfig, ReconstructConfig
from maxgan.evaluation.comparison import Scores
from maxgan.evaluation.evaluate import Scorer, make_scorer
from maxgan.models.latent import LatentGenerator
from maxgan.models.network import Network
from maxgan.runtime import start
from maxgan.sampling import EXPORT_NAME, Generator, load_generator, newest_export, run_settings
from maxgan.training.power_ema import Profile, coefficients, mismatch
from maxgan.training.standing import with_standing_statistics

AVERAGES = "averages"
SNAPSHOTS = "snapshots"
CONFIGS: dict[str, type[Any]] = {"reconstruct": ReconstructConfig, "best": BestAverageConfig}


def snapshot_path(run: Path, images_seen: int, name: str) -> Path:
    """Return the file of a snapshot of the average called `name`, such as `power-0.05`, in the folder `run`."""
    return run / SNAPSHOTS / f"images-{images_seen:09d}-{name}.safetensors"


def snapshots_of(run: Path) -> dict[Path, Profile]:
    """Return the snapshots in a run's folder, the oldest first, with width and images seen."""
    found = {}
    for file in sorted((run / SNAPSHOTS).glob("images-*.safetensors")):
        if match := re.fullmatch(r"images-(\d+)-power-(.+)", file.stem):
            found[file] = (float(match[2]), int(match[1]))
    return found


def reconstruct(
    run: Path, sigma_rel: float, images: int | None = None, device: str | torch.device = "cpu"
) -> tuple[LatentGenerator, float]:
    """Return the generator of a power-function average, in eval mode, and its `mismatch`.

    Summed in float64, of snapshots in float32: factors of narrow profiles reach 80, which would make the rounding of
    half precision visible.

    Args:
        run: the folder.
        sigma_rel: its width.
        images: images seen at its end; None for those of the last snapshot.
        device: where the generator is put, and its standing statistics are found, if it has BatchNorm.

    Raises:
        ValueError: if there are no snapshots, if one is damaged, or for an average that they don't reach.
    """
    snapshots = snapshots_of(run)
    if not snapshots:
        raise ValueError(f"{run} has no snapshots of power-function averages: train with ema.power [0.05, 0.1]")
    profiles = list(snapshots.values())
    last = max(snapshots, key=lambda file: snapshots[file][1])
    target = (sigma_rel, snapshots[last][1] if images is None else images)
    factors = coefficients(profiles, target)
    total: dict[str, Tensor] = {}
    for file, factor in zip(snapshots, factors, strict=True):
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"the snapshot {file} can't be read ({error}): remove it") from error
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                part = tensor.double() * factor
                total[name] = total[name] + part if name in total else part
    network = load_generator(last, device)
    assert isinstance(network, LatentGenerator)
    state = network.state_dict()
    for name, tensor in total.items():
        # A sum with negative factors may miss a variance near 0 by more than that.
        state[name] = (tensor.clamp(min=0) if name.endswith("running_var") else tensor).to(state[name].dtype)
    network.load_state_dict(state)
    standing = run_settings(run, "ema", GanEmaConfig).get("standing_images", GanEmaConfig.standing_images)
    network = with_standing_statistics(network, standing, network.info.get("class_counts"))
    distance = mismatch(profiles, factors, target)
    told = {"sigma_rel": sigma_rel, "images_seen": target[1], "profile_mismatch": round(distance, 6)}
    network.info = {**network.info, **told}
    return network, distance


def run_reconstruct(config: ReconstructConfig) -> None:
    """Write the average that is asked for."""
    run = _folder(config.run)
    network, distance = reconstruct(run, config.sigma_rel, config.images)
    default = run / AVERAGES / f"power-{config.sigma_rel:g}.safetensors"
    output = default if config.output is None else Path(config.output)
    export_model(network, output, network.info)
    print(f"{output}: its profile is met up to {distance:.1%}")


def as_the_run(config: BestAverageConfig, run: Path) -> tuple[BestAverageConfig, DataConfig]:
    """Return `config` with the run's own settings of scores where it has the default, and the settings of its data.

    What names the extractor, protocol or weights, is taken as one.

    Raises:
        ValueError: if the run's settings don't fit.
    """
    own = run_settings(run, "evaluation", EvaluationConfig)
    own["n"] = own.pop("images", None)
    if config.protocol is not None or config.extractor is not None:
        own = {name: value for name, value in own.items() if name not in ("protocol", "extractor", "weights")}
    free = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) == field.default}
    settings = dataclasses.replace(config, **{name: value for name, value in own.items() if name in free})
    return settings, DataConfig(**run_settings(run, "data", DataConfig))


class Search:
    """Scores of a run's averages, one after the other, and the best so far.

    Args:
        run: the folder.
        config: the settings; see `as_the_run`.
        accelerator: of this process; every process calls the same methods.

    Attributes:
        scores: by the average's name.
    """

    def __init__(self, run: Path, config: BestAverageConfig, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        self.config, self.data = as_the_run(config, run)
        self.scores: dict[str, Scores] = {}
        self.widths: dict[float, float] = {}
        """Fréchet distances of the power-function averages by width."""
        self._scorer: Scorer | None = None

    def try_file(self, path: Path) -> None:
        """Score an exported average."""
        self._score(path.stem, load_generator(path, self.accelerator.device))

    def try_width(self, width: float) -> None:
        """Score the power-function average of a width, unless that was done."""
        if width in self.widths:
            return
        network, distance = reconstruct(self.run, width, device=self.accelerator.device)
        self.widths[width] = self._score(f"power-{width:g}", network, f"   profile met up to {distance:.1%}")

    def refine(self) -> None:
        """Try the widths, geometric means, between the best width so far and its neighbours."""
        tried = sorted(self.widths)
        best = tried.index(min(tried, key=lambda width: self.widths[width]))
        for neighbour in (best - 1, best + 1):
            if 0 <= neighbour < len(tried):
                self.try_width(float(f"{math.sqrt(tried[best] * tried[neighbour]):.4g}"))

    @property
    def best(self) -> str:
        """Name of the average of the least Fréchet distance."""
        return min(self.scores, key=lambda name: self.scores[name].metrics["fd"])

    def _score(self, name: str, generator: Generator, note: str = "") -> float:
        config = self.config
        if self._scorer is None:
            source = str(getattr(generator, "info", {}).get("source", ""))
            self._scorer = make_scorer(
                config, source, self.accelerator, generator, data=self.data, batch_size=config.batch_size
            )
        with self._scorer.showing(name):
            self.scores[name] = self._scorer.score_generator(generator, name, config.n, config.seed)
        found = float(self.scores[name].metrics["fd"])
        self.accelerator.print(f"{name:<24} {found:>10.5g}{note}")
        return found


def run_best(config: BestAverageConfig) -> None:
    """Score every average of a run, and write the best with all scores."""
    accelerator = start(config.threads, cpu=config.cpu)
    with plain_errors():
        run = _folder(config.run)
        output = run / AVERAGES / "best.safetensors" if config.output is None else Path(config.output)
        search = Search(run, config, accelerator)
        files = [run / EXPORT_NAME, *sorted((run / AVERAGES).glob("half-life-*.safetensors"))]
        for file in files:
            search.try_file(file)
        if snapshots_of(run):
            for width in config.sigma_rels:
                search.try_width(width)
            for _ in range(config.refine if search.widths else 0):
                search.refine()
        accelerator.print(f"best: {search.best}, written to {output}")
        with together():
            if accelerator.is_main_process:
                _write(search, files, output)
    accelerator.end_training()


def _write(search: Search, files: list[Path], output: Path) -> None:
    """Write the generator of the best average, and the scores of all beside it."""
    name = search.best
    path = next((file for file in files if file.stem == name), None)
    network: Network
    if path is None:
        network, _ = reconstruct(search.run, float(name.removeprefix("power-")), device=search.accelerator.device)
    else:
        network = Network.from_pretrained(path)
    scores = search.scores[name]
    export_model(network, output, {**network.info, "scores": {scores.protocol.name: dict(scores.metrics)}})
    with atomic_path(output.with_suffix(".json")) as temporary:
        found = {average: json.loads(each.to_json()) for average, each in search.scores.items()}
        temporary.write_text(json.dumps({"best": name, "scores": found}, indent=2) + "\n")


def _folder(run: str | None) -> Path:
    folder = newest_export().parent if run is None else Path(run)
    if not (folder / EXPORT_NAME).is_file():
        raise ValueError(f"{folder} is no folder of a run: {EXPORT_NAME} is missing")
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and do what it says; a user's mistake ends in one sentence."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else ""
    if command not in CONFIGS:
        fail("usage: python -m maxgan.training.posthoc reconstruct|best RUN [...]; best --help lists all")
    if arguments and not arguments[0].startswith("-"):
        arguments.insert(0, "--run")
    config, _ = parse(CONFIGS[command], arguments)
    if isinstance(config, BestAverageConfig):
        run_best(config)
    else:
        with plain_errors():
            run_reconstruct(config)


if __name__ == "__main__":
    main()
