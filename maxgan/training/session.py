"""One run from the command to its exit code, the same for every kind of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator

from maxgan.runtime import exit_code, start
from maxgan.training.loop import Loop
from maxgan.training.run import RunDirectory, note_start, run_directory, tracker_names


class Run(Protocol):
    """A training with its data, networks and loop, and what it writes before and after."""

    loop: Loop

    @property
    def complete(self) -> bool:
        """Whether everything that `finish` makes is there already."""

    def begin(self) -> None:
        """Write what a run has from its start."""

    def finish(self) -> None:
        """Write what a run has at its end."""


def execute(config: Any, default_name: str, build: Callable[[Path, Accelerator], Run], **options: Any) -> int:
    """Start a run, or go on with it; return the process's exit code.

    Args:
        config: the settings, with a `run` and a `training` section.
        default_name: first part of the folder's name, unless `run.name` is set.
        build: makes the training for a folder and an accelerator; it writes nothing.
        options: further arguments of `maxgan.runtime.start`.

    Returns:
        0 when the run is finished; when a signal stopped it, with all saved, 130 for SIGINT (Ctrl-C) and 75 for SIGTERM
        and SIGUSR1.

    Raises:
        ValueError: for anything that the user has to mend.
        OSError: when the disk is full; what was saved before is intact.
    """
    directory = run_directory(config, default_name)
    trackers = tracker_names(config.run.tracker) or None
    precision, threads = config.training.precision, config.run.threads
    accelerator = start(threads, precision, log_with=trackers, project_dir=str(directory), **options)
    accelerator.print(f"run: {directory}")
    # First, so that settings that data or networks refuse leave no folder behind.
    run: Run | None = build(directory, accelerator)
    assert run is not None
    folder = RunDirectory(directory, config, accelerator)
    try:
        signal_number = _go_on(run, directory, accelerator)
    finally:
        folder.close()
    # In this order: a process group that outlives wrapped networks, or the reverse, aborts the process at its exit.
    run = None
    accelerator.free_memory()
    accelerator.end_training()
    return 0 if signal_number is None else exit_code(signal_number)


def _go_on(run: Run, directory: Path, accelerator: Accelerator) -> int | None:
    """Train in an opened folder; return the signal that stopped it, if one did."""
    run.loop.resume()
    if run.loop.finished and run.complete:
        accelerator.print(f"this run is finished ({run.loop.trainer.images_seen} images): see {directory}")
        return None
    note_start(directory, accelerator)
    accelerator.init_trackers("tracker")
    run.begin()
    signal_number = run.loop.train()
    if signal_number is not None:
        seen = run.loop.trainer.images_seen
        accelerator.print(f"stopped by a signal at {seen} images, all saved: the same command goes on")
        # A launcher ends the other processes as soon as one has left: the main process may be at its last file.
        accelerator.wait_for_everyone()
        return signal_number
    run.finish()
    accelerator.print(f"finished: everything is in {directory}")
    return None
