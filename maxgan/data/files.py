"""Where image files lie (a folder, a zip), which of them are images, and what their labels are."""

from __future__ import annotations

import itertools
import json
import os
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

_IMAGES = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
_SIDECARS = "cfg csv db html ini json jsonl log md npy npz pdf rst sha256 toml tsv txt xml yaml yml"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _IMAGES.split())
SIDECAR_SUFFIXES = frozenset(f".{name}" for name in _SIDECARS.split())
"""Those of files that commonly lie beside images; they are passed over."""
METADATA = "dataset.json"
MAX_FILE_BYTES = 1 << 29
MAX_CLASSES = 100_000


class Store(Protocol):
    """A set of named files, read only. Safe to use from several threads and after a fork, and picklable."""

    path: str

    def names(self) -> list[str]:
        """All files, as sorted relative POSIX paths."""

    def open(self, name: str) -> BinaryIO:
        """A seekable stream of one file, to be closed by the caller."""


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
        return open(Path(self.path, name), "rb")


class Zip:
    """The files of a zip; they are only ever read into memory, never extracted."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_opened": None}

    def _archive(self) -> zipfile.ZipFile:
        # A forked process shares the file offset of its parent, so each process opens the archive itself. Threads of
        # one process can share it: zipfile locks each read.
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), zipfile.ZipFile(self.path)
        return self._opened[1]

    def names(self) -> list[str]:
        return sorted({entry.filename for entry in self._archive().infolist() if not entry.is_dir()})

    def open(self, name: str) -> BinaryIO:
        size = self._archive().getinfo(name).file_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"it unpacks to {size:,} bytes, more than the {MAX_FILE_BYTES:,} an image may have")
        return self._archive().open(name)  # type: ignore[return-value]


def is_candidate(name: str) -> bool:
    """Whether a file ought to be an image: neither hidden, nor left by an operating system, nor a known sidecar."""
    parts = name.split("/")
    hidden = any(part == "" or part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and suffix(name) not in SIDECAR_SUFFIXES


def suffix(name: str) -> str:
    """The suffix of a file in lower case, dot included."""
    return PurePosixPath(name).suffix.lower()


class Labels(NamedTuple):
    """The class of each image: `values` int64 `(N,)` or None, one name a class, and where they were found."""

    values: np.ndarray | None
    class_names: tuple[str, ...]
    origin: str


def find_labels(store: Store, files: list[str], images: list[str]) -> Labels:
    """Labels from `dataset.json`, if there is one (`{"labels": null}` means none), or else from class folders.

    Folders that all images share are left out of account, as archives often wrap their content in one. Class folders
    are the first level below, where every image stands in one; `dataset.json` lies beside them or further out, and its
    paths are relative to where it lies.

    Args:
        store: where `dataset.json` is read.
        files: the names of all files.
        images: the names of the images among them.

    Raises ValueError where `dataset.json` and the images don't match.
    """
    shared = _shared_folders(images)
    present = set(files)
    for depth in range(len(shared) + 1):
        root = "".join(f"{part}/" for part in shared[:depth])
        if root + METADATA in present:
            return _from_metadata(store, root, present, images)
    folders = [name.split("/")[len(shared) : -1][:1] for name in images]
    if not all(folders):
        return Labels(None, (), "")
    names = [folder[0] for folder in folders]
    class_names = _sort_classes(set(names))
    number = {name: i for i, name in enumerate(class_names)}
    return Labels(np.array([number[name] for name in names], dtype=np.int64), class_names, "class folders")


def _shared_folders(names: list[str]) -> list[str]:
    """The folders that lead to every one of the files."""
    first, last = (name.split("/")[:-1] for name in (min(names), max(names)))
    return [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]


def _sort_classes(names: set[str]) -> tuple[str, ...]:
    """By value if all are numbers (so that 10 comes after 9), by name otherwise."""
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _from_metadata(store: Store, root: str, present: set[str], images: list[str]) -> Labels:
    where = f"{store.path}/{root}{METADATA}"
    try:
        with store.open(root + METADATA) as stream:
            content = json.load(stream)
    except (ValueError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{where} can't be read as JSON ({error}): repair or remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f'{where} must hold an object such as {{"labels": [["a.png", 0], ...]}}')
    pairs = content.get("labels")
    if pairs is None:
        return Labels(None, (), METADATA)
    label_of: dict[str, int] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        match pair:
            case [str(name), int(label)] if not isinstance(label, bool) and 0 <= label < MAX_CLASSES:
                name = root + name.replace("\\", "/")
            case _:
                text = json.dumps(pair)[:80]
                raise ValueError(
                    f"{where}: each of labels must be [path, class number from 0 to {MAX_CLASSES - 1}], unlike {text}"
                )
        if name not in present:
            raise ValueError(f"{where} names {name}, which is not there: make the labels match the files")
        if label_of.setdefault(name, label) != label:
            raise ValueError(f"{where} gives {name} two labels, {label_of[name]} and {label}: keep one")
    missing = [name for name in images if name not in label_of]
    if missing:
        raise ValueError(
            f"{where} has no label for {len(missing)} of {len(images)} images, the first being {missing[0]}: "
            f"add them, or train without classes by data.labels=false"
        )
    values = np.array([label_of[name] for name in images], dtype=np.int64)
    return Labels(values, _class_names(values, [name[len(root) :] for name in images]), METADATA)


def _class_names(values: np.ndarray, images: list[str]) -> tuple[str, ...]:
    """The names of the first folders, where they and the labels are the same partition; the numbers otherwise."""
    numbers = [str(i) for i in range(int(values.max()) + 1)]
    pairs = {(int(label), name.split("/")[0]) for label, name in zip(values, images, strict=True) if "/" in name}
    one_to_one = len(pairs) == len({label for label, _ in pairs}) == len({folder for _, folder in pairs})
    if one_to_one and len(pairs) == len(numbers) and all("/" in name for name in images):
        return tuple(folder for _, folder in sorted(pairs))
    return tuple(numbers)
