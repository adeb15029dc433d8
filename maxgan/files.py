"""Files and folders that appear whole or not at all: written under a temporary name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
# Flushing one file costs a millisecond or more: above this many, one sync of the machine is cheaper.
MANY_FILES = 1000
# A disk with less free than this counts as full where an error doesn't say why a write failed (torch.save).
FULL_BELOW_BYTES = 1 << 16


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; what is written there becomes `path` when the block ends well.

    The temporary name keeps the suffix. After an error the temporary file is gone and `path` is as it was.

    Raises:
        OSError: if the disk is full, in one sentence that names `path`; other errors pass unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unique_neighbour(path)
    try:
        with naming_full_disk(path):
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            # safetensors leaves files that only their owner can read.
            temporary.chmod(mode)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it becomes `path` when the block ends well.

    Args:
        overwrite: replace a folder that isn't empty, once the new one is whole.

    Raises:
        ValueError: if `path` exists and isn't an empty folder, unless overwrite.
        OSError: if the disk is full, in one sentence that names `path`; other errors pass unchanged.
    """
    path = Path(path)
    if not overwrite:
        refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unique_neighbour(path)
    temporary.mkdir()
    try:
        with naming_full_disk(path):
            yield temporary
            replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, path: Path) -> None:
    """Flush the folder `temporary` to disk and rename it to `path` in the same parent, in place of what was there."""
    files = [file for file in temporary.rglob("*") if file.is_file()]
    if len(files) > MANY_FILES:
        os.sync()
    else:
        folders = {temporary, *(file.parent for file in files)}
        for entry in (*files, *folders):
            _sync(entry)
    if path.exists():
        # Renaming the old one away first leaves no moment at which `path` is half removed.
        old = _unique_neighbour(path)
        os.rename(path, old)
        os.rename(temporary, path)
        remove(old)
    else:
        os.rename(temporary, path)
    _sync(path.parent)


def refuse_existing(path: Path) -> None:
    """Raise ValueError if `path` is a file, or a folder that isn't empty."""
    if path.is_dir():
        if any(path.iterdir()):
            raise ValueError(f"{path} exists and is not empty: name another folder, or set overwrite")
    elif path.exists():
        raise ValueError(f"{path} exists: name another file, or set overwrite")


def remove(path: Path) -> None:
    """Remove a file or a whole folder; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(*folders: str | Path) -> None:
    """Remove the temporary files and folders that killed processes left directly in `folders`.

    Call it where no other process is writing: at the start of a run, on the main process.
    """
    for folder in map(Path, folders):
        if folder.is_dir():
            for leftover in folder.glob(f"{TEMPORARY_PREFIX}*"):
                remove(leftover)


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn an error that means a full disk into an OSError that says so in one sentence; others pass unchanged."""
    try:
        yield
    except Exception as error:
        if not _means_full_disk(error, path.parent):
            raise
        message = (
            f"no space left on the disk to write {path}: free some and start again; what was there before is intact"
        )
        full = OSError(message)
        full.errno = errno.ENOSPC
        raise full from error


def _means_full_disk(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors wraps the system's message; torch.save hides it ("unexpected pos"), so ask the disk.
    if os.strerror(errno.ENOSPC) in str(error):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < FULL_BELOW_BYTES


def _unique_neighbour(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
