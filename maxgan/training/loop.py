"""The loop around the updates of any training: progress, metrics, checkpoints, signals, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from maxgan.checkpoint import find_run_state, load_run_state, save_run_state
from maxgan.config import RunConfig, TrainingConfig
from maxgan.data.loader import Batch, ImageDataset, training_batches
from maxgan.runtime import StopSignal
from maxgan.training.meters import Meters
from maxgan.training.run import METRICS, MetricsLog

CHECKPOINTS = "checkpoints"
# With several processes, a signal is looked for every so many updates: each look waits for all of them.
SIGNAL_INTERVAL = 8


class Trainer(Protocol):
    """What the loop asks of a training."""

    images_seen: int

    def step(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Do one update with as many micro-batches as it accumulates; add batch_size to images_seen; return scalars."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs beside all that the accelerator prepared."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""


class Loop:
    """Updates until all images are seen, with all that happens around them.

    Args:
        run, training: the settings.
        directory: the run's folder.
        accelerator: of this process; every process runs the same loop.
        trainer: does the updates.
        dataset: the training images.
        shown: metrics that the progress bar shows.
        after_save: called on every process after each checkpoint.
        at_sample: called on every process every `run.sample_every` images.
        at_score: called on every process every `score_every` images and at the end; gives metrics. A checkpoint
            follows, so that a run that goes on never scores the same generator again.
        score_every: images; 0 for never.
    """

    def __init__(
        self,
        run: RunConfig,
        training: TrainingConfig,
        directory: Path,
        accelerator: Accelerator,
        trainer: Trainer,
        dataset: ImageDataset,
        shown: Sequence[str],
        after_save: Callable[[], None],
        at_sample: Callable[[], None] | None = None,
        at_score: Callable[[], dict[str, float]] | None = None,
        score_every: int = 0,
    ) -> None:
        self.run, self.training = run, training
        self.directory = directory
        self.accelerator = accelerator
        self.trainer = trainer
        self.dataset = dataset
        self.shown = shown
        self.after_save = after_save
        self.at_sample = at_sample
        self.at_score = at_score
        self.score_every = score_every
        self.meters = Meters()
        self.seconds = 0.0

    @property
    def finished(self) -> bool:
        """Whether all images are seen."""
        return self.trainer.images_seen >= self.training.images

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        # The main process alone looks: it reads every byte of a checkpoint to know that it is whole.
        found = [find_run_state(self.directory / CHECKPOINTS) if self.accelerator.is_main_process else None]
        folder = broadcast_object_list(found)[0]
        if folder is None:
            return
        extra, tensors = load_run_state(self.accelerator, folder)
        groups: dict[str, dict[str, Tensor]] = {"trainer": {}, "meter": {}}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        self.trainer.restore(groups["trainer"])
        self.trainer.images_seen = extra["images_seen"]
        self.meters.restore(extra["meter_counts"], groups["meter"], self.accelerator.device)
        self.seconds = extra["seconds"]
        if not self.finished:
            self.accelerator.print(f"going on from {folder}")

    def save(self) -> None:
        """Write a checkpoint; unless a number is not finite, which no checkpoint shall hold."""
        _check_finite(self.meters.peek(), self.trainer.images_seen)
        counts, sums = self.meters.state()
        tensors = {f"trainer/{name}": tensor for name, tensor in self.trainer.state().items()}
        tensors |= {f"meter/{name}": tensor for name, tensor in sums.items()}
        extra = {"meter_counts": counts, "seconds": self.seconds}
        root = self.directory / CHECKPOINTS
        save_run_state(self.accelerator, root, self.trainer.images_seen, extra, tensors, self.run.keep)
        self.after_save()

    def train(self) -> int | None:
        """Update until all images are seen; return the signal that stopped it before, if one did.

        Raises:
            ValueError: when a metric is not finite.
        """
        accelerator, trainer = self.accelerator, self.trainer
        batch_size, total = self.training.batch_size, self.training.images
        batches = training_batches(
            self.dataset,
            batch_size,
            self.training.seed,
            trainer.images_seen // batch_size,
            accelerator.process_index,
            accelerator.num_processes,
            self.dataset.config.workers,
            self.training.accumulation,
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
        with closing(log), bar, StopSignal() as stop:
            while not self.finished:
                self.meters.add(trainer.step(batches))
                seen = trainer.images_seen
                self.seconds = time.perf_counter() - started
                bar.update(min(batch_size, total - bar.n))
                if self._crossed(self.run.log_every) or self.finished:
                    values = self.meters.read(accelerator)
                    _check_finite(values, seen)
                    now = time.perf_counter()
                    speed = (seen - logged_seen) / (now - logged_at)
                    logged_at, logged_seen = now, seen
                    self._log(log, {"images": seen, **values, "images_per_second": speed, "seconds": self.seconds})
                    bar.set_postfix({name: f"{values[name]:.3f}" for name in self.shown})
                if self.at_sample is not None and self.run.sample_every and self._crossed(self.run.sample_every):
                    self.at_sample()
                scored = bool(self.score_every) and (self._crossed(self.score_every) or self.finished)
                if scored and self.at_score is not None:
                    self._log(log, {"images": seen, **self.at_score()})
                    # A score isn't part of the speed of training.
                    paused = time.perf_counter() - started - self.seconds
                    started, logged_at = started + paused, logged_at + paused
                if scored or self._crossed(self.run.checkpoint_every) or self.finished:
                    self.save()
                    saved = seen
                if accelerator.num_processes == 1 or (seen // batch_size) % SIGNAL_INTERVAL == 0:
                    received = stop.agreed(accelerator)
                    if received is not None and not self.finished:
                        if saved != seen:
                            self.save()
                        return received
        return None

    def _crossed(self, every: int) -> bool:
        seen, batch_size = self.trainer.images_seen, self.training.batch_size
        return seen // every > (seen - batch_size) // every

    def _log(self, log: MetricsLog, values: dict[str, float]) -> None:
        log.write(values)
        scalars = {name: value for name, value in values.items() if name != "images"}
        self.accelerator.log(scalars, step=int(values["images"]))


def _check_finite(values: dict[str, float], images_seen: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{name} became {value} before {images_seen} images: the run stops and its checkpoints stay as they "
                "were; lower the learning rate or strengthen the regularisation"
            )
