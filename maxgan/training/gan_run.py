"""A GAN training from start to end: data, run folder, resuming, loop, pictures, export, scores."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

import maxgan
from maxgan.checkpoint import atomic_path, export_model, find_run_state, load_run_state, remove_leftovers, save_run_state
from maxgan.config import GanConfig
from maxgan.data.loader import ImageDataset, evaluation_batches, training_batches
from maxgan.evaluation.evaluate import default_extractor, default_reference, score_generator
from maxgan.evaluation.extractors import Extractor, load_extractor
from maxgan.evaluation.protocols import Scores
from maxgan.runtime import StopSignal, start
from maxgan.sampling import EXPORT_NAME, generate
from maxgan.training.gan import GanTrainer
from maxgan.training.meters import Meters
from maxgan.training.pictures import plot_curves
from maxgan.training.run import METRICS, MetricsLog, RunDirectory, read_metrics, run_directory, tracker_names
from maxgan.writers import image_grid

GRID_IMAGES = 100
GRID_COLUMNS = 10
SCORES = "scores.json"
# With several processes, a signal is looked for every so many updates: each look waits for all of them.
SIGNAL_INTERVAL = 8
PANELS = {
    "loss": ("loss_discriminator", "loss_generator"),
    "logits of D": ("real_logit", "fake_logit"),
    "R1": ("r1",),
    "speed": ("images_per_second",),
}


class GanRun:
    """A training in its folder, with all that happens around the updates.

    Args:
        config: the settings.
        directory: the run's folder.
        accelerator: of this process.
    """

    def __init__(self, config: GanConfig, directory: Path, accelerator: Accelerator) -> None:
        self.config = config
        self.directory = directory
        self.accelerator = accelerator
        self.say: Callable[[str], None] = accelerator.print
        self.dataset = ImageDataset(config.data)
        self.say(self.dataset.describe())
        # Before anything long starts: a score that can't be computed is said now.
        self.extractor = choose_extractor(config, self.say)
        weights = None
        if self.dataset.labels is not None:
            weights = torch.from_numpy(np.bincount(self.dataset.labels, minlength=self.dataset.facts.num_classes))
        self.trainer = GanTrainer(
            config, self.dataset.facts, None if weights is None else weights.double(), accelerator
        )
        self.meters = Meters()
        self.seconds = 0.0

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        root = self.directory / "checkpoints"
        folder = find_run_state(root, self.say)
        if folder is None:
            return
        extra, tensors = load_run_state(self.accelerator, folder)
        groups: dict[str, dict[str, Tensor]] = {"ema": {}, "meter": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        self.trainer.ema.load_state_dict(groups["ema"])
        self.meters.restore(extra["meter_counts"], groups["meter"], self.accelerator.device)
        self.trainer.images_seen = extra["images_seen"]
        self.seconds = extra["seconds"]
        if self.trainer.images_seen < self.config.training.images:
            self.say(f"going on from {folder}")

    def save(self) -> None:
        """Write a checkpoint, and the averaged generator as one file."""
        counts, sums = self.meters.state()
        tensors = {f"ema/{name}": tensor for name, tensor in self.trainer.ema.state_dict().items()}
        tensors |= {f"meter/{name}": tensor for name, tensor in sums.items()}
        save_run_state(
            self.accelerator,
            self.directory / "checkpoints",
            self.trainer.images_seen,
            {"meter_counts": counts, "seconds": self.seconds},
            tensors,
            self.config.run.keep,
        )
        self.export()

    def export(self, scores: Scores | None = None) -> None:
        """Write the averaged generator with where it comes from."""
        if self.accelerator.is_main_process:
            info: dict[str, Any] = {
                "images_seen": self.trainer.images_seen,
                "source": self.config.data.source,
                "class_names": list(self.dataset.source.class_names),
                "run": self.directory.name,
                "maxgan": maxgan.__version__,
            }
            if scores is not None:
                info["scores"] = {scores.protocol.name: dict(scores.metrics)}
            export_model(self.generator(), self.directory / EXPORT_NAME, info)

    def generator(self) -> Any:
        """Return the averaged generator in eval mode."""
        return self.trainer.ema.module.eval()

    def train(self) -> int | None:
        """Run updates until all images are seen; return the signal that stopped it before, if one did."""
        config, trainer = self.config, self.trainer
        batch_size, total = config.training.batch_size, config.training.images
        batches = training_batches(
            self.dataset,
            batch_size,
            config.training.seed,
            trainer.update,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            config.data.workers,
            config.training.accumulation,
        )
        log = MetricsLog(self.directory / METRICS, trainer.images_seen) if self.accelerator.is_main_process else None
        bar = tqdm(
            total=total, initial=trainer.images_seen, unit="img", desc=self.directory.name, dynamic_ncols=True,
            disable=not self.accelerator.is_main_process,
        )  # fmt: skip
        started, logged_at, logged_seen = time.perf_counter() - self.seconds, time.perf_counter(), trainer.images_seen
        saved = trainer.images_seen

        with bar, StopSignal() as stop:
            while trainer.images_seen < total:
                self.meters.add(trainer.step(batches))
                seen = trainer.images_seen
                self.seconds = time.perf_counter() - started
                bar.update(min(batch_size, total - seen + batch_size))
                if self._crossed(config.run.log_every) or seen >= total:
                    values = self._finite(self.meters.read(self.accelerator))
                    now = time.perf_counter()
                    speed = (seen - logged_seen) / (now - logged_at)
                    logged_at, logged_seen = now, seen
                    self._log(log, {"images": seen, **values, "images_per_second": speed, "seconds": self.seconds})
                    bar.set_postfix({"D": f"{values['loss_discriminator']:.3f}", "G": f"{values['loss_generator']:.3f}"})
                if config.run.sample_every and self._crossed(config.run.sample_every):
                    self.picture()
                if self._crossed(config.run.checkpoint_every):
                    self.save()
                    saved = seen
                if trainer.update % SIGNAL_INTERVAL == 0 or self.accelerator.num_processes == 1:
                    received = stop.agreed(self.accelerator)
                    if received is not None and seen < total:
                        if saved != seen:
                            self.save()
                        return received
            if saved != trainer.images_seen:
                self.save()
        if log is not None:
            log.close()
        return None

    def _crossed(self, every: int) -> bool:
        seen, batch_size = self.trainer.images_seen, self.config.training.batch_size
        return seen // every > (seen - batch_size) // every

    def _log(self, log: MetricsLog | None, values: dict[str, float]) -> None:
        if log is not None:
            log.write(values)
        self.accelerator.log({name: value for name, value in values.items() if name != "images"}, step=int(values["images"]))

    def _finite(self, values: dict[str, float]) -> dict[str, float]:
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} became {value} before {self.trainer.images_seen} images: the run stops, its checkpoints are as they "
                    "were; lower optim.lr or change loss.r1_gamma"
                )
        return values

    def picture(self) -> None:
        """Write a grid of samples from latents that stay the same through the run; with classes, a column for each."""
        if not self.accelerator.is_main_process:
            return
        classes = list(range(min(self.dataset.facts.num_classes, GRID_COLUMNS))) or None
        batches = generate(self.generator(), range(GRID_IMAGES), GRID_IMAGES, self.accelerator.device, classes)
        images = torch.cat([batch.images for batch in batches])
        columns = len(classes) if classes else GRID_COLUMNS
        save_picture(image_grid(images, columns), self.directory / "samples" / f"{self.trainer.images_seen:09d}.png")

    def picture_of_reals(self) -> None:
        """Write a grid of training images; with classes, a column for each."""
        path = self.directory / "reals.png"
        if not self.accelerator.is_main_process or path.exists():
            return
        indices, columns = grid_of_reals(self.dataset)
        images = torch.cat([images for images, _ in evaluation_batches(self.dataset, GRID_IMAGES, indices)])
        save_picture(image_grid(images, columns), path)

    def score(self) -> Scores | None:
        """Score the averaged generator, write scores.json and print the table; None without an extractor."""
        if self.extractor is None:
            return None
        settings = self.config.evaluation
        source = settings.reference or default_reference(self.config.data.source)
        reference = dataclasses.replace(
            self.config.data, source=source, resolution=self.dataset.facts.resolution, channels=self.dataset.facts.channels
        )
        with tqdm(unit="img", desc="scores", leave=False, disable=not self.accelerator.is_main_process) as bar:
            scores = score_generator(
                self.generator(), self.directory.name, reference, self.extractor, self.accelerator, settings.images,
                progress=bar.update,
            )  # fmt: skip
        if self.accelerator.is_main_process:
            with atomic_path(self.directory / SCORES) as temporary:
                temporary.write_text(scores.to_json())
        self.say(scores.table())
        return scores


def grid_of_reals(dataset: ImageDataset) -> tuple[list[int], int]:
    """Return the indices of the first images for a grid, and its columns: one for each of the first classes."""
    if dataset.labels is None:
        return list(range(min(GRID_IMAGES, len(dataset)))), GRID_COLUMNS
    shown = min(dataset.facts.num_classes, GRID_COLUMNS)
    rows = GRID_IMAGES // GRID_COLUMNS
    members = [np.flatnonzero(dataset.labels == label)[:rows] for label in range(shown)]
    filled = min(len(group) for group in members)
    if filled == 0:
        return list(range(min(GRID_IMAGES, len(dataset)))), GRID_COLUMNS
    return [int(group[row]) for row in range(filled) for group in members], shown


def save_picture(picture: Any, path: Path) -> None:
    """Write a PIL picture as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        picture.save(temporary, "png")


def choose_extractor(config: GanConfig, say: Callable[[str], None]) -> Extractor | None:
    """Return the extractor for the scores of a run, or None with the reason said."""
    if not config.evaluation.enabled:
        return None
    name = config.evaluation.extractor or default_extractor(config.data.source)
    if name is None:
        say(
            "no scores at the end: this data has no embedded extractor; train one with train_classifier.py and name its file in "
            "evaluation.extractor"
        )
        return None
    return load_extractor(name)


def train_gan(config: GanConfig, config_name: str | None = None) -> int:
    """Train a GAN in its run folder, or go on with it; return the process's exit code.

    Args:
        config: the settings.
        config_name: name of the config file, for the folder's name.

    Returns:
        0 when the run is finished; 128 + the signal's number when a signal stopped it, with all saved.

    Raises:
        ValueError: for anything that the user has to mend.
        OSError: when the disk is full; what was saved before is intact.
    """
    directory = run_directory(config, config_name or Path(config.data.source.split("-")[0]).stem)
    trackers = tracker_names(config.run.tracker)
    accelerator = start(
        config.run.threads, config.training.precision, log_with=trackers, project_dir=str(directory)
    )
    run = RunDirectory(directory, config, accelerator)
    try:
        accelerator.print(f"run: {directory}")
        if accelerator.is_main_process:
            remove_leftovers(directory)
            remove_leftovers(directory / "checkpoints")
        accelerator.wait_for_everyone()
        gan = GanRun(config, directory, accelerator)
        gan.resume()
        if gan.trainer.images_seen >= config.training.images and (gan.extractor is None or (directory / SCORES).exists()):
            accelerator.print(f"this run is finished ({gan.trainer.images_seen} images): see {directory}")
            return 0
        accelerator.init_trackers("tracker")
        gan.picture_of_reals()
        signal_number = gan.train()
        if signal_number is None:
            gan.picture()
            if accelerator.is_main_process:
                plot_curves(read_metrics(directory / METRICS), PANELS, directory / "curves.png")
            gan.export(gan.score())
            accelerator.print(f"finished: samples, curves, scores and {EXPORT_NAME} are in {directory}")
        else:
            accelerator.print(f"stopped by a signal at {gan.trainer.images_seen} images, all saved: the same command goes on")
        accelerator.end_training()
        return 0 if signal_number is None else 128 + signal_number
    finally:
        run.close()
