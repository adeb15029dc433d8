"""The folder of a run: its name, its config, who may write there, and its metrics."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available

from maxgan.checkpoint import atomic_path, remove_leftovers, together
from maxgan.cli import to_yaml
from maxgan.config import RunConfig, differences, learning_hash, learning_settings, to_dict
from maxgan.evaluation.comparison import versions
from maxgan.files import TEMPORARY_PREFIX, naming_full_disk
from maxgan.sampling import CONFIG

METRICS = "metrics.jsonl"
CURVES = "curves.png"
SCORES = "scores.json"
ENVIRONMENT = "environment.json"
LOCK = ".lock"
LOCK_SECONDS = 60


def run_directory(config: Any, default_name: str) -> Path:
    """Return the folder of the run that `config` describes: `run.directory`, or root/name-hash.

    The hash changes exactly when a setting that changes learning does, so that the same command finds its run again.
    """
    run: RunConfig = config.run
    if run.directory is not None:
        return Path(run.directory)
    return Path(run.root) / f"{run.name or default_name}-{learning_hash(config)}"


class RunDirectory:
    """A run's folder, opened for this training alone.

    Args:
        path: the folder; made if it isn't there.
        config: the resolved config.
        accelerator: only the main process writes; all must call the constructor.

    Raises:
        ValueError: if the folder holds something else, a run of another config, or a training that goes on right now.
    """

    def __init__(self, path: Path, config: Any, accelerator: Accelerator) -> None:
        self.path = path
        self.is_main = accelerator.is_main_process
        self._lock: IO[str] | None = None
        with together():
            if self.is_main:
                self._open(config)

    def _open(self, config: Any) -> None:
        file = self.path / CONFIG
        if file.exists():
            changes = _changes(file, config)
            if changes:
                raise ValueError(
                    f"{self.path} holds a run with other settings ({'; '.join(changes)}; its value -> yours): "
                    "use its settings, or name another run.directory"
                )
        elif self.path.exists() and any(not _is_ours(entry.name) for entry in self.path.iterdir()):
            raise ValueError(
                f"{self.path} is not empty and holds no run ({CONFIG} is missing): name another run.directory"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        with naming_full_disk(file):
            self._lock = _lock(self.path / LOCK)
        remove_leftovers(self.path, *(entry for entry in self.path.iterdir() if entry.is_dir()))
        with atomic_path(file) as temporary:
            temporary.write_text(to_yaml(config))

    def close(self) -> None:
        """Let others train here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _is_ours(name: str) -> bool:
    """Tell whether a run that was killed before its config was there can have left a file of this name."""
    return name == LOCK or name.startswith(TEMPORARY_PREFIX)


def note_start(path: Path, accelerator: Accelerator) -> None:
    """Add to a run's environment.json when, with what command and versions, and on what it is started or goes on."""
    if not accelerator.is_main_process:
        return
    try:
        starts = json.loads((path / ENVIRONMENT).read_text())
        assert isinstance(starts, list)
    except (OSError, ValueError, AssertionError):
        starts = []
    device = accelerator.device
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    with atomic_path(path / ENVIRONMENT) as temporary:
        temporary.write_text(json.dumps([*starts, start], indent=2) + "\n")


def _changes(file: Path, config: Any) -> list[str]:
    """Return the learning settings in which a run's config file differs from `config`."""
    try:
        stored = yaml.safe_load(file.read_text())
        assert isinstance(stored, dict)
    except (yaml.YAMLError, UnicodeDecodeError, AssertionError) as error:
        raise ValueError(f"{file} can't be read as a config: remove the run, or name another run.directory") from error
    return differences(learning_settings(stored), learning_settings(to_dict(config)))


def _lock(path: Path) -> IO[str] | None:
    """Take the lock of a run's folder; a training that was just stopped gets a minute to finish its save."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: two trainings in one folder are then the user's to avoid
        return None
    handle = path.open("a+")
    for second in range(LOCK_SECONDS + 1):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip()
            if second == LOCK_SECONDS:
                handle.close()
                raise ValueError(f"process {holder} is training in {path.parent}: wait for it, or stop it") from None
            if second == 0:
                print(
                    f"process {holder} is still at work in {path.parent}; waiting up to {LOCK_SECONDS} seconds",
                    flush=True,
                )
            time.sleep(1)
        except OSError:  # a file system without locks
            return handle
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle


class MetricsLog:
    """metrics.jsonl: a line of JSON for each logged interval, keyed by `images`.

    Args:
        path: the file; None on the processes that write nothing.
        images_seen: where training goes on; later lines, of a course that was lost, and a torn last line are dropped.
    """

    def __init__(self, path: Path | None, images_seen: int) -> None:
        self._file: IO[str] | None = None
        if path is not None:
            lines = [line for line in read_metrics(path) if line["images"] <= images_seen]
            with atomic_path(path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
            self._file = path.open("a")

    def write(self, values: dict[str, float]) -> None:
        """Append one line."""
        if self._file is not None:
            with naming_full_disk(Path(self._file.name)):
                self._file.write(json.dumps(values) + "\n")
                self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with naming_full_disk(Path(self._file.name)):  # it tries again to write what a full disk has refused
                self._file.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the lines of a metrics.jsonl; a last line that was cut off by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def tracker_names(choice: str) -> list[str]:
    """Return the trackers for `run.tracker`, for Accelerator's log_with; `auto` is tensorboard where it is installed.

    Raises:
        ValueError: for a tracker that isn't installed.
    """
    if choice == "none":
        return []
    available = is_wandb_available() if choice == "wandb" else is_tensorboard_available()
    if choice == "auto":
        return ["tensorboard"] if available else []
    if not available:
        raise ValueError(f"run.tracker {choice} is not installed: pip install {choice}, or choose run.tracker none")
    return [choice]
