"""Where image files lie (a folder, a zip), and which of them are images."""

from __future__ import annotations

import os
import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

_IMAGES = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
_SIDECARS = "cfg csv db html ini json jsonl log md npy npz pdf rst sha256 toml tsv txt xml yaml yml"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _IMAGES.split())
SIDECAR_SUFFIXES = frozenset(f".{name}" for name in _SIDECARS.split())
"""Those of files that commonly lie beside images; they are passed over."""
METADATA = "dataset.json"
MAX_FILE_BYTES = 1 << 29
"""The most that one file of an archive may unpack to."""


class StoreError(ValueError):
    """A whole folder, archive or shard can't be used; no single image is to blame, so none is skipped for it."""


class Store(Protocol):
    """A set of named files, read only. Safe to use from several threads and after a fork, and picklable."""

    path: str

    def names(self) -> list[str]:
        """All files, as sorted relative POSIX paths."""

    def open(self, name: str) -> BinaryIO:
        """A seekable stream of one file, to be closed by the caller; raises StoreError where the whole has changed."""

    def stamps(self, names: list[str]) -> Iterator[str]:
        """What tells of a change of these files, or of all, without reading them."""


class Folder:
    """The files of a folder and its subfolders; links are followed, each folder once."""

    def __init__(self, path: str) -> None:
        self.path = path

    def names(self) -> list[str]:
        found, seen = [], set()
        for folder, subfolders, files in os.walk(self.path, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders.sort()  # so that of two links to a folder the same one is taken everywhere
            found += [Path(folder, file).relative_to(self.path).as_posix() for file in files]
        return sorted(found)

    def open(self, name: str) -> BinaryIO:
        return open(os.path.join(self.path, name), "rb")  # pathlib would take longer than opening

    def stamps(self, names: list[str]) -> Iterator[str]:
        # Not their times, which are others in every copy of a folder.
        for name in names:
            try:
                yield str(os.stat(os.path.join(self.path, name)).st_size)
            except OSError:  # a link to nothing
                yield "none"


class Zip:
    """The files of a zip; they are only ever read into memory, never extracted. Raises StoreError if it is damaged."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._unchanged = Unchanged(path)
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _archive(self) -> zipfile.ZipFile:
        # A forked process shares the file offset of its parent, so each process opens the archive itself. Threads of
        # one process can share it: zipfile locks each read.
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = os.getpid(), zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError) as error:
                raise StoreError(f"{self.path} can't be read as a zip ({error}): copy or make it anew") from error
        return self._opened[1]

    def names(self) -> list[str]:
        names = {entry.filename for entry in self._archive().infolist() if not entry.is_dir()}
        for name in names:
            refuse_outside(name, self.path)
        return sorted(names)

    def open(self, name: str) -> BinaryIO:
        self._unchanged.check()
        refuse_large(self._archive().getinfo(name).file_size)
        return self._archive().open(name)  # type: ignore[return-value]

    def stamps(self, names: list[str]) -> Iterator[str]:
        yield self._unchanged.text


class Unchanged:
    """Remembers size and time of a file, to refuse it once they differ: offsets into it would give other bytes.

    Attributes:
        stamp: its size in bytes, and the time of its last change in nanoseconds.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.stamp = self._now()

    def _now(self) -> tuple[int, int]:
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise StoreError(f"{self.path} can't be read ({error.strerror}): put it back and start again") from error
        return status.st_size, status.st_mtime_ns

    @property
    def text(self) -> str:
        """The stamp as text."""
        return "{} {}".format(*self.stamp)

    def check(self) -> None:
        """Raise StoreError if the file is gone or has been written to since."""
        if self._now() != self.stamp:
            raise StoreError(f"{self.path} was changed while it was in use: let it rest and start again")


def refuse_outside(name: str, archive: str) -> None:
    """Raise StoreError for a name in an archive that leads out of the folder where one would unpack it.

    Nothing is ever unpacked here, but an archive with such a name is damaged or meant to do harm.
    """
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:3] in (":\\", ":/"):
        raise StoreError(f"{archive} holds {name!r}, which leads out of its folder: use an archive that you trust")


def refuse_large(size: int) -> None:
    """Raise ValueError where a file of an archive unpacks to more than an image may have."""
    if size > MAX_FILE_BYTES:
        raise ValueError(f"it unpacks to {size:,} bytes, more than the {MAX_FILE_BYTES:,} an image may have")


def is_hidden(name: str) -> bool:
    """Whether a file is hidden or left by an operating system."""
    return any(part == "" or part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def is_candidate(name: str) -> bool:
    """Whether a file ought to be an image: neither hidden, nor left by an operating system, nor a known sidecar."""
    return not is_hidden(name) and suffix(name) not in SIDECAR_SUFFIXES


def suffix(name: str) -> str:
    """The suffix of a file in lower case, dot included."""
    return posixpath.splitext(name)[1].lower()
