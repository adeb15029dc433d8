"""The loop around the updates of any training: progress, metrics, checkpoints, signals, resuming."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm import tqdm

from maxgan.checkpoint import find_run_state, load_run_state, save_run_state, together
from maxgan.config import GanWatchdogConfig, RunConfig, TrainingConfig, WatchdogConfig
from maxgan.data.loader import Batch, ImageDataset, images_at_once, naming_lost_workers, training_batches
from maxgan.runtime import StopSignal, keeping_memory
from maxgan.training.draws import seed_of
from maxgan.training.meters import Meters
from maxgan.training.run import METRICS, MetricsLog, read_metrics
from maxgan.training.signs import Signs
from maxgan.training.watchdog import NotFinite, Watchdog

CHECKPOINTS = "checkpoints"
# With several processes, a signal is looked for every so many updates: each look waits for all of them.
SIGNAL_INTERVAL = 8
# The score whose least value is the best.
BEST_BY = "fd"
# Beside what the trainers draw from the same seed, so that no two uses share a stream.
ROLLBACK = 4


class Collapse(Exception):
    """A sign of collapse has appeared, and the run goes back to the checkpoint in `folder`."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


class Trainer(Protocol):
    """What the loop asks of a training."""

    images_seen: int
    seed: int
    watchdog: Watchdog

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Do one update with as many micro-batches as it accumulates; add batch_size to images_seen; return scalars."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs beside all that the accelerator prepared."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""


class Loop:
    """Updates until all images are seen, with all that happens around them.

    Args:
        run, training, watchdog: the settings; signs of collapse are looked for in a GAN's.
        directory: the run's folder.
        accelerator: of this process; every process runs the same loop.
        trainer: does the updates.
        dataset: the training images.
        shown: metrics that the progress bar shows.
        after_save: called on every process after each checkpoint.
        at_sample: called on every process every `run.sample_every` images.
        at_score: called on every process every `score_every` images and at the end; gives metrics. A checkpoint
            follows, so that a run that goes on never scores the same generator again.
        score_every: images; 0 for the end alone.
        after_return: called on every process when the run has gone back to a checkpoint.
        scored_by: what scores hang on: those by something else are not compared with them.

    Raises:
        ValueError: if the batch can't be split equally over the processes, or if they have unlike data.

    Attributes:
        best: the metrics with the least "fd" so far, their `images`, and what they are `by`; None before the first.
            With `lost`, of a course that was given up.
    """

    def __init__(
        self,
        run: RunConfig,
        training: TrainingConfig,
        watchdog: WatchdogConfig,
        directory: Path,
        accelerator: Accelerator,
        trainer: Trainer,
        dataset: ImageDataset,
        shown: Sequence[str],
        after_save: Callable[[], None],
        at_sample: Callable[[], None] | None = None,
        at_score: Callable[[], dict[str, float]] | None = None,
        score_every: int = 0,
        after_return: Callable[[], None] | None = None,
        scored_by: str = "",
    ) -> None:
        # Before anything is written.
        images_at_once(training.batch_size, accelerator.num_processes, training.accumulation)
        counts = gather_object([len(dataset)])
        if len(set(counts)) > 1:
            raise ValueError(
                f"the processes find {min(counts):,} to {max(counts):,} images in data.source {dataset.source.name}: "
                "give all machines the same"
            )
        self.run, self.training, self.watchdog = run, training, watchdog
        self.directory = directory
        self.accelerator = accelerator
        self.trainer = trainer
        self.dataset = dataset
        self.shown = shown
        self.after_save = after_save
        self.at_sample = at_sample
        self.at_score = at_score
        self.score_every = score_every
        self.after_return = after_return
        self.scored_by = scored_by
        self.meters = Meters()
        self.seconds = 0.0
        self.rollbacks = 0
        self.best: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether all images are seen."""
        return self.trainer.images_seen >= self.training.images

    @property
    def best_is_here(self) -> bool:
        """Whether the networks as they are have the best score."""
        return self.best_images == self.trainer.images_seen

    @property
    def best_images(self) -> int | None:
        """Images seen at the best score of this course; None where there is none."""
        return None if self.best is None or "lost" in self.best else int(self.best["images"])

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one.

        Raises:
            ValueError: if all of them are damaged, or the one that is whole doesn't fit the settings.
        """
        folder = self._find()
        if folder is None:
            return
        self._load(folder)
        if not self.finished:
            self.accelerator.print(f"going on from {folder}")

    def _find(self, most: int | None = None) -> Path | None:
        """Return the newest whole checkpoint, of at most `most` images."""
        found: list[Path | None] = [None]
        with together():
            # The main process alone looks: it reads every byte of a checkpoint to know that it is whole.
            if self.accelerator.is_main_process:
                found = [find_run_state(self.directory / CHECKPOINTS, most=most)]
        folder: Path | None = broadcast_object_list(found)[0]
        return folder

    def _load(self, folder: Path) -> None:
        extra, tensors = load_run_state(self.accelerator, folder)
        groups: dict[str, dict[str, Tensor]] = {"trainer": {}, "meter": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        self.trainer.restore(groups["trainer"])
        self.trainer.images_seen = extra["images_seen"]
        self.meters.restore(extra["meter_counts"], groups["meter"], self.accelerator.device)
        self.seconds = extra["seconds"]
        self.best = extra.get("best")
        by = self.scored_by if self.best is None else self.best.get("by", self.scored_by)
        if by != self.scored_by and not self.finished:
            self.accelerator.print(
                f"the scores of this run were by {by}, and are by {self.scored_by} from here on: the best generator is "
                "chosen anew"
            )
            self.best = None
        self.rollbacks = extra.get("rollbacks", 0)
        before, now = extra.get("data_images", len(self.dataset)), len(self.dataset)
        if before != now:
            self.accelerator.print(
                f"the data has {now:,} images and had {before:,} when {folder} was saved: their order is another from "
                "here on"
            )
        self.trainer.seed = self._seed()

    def _seed(self) -> int:
        """Return the seed of random draws after so many rollbacks."""
        seed = self.training.seed
        return seed_of(seed, ROLLBACK, self.rollbacks) if self.rollbacks else seed

    def _way_back(self, most: int | None = None) -> Path | None:
        """Return the checkpoint that a run in trouble goes back to, of at most `most` images; None where it may not."""
        return self._find(most) if self.rollbacks < self.watchdog.rollback else None

    def _roll_back(self, trouble: str, folder: Path) -> None:
        """Go back to a checkpoint, and on from there with another seed."""
        seen, rollbacks = self.trainer.images_seen, self.rollbacks + 1
        self._load(folder)
        self.rollbacks = rollbacks
        self.trainer.seed = self._seed()
        torch.manual_seed(self.trainer.seed + self.accelerator.process_index)
        self.trainer.watchdog.forget()
        if self.after_return is not None:
            self.after_return()
        self.accelerator.print(
            f"watchdog: {trouble}\nwatchdog: going back from {seen:,} images to {self.trainer.images_seen:,}, with "
            f"another seed (rollback {rollbacks} of {self.watchdog.rollback})"
        )
        # So that a run that is killed now neither takes what was given up nor forgets how often it went back.
        self.save()

    def save(self) -> None:
        """Write a checkpoint; unless a number is not finite, which no checkpoint shall hold."""
        self.trainer.watchdog.check()
        self.meters.share(self.accelerator)
        counts, sums = self.meters.state()
        tensors = {f"trainer/{name}": tensor for name, tensor in self.trainer.state().items()}
        tensors |= {f"meter/{name}": tensor for name, tensor in sums.items()}
        self.trainer.watchdog.check_state(tensors)
        extra = {
            "meter_counts": counts, "seconds": self.seconds, "rollbacks": self.rollbacks, "best": self.best,
            "data_images": len(self.dataset),
        }  # fmt: skip
        root, seen = self.directory / CHECKPOINTS, self.trainer.images_seen
        save_run_state(self.accelerator, root, seen, extra, tensors, self.run.keep, self.best_images)
        self.after_save()

    def train(self) -> int | None:
        """Update until all images are seen; return the signal that stopped it before, if one did.

        Raises:
            NotFinite: when a metric, a gradient, or what would be saved is not finite, and the run can't go back.
            OSError: if a decoding process was killed, or a disk is full.
        """
        with StopSignal() as stop, naming_lost_workers():
            while True:
                try:
                    return self._train(stop)
                except Collapse as collapse:
                    trouble, folder = str(collapse), collapse.folder
                except NotFinite as error:
                    way_back = self._way_back()
                    if way_back is None:
                        raise
                    trouble, folder = str(error), way_back
                self._roll_back(trouble, folder)

    def _train(self, stop: StopSignal) -> int | None:
        accelerator, trainer = self.accelerator, self.trainer
        batch_size, total = self.training.batch_size, self.training.images
        batches = training_batches(
            self.dataset,
            batch_size,
            trainer.seed,
            trainer.images_seen // batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            self.dataset.config.workers,
            self.training.accumulation,
            accelerator.device,
        )
        log = MetricsLog(self.directory / METRICS if accelerator.is_main_process else None, trainer.images_seen)
        bar = tqdm(
            total=total,
            initial=min(trainer.images_seen, total),
            unit="img",
            desc=self.directory.name,
            dynamic_ncols=True,
            disable=not accelerator.is_main_process,
        )
        started = time.perf_counter() - self.seconds
        logged_at, logged_seen, saved = time.perf_counter(), trainer.images_seen, trainer.images_seen
        signs = self._signs()
        with closing(log), bar:
            while not self.finished:
                with keeping_memory(accelerator.device):
                    metrics = trainer.step(batches)
                self.meters.add(metrics)
                seen = trainer.images_seen
                self.seconds = time.perf_counter() - started
                bar.update(min(batch_size, total - bar.n))
                logged = self._crossed(self.run.log_every) or self.finished
                drawn = self.at_sample is not None and self.run.sample_every and self._crossed(self.run.sample_every)
                due = self.finished or (bool(self.score_every) and self._crossed(self.score_every))
                scored = self.at_score is not None and due
                if logged or drawn or scored:
                    trainer.watchdog.check()
                if logged:
                    values = self.meters.read(accelerator)
                    now = time.perf_counter()
                    speed = (seen - logged_seen) / (now - logged_at)
                    logged_at, logged_seen = now, seen
                    appeared = signs.observe({"images": seen, **values}) if signs is not None else []
                    values |= signs.flags() if signs is not None else {}
                    self._log(log, {"images": seen, **values, "images_per_second": speed, "seconds": self.seconds})
                    self._report(appeared)
                    bar.set_postfix({name: f"{values[name]:.3f}" for name in self.shown})
                if self.at_sample is not None and drawn:
                    self.at_sample()
                if scored and self.at_score is not None:
                    score = {"images": seen, **self.at_score()}
                    self._log(log, score)
                    if BEST_BY in score and (self.best is None or score[BEST_BY] < self.best[BEST_BY]):
                        self.best = {**score, "by": self.scored_by}
                    # A score isn't part of the speed of training.
                    paused = time.perf_counter() - started - self.seconds
                    started, logged_at = started + paused, logged_at + paused
                if scored or self._crossed(self.run.checkpoint_every) or self.finished:
                    self.save()
                    saved = seen
                looks = (seen // batch_size) % SIGNAL_INTERVAL == 0 or self.finished
                if accelerator.num_processes == 1 or looks:
                    received = stop.agreed(accelerator)
                    if received is not None:
                        if saved != seen:
                            self.save()
                        return received
        return None

    @property
    def _updates_a_line(self) -> int:
        return max(1, self.run.log_every // self.training.batch_size)

    def _signs(self) -> Signs | None:
        """Return what watches a GAN's metrics on the main process, with what was logged before."""
        if not self.accelerator.is_main_process or not isinstance(self.watchdog, GanWatchdogConfig):
            return None
        signs = Signs(self.watchdog, max(1, self.watchdog.sign_updates // self._updates_a_line))
        for line in read_metrics(self.directory / METRICS):
            signs.observe(line)
        return signs

    def _report(self, appeared: list[str]) -> None:
        """Say what signs have appeared; raise Collapse, on every process, where the run may go back for them."""
        for sentence in appeared:
            tqdm.write(f"watchdog: at {self.trainer.images_seen:,} images {sentence}")
        if not isinstance(self.watchdog, GanWatchdogConfig) or self.rollbacks >= self.watchdog.rollback:
            return
        appeared = broadcast_object_list([appeared])[0]
        if appeared:
            # The collapse began before its sign was sure: a window of lines, of one at least.
            window = max(self.watchdog.sign_updates, self._updates_a_line)
            folder = self._way_back(self.trainer.images_seen - window * self.training.batch_size)
            if folder is not None:
                raise Collapse(" and ".join(appeared), folder)

    def _crossed(self, every: int) -> bool:
        seen, batch_size = self.trainer.images_seen, self.training.batch_size
        return seen // every > (seen - batch_size) // every

    def _log(self, log: MetricsLog, values: dict[str, float]) -> None:
        log.write(values)
        scalars = {name: value for name, value in values.items() if name != "images"}
        self.accelerator.log(scalars, step=int(values["images"]))
