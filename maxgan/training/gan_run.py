"""A GAN training from start to end: data, run folder, resuming, loop, pictures, export, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.optim.swa_utils import AveragedModel

import maxgan
from maxgan.checkpoint import atomic_path, export_model, together
from maxgan.config import GanConfig, ImageFacts
from maxgan.data.loader import ImageDataset, evaluation_batches
from maxgan.data.sources import source_name
from maxgan.evaluation.comparison import Scores
from maxgan.evaluation.evaluate import BATCH_SIZE, Scorer, default_extractor, make_scorer, report
from maxgan.models.latent import LatentGenerator
from maxgan.models.network import load_model
from maxgan.sampling import EXPORT_NAME, drawn_at_once, generate
from maxgan.training.dry_run import describe
from maxgan.training.gan import GanTrainer
from maxgan.training.held_out import HeldOut, default_held_out
from maxgan.training.loop import BEST_BY, Loop
from maxgan.training.pictures import plot_curves
from maxgan.training.posthoc import AVERAGES, snapshot_path, snapshots_of
from maxgan.training.run import CURVES, METRICS, SCORES, read_metrics
from maxgan.training.session import execute
from maxgan.training.standing import with_standing_statistics
from maxgan.writers import image_grid, save_picture

BEST_NAME = "best.safetensors"
HISTORY = "scores"
PICTURES = "samples"
GRID_IMAGES = 100
GRID_COLUMNS = 10
PANELS = {
    "loss": ("loss_discriminator", "loss_generator"),
    "logits of D": ("real_logit", "fake_logit"),
    "penalties": ("r1", "r2"),
    "consistency": ("bcr_real", "bcr_fake"),
    "gradient norms": ("gradient_norm_generator", "gradient_norm_discriminator"),
    "signs of collapse": ("discriminator_accuracy", "variety"),
    "D on held-out images": ("discriminator_accuracy_training", "discriminator_accuracy_held_out"),
    "held-out logits": ("training_logit", "held_out_logit", "sample_logit"),
    "augmentation": ("augment_probability", "real_sign"),
    "speed": ("images_per_second",),
    "Fréchet distance": ("fd",),
    "likeness": ("precision", "recall", "density", "coverage"),
    "class accuracy": ("accuracy",),
}


class GanRun:
    """A training in its folder: data, networks, loop, and what is written along the way.

    Args:
        config: the settings.
        directory: the run's folder.
        accelerator: of this process.
    """

    def __init__(self, config: GanConfig, directory: Path, accelerator: Accelerator) -> None:
        self.config = config
        self.directory = directory
        self.accelerator = accelerator
        self.dataset = ImageDataset(config.data)
        accelerator.print(self.dataset.describe(accelerator.device))
        # Before anything long starts: a score that can't be computed is said now.
        self.scorer = choose_scorer(config, self.dataset.facts, accelerator)
        self.held_out = self.open_held_out()
        self.trainer = GanTrainer(config, self.dataset.facts, accelerator)
        self._standing: tuple[int, LatentGenerator] | None = None
        if self.scorer is not None:
            self.scorer.compiled = self.trainer.compiling.on
        scored = self.scorer is not None and config.evaluation.every
        self.loop = Loop(
            config.run,
            config.training,
            config.watchdog,
            directory,
            accelerator,
            self.trainer,
            self.dataset,
            shown=("loss_discriminator", "loss_generator"),
            after_save=self.export,
            at_sample=self.picture,
            at_score=self.evaluate if scored or self.held_out is not None else None,
            score_every=config.evaluation.every,
            after_return=self.drop_lost,
            scored_by=self.scored_by,
        )

    @property
    def scored_by(self) -> str:
        """What the scores of this run hang on, beside its generator; empty without scores."""
        if self.scorer is None:
            return ""
        protocol, extractor = self.scorer.protocol, self.scorer.extractor
        return (
            f"{protocol.name} with {self.scorer.count(self.config.evaluation.images):,} images against "
            f"{self.scorer.reference.source} (extractor {extractor.digest[:8]}, labels {self.scorer.labels}, "
            f"standing_images {self.config.ema.standing_images})"
        )

    def open_held_out(self) -> HeldOut | None:
        """Return the images that D has not seen beside those that it has; None where there are none."""
        settings, chosen = self.config.evaluation, self.config.discriminator
        source = settings.held_out or default_held_out(self.config.data.source)
        if not settings.enabled or source is None:
            return None
        group = chosen.minibatch_group if chosen.minibatch_deviation else 1
        return HeldOut(self.dataset, source, self.accelerator, group)

    def export(self, scores: Scores | None = None) -> None:
        """Write the averaged generator with where it comes from, again if it has the best score so far, and the other
        averages."""
        if not self.accelerator.is_main_process:
            return
        self.export_averages()
        self._export(EXPORT_NAME, {} if scores is None else {scores.protocol.name: dict(scores.metrics)})
        if self.loop.best_is_here:
            best = Scores.from_json(self._history().read_text())
            self._export(BEST_NAME, {best.protocol.name: dict(best.metrics)}, scored_by=self.scored_by)

    def export_averages(self) -> None:
        """Write the averages of other half-lives, and the snapshots of power-function averages that aren't there; drop
        snapshots of a lost course."""
        for file, (_, images_seen) in snapshots_of(self.directory).items():
            if images_seen > self.trainer.images_seen:
                file.unlink()
        for name, average in self.trainer.averages.items():
            path = self.directory / AVERAGES / f"{name}.safetensors"
            if name.startswith("power-"):
                path = snapshot_path(self.directory, self.trainer.images_seen, name)
                if path.exists():
                    continue
            self._export(str(path.relative_to(self.directory)), {}, self._with_statistics(average))

    def _export(
        self,
        name: str,
        scores: dict[str, dict[str, float]],
        generator: LatentGenerator | None = None,
        **further: str,
    ) -> None:
        info: dict[str, Any] = {
            "images_seen": self.trainer.images_seen,
            "source": self.config.data.source,
            "class_names": list(self.dataset.source.class_names),
            "class_counts": self.class_counts,
            "run": self.directory.name,
            "maxgan": maxgan.__version__,
            **further,
        }
        if scores:
            info["scores"] = scores
        export_model(self.generator() if generator is None else generator, self.directory / name, info)

    def _history(self) -> Path:
        """Return the file of the scores of the generator as it is."""
        return self.directory / HISTORY / f"{self.trainer.images_seen:09d}.json"

    def generator(self) -> LatentGenerator:
        """Return the averaged generator in eval mode, with its standing statistics."""
        if self._standing is None or self._standing[0] != self.trainer.images_seen:
            self._standing = self.trainer.images_seen, self._with_statistics(self.trainer.ema)
        return self._standing[1]

    def _with_statistics(self, average: AveragedModel) -> LatentGenerator:
        generator = cast(LatentGenerator, average.module)
        return with_standing_statistics(generator, self.config.ema.standing_images, self.class_counts)

    @property
    def class_counts(self) -> list[int] | None:
        """How many training images have each class; None without classes."""
        labels = self.dataset.labels
        return None if labels is None else np.bincount(labels, minlength=self.dataset.facts.num_classes).tolist()

    @property
    def complete(self) -> bool:
        """Whether the run has its curves, and its scores unless it can have none."""
        scored = self.scorer is None or (self.directory / SCORES).exists()
        return scored and (self.directory / CURVES).exists()

    def begin(self) -> None:
        """Write the grid of training images, and what a run that was killed may lack; drop what is of a lost course."""
        self.picture_of_reals()
        if self.loop.best_is_here:
            self.export()
        self.drop_lost()
        if self.accelerator.is_main_process and self.trainer.images_seen:
            self.export_averages()

    def drop_lost(self) -> None:
        """Remove scores and pictures of a course that was given up; its generator stays the best until one is
        better."""
        seen, best = self.trainer.images_seen, None
        self._standing = None
        with together():
            if self.accelerator.is_main_process:
                for file in (*(self.directory / HISTORY).glob("*.json"), *(self.directory / PICTURES).glob("*.png")):
                    if file.stem.isdecimal() and int(file.stem) > seen:
                        file.unlink()
                if (self.directory / BEST_NAME).is_file():
                    info = load_model(self.directory / BEST_NAME).info
                    if info["images_seen"] > seen and info.get("scored_by", self.scored_by) == self.scored_by:
                        (scores,) = info["scores"].values()
                        best = {
                            "images": info["images_seen"],
                            BEST_BY: scores[BEST_BY],
                            "by": self.scored_by,
                            "lost": 1.0,
                        }
        best = broadcast_object_list([best])[0]
        if best is not None:
            self.loop.best = best

    def finish(self) -> None:
        """Write the last samples, the curves, the scores, and the export with them."""
        self.picture()
        if self.accelerator.is_main_process:
            plot_curves(read_metrics(self.directory / METRICS), PANELS, self.directory / CURVES)
        self.export(self.score())

    def picture(self) -> None:
        """Write a grid of samples from latents that stay the same through the run; with classes, a column is of one."""
        if not self.accelerator.is_main_process:
            return
        classes, columns = grid_classes(self.dataset.facts.num_classes)
        seeds = range(GRID_IMAGES // columns * columns)
        at_once = drawn_at_once(self.dataset.facts.resolution, GRID_IMAGES)
        batches = generate(self.generator(), seeds, at_once, self.accelerator.device, classes or None)
        images = torch.cat([batch.images for batch in batches])
        save_picture(image_grid(images, columns), self.directory / PICTURES / f"{self.trainer.images_seen:09d}.png")

    def picture_of_reals(self) -> None:
        """Write a grid of training images; with classes, a column is of one."""
        path = self.directory / "reals.png"
        if not self.accelerator.is_main_process or path.exists():
            return
        indices, columns = grid_of_reals(self.dataset)
        images = torch.cat([images for images, _ in evaluation_batches(self.dataset, GRID_IMAGES, indices)])
        save_picture(image_grid(images, columns), path)

    def score(self) -> Scores | None:
        """Score the averaged generator and write scores.json, unless that is done; None without a way to score."""
        if self.scorer is None:
            return None
        path = self._history()
        if not broadcast_object_list([path.exists()])[0]:
            self.score_now()
        scores = Scores.from_json(path.read_text())
        report(scores, self.directory / SCORES, self.accelerator)
        return scores

    def evaluate(self) -> dict[str, float]:
        """Return the scores, if they are asked for along the training, and how well D knows images it has not seen."""
        metrics = self.score_now() if self.scorer is not None and self.config.evaluation.every else {}
        if self.held_out is not None:
            with self.trainer.compiling.eager():  # its batches would be compiled for anew
                metrics |= self.held_out.measure(self.trainer.discriminator, self.generator())
        return metrics

    def score_now(self) -> dict[str, float]:
        """Score the averaged generator as it is, keep the scores with their protocol, and return them."""
        assert self.scorer is not None
        with self.scorer.showing("scores"):
            images = self.config.evaluation.images
            scores = self.scorer.score_generator(self.generator(), self.directory.name, images)
        with together():
            if self.accelerator.is_main_process:
                with atomic_path(self._history()) as temporary:
                    temporary.write_text(scores.to_json())
        return dict(scores.metrics)


def grid_classes(num_classes: int) -> tuple[list[int], int]:
    """Return the classes that a grid shows in turn, the first ones, and its columns, as many times their number as fit:
    so a column is of one class, and few classes don't make a strip."""
    shown = min(num_classes, GRID_COLUMNS)
    return list(range(shown)), GRID_COLUMNS // shown * shown if shown else GRID_COLUMNS


def grid_of_reals(dataset: ImageDataset) -> tuple[list[int], int]:
    """Return the indices of the first images for a grid, and its columns, those of `grid_classes`."""
    classes, columns = grid_classes(dataset.facts.num_classes)
    members = [np.flatnonzero(dataset.labels == label) for label in classes] if dataset.labels is not None else []
    each = columns // len(members) if members else 0
    rows = min([GRID_IMAGES // columns, *(len(group) // each for group in members)])
    if not members or rows == 0:
        return list(range(min(GRID_IMAGES, len(dataset)))), GRID_COLUMNS
    return [int(group[place]) for place in range(rows * each) for group in members], columns


def choose_scorer(config: GanConfig, facts: ImageFacts, accelerator: Accelerator) -> Scorer | None:
    """Return what scores a run, or None with the reason said."""
    settings = config.evaluation
    if not settings.enabled:
        return None
    named = settings.protocol is not None or settings.extractor is not None
    if not named and default_extractor(config.data.source) is None:
        accelerator.print(
            "no scores at the end: this data has no embedded extractor; name a published protocol in "
            "evaluation.protocol, or in evaluation.extractor an embedded one (cifar10) or the file of a classifier of "
            "train_classifier.py"
        )
        return None
    at_once = drawn_at_once(facts.resolution, BATCH_SIZE)
    return make_scorer(settings, config.data.source, accelerator, facts, data=config.data, batch_size=at_once)


def train_gan(config: GanConfig, config_name: str | None = None) -> int:
    """Train a GAN in its run folder, or go on with it; return the process's exit code (see `session.execute`).

    With `dry_run`, say what the training would be, and write nothing.

    Args:
        config: the settings.
        config_name: name of the config file, for the folder's name.
    """
    if config.dry_run:
        print(describe(config))
        return 0
    name = config_name or source_name(config.data.source)
    return execute(config, name, lambda directory, accelerator: GanRun(config, directory, accelerator))
