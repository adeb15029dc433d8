"""Tar shards in WebDataset's layout, read at random by an index of where each file lies.

A streaming reader gives the images of a shard in their order and mixes them in a buffer, so where it stands after N
images can't be told without reading them, and a shard is shared out whole. Here the headers are read once, and what
they tell is kept for the next start (`index_cache`); after that an image is one read at an offset, and the stream of
indices is the same as from any other source. This is why shards must be plain local files: compressed ones have no
offsets, and over HTTP each header would be a request.
"""

from __future__ import annotations

import bisect
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import BinaryIO

import numpy as np

from maxgan.data.files import (
    IMAGE_SUFFIXES,
    METADATA,
    StoreError,
    Unchanged,
    is_hidden,
    refuse_large,
    refuse_outside,
    suffix,
)
from maxgan.data.index_cache import Index, Member, keep_index, load_index
from maxgan.data.labels import Labels, Metadata, check_numbers, class_names, numbers

CLASS_SUFFIX = ".cls"
_CLASS_BYTES = 32
_OPEN_AT_ONCE = 8


class Shards:
    """The files in tar files, by their names there; where two shards share a name, all bear the shard's name too.

    Two kinds of file are understood here: `KEY.cls`, the class of the image `KEY.*` as a number (a key ends at the
    first dot of the file's name), and `dataset.json` beside the shards. Nothing is ever extracted.

    Args:
        path: what to call them all.
        shards: their paths.

    Raises StoreError for a shard that is missing, damaged, or holds links, devices, or names that lead outside.
    """

    def __init__(self, path: str, shards: list[str]) -> None:
        self.path = path
        self._shards = [Unchanged(shard) for shard in shards]
        with ThreadPoolExecutor(_OPEN_AT_ONCE) as pool:  # hides the delay of files on a network
            contents = list(pool.map(_index, self._shards))
        count = Counter(member.name for members, _ in contents for member in members)
        shared = any(times > 1 for times in count.values())
        entries: list[tuple[str, int, int, int, int]] = []
        for number, (members, classes) in enumerate(contents):
            for name, offset, size in members:
                label = classes.pop(_key(name), -1) if suffix(name) in IMAGE_SUFFIXES else -1
                full = _with_shard(name, shards[number]) if shared else name
                entries.append((full, number, offset, size, label))
            if classes:
                raise StoreError(f"{shards[number]} has a class for {next(iter(classes))}, but no such image: mend it")
        entries.sort()
        self._names = [entry[0] for entry in entries]
        # Arrays, since a million tuples would take hundreds of megabytes.
        self._places = np.array([entry[1:4] for entry in entries], dtype=np.int64).reshape(-1, 3)
        self._classes = np.array([entry[4] for entry in entries], dtype=np.int64)
        twice = [a for a, b in zip(self._names, self._names[1:], strict=False) if a == b]
        if twice:
            raise StoreError(f"{path} holds {twice[0]} twice: give each image a name of its own")
        beside = Path(shards[0]).parent / METADATA
        self._metadata = beside if beside.is_file() else None

    def names(self) -> list[str]:
        return sorted([*self._names, METADATA]) if self._metadata else self._names

    def open(self, name: str) -> BinaryIO:
        if name == METADATA and self._metadata:
            return self._metadata.open("rb")
        number, offset, size = (int(value) for value in self._places[self._index(name)])
        refuse_large(size)
        shard = self._shards[number]
        shard.check()
        with open(shard.path, "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))

    def labels(self, images: list[str], metadata: Metadata | None) -> Labels | None:
        """The classes that stand beside the images; None if there are none.

        Raises ValueError where only some images have one.
        """
        values = check_numbers(self._classes[[self._index(name) for name in images]], self.path, lambda i: images[i])
        if values is None:
            return None
        named = class_names(metadata, int(values.max()) + 1) if metadata else ()
        return Labels(values, named or numbers(values), f"{CLASS_SUFFIX} files")

    def _index(self, name: str) -> int:
        index = bisect.bisect_left(self._names, name)
        assert self._names[index] == name, name
        return index


def _index(shard: Unchanged) -> Index:
    """The index of a shard: the kept one, or what its headers tell."""
    index = load_index(shard.path, shard.stamp)
    if index is None:
        index = _read_index(shard.path)
        shard.check()
        keep_index(shard.path, shard.stamp, index)
    return index


def _read_index(shard: str) -> Index:
    """The files of a shard that are not hidden, and the classes in it by key."""
    members: list[Member] = []
    classes: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it would keep them all
                if entry.isdir():
                    continue
                name = entry.name.removeprefix("./")
                refuse_outside(name, shard)
                if not entry.isreg() or entry.issparse():
                    raise StoreError(f"{shard} holds {name}, which is no plain file but a link or the like: repack it")
                if is_hidden(name):
                    continue
                if suffix(name) != CLASS_SUFFIX:
                    members.append(Member(name, entry.offset_data, entry.size))
                    continue
                content = archive.extractfile(entry)
                assert content is not None
                text = content.read(_CLASS_BYTES).strip()
                if not re.fullmatch(rb"\d{1,9}", text):
                    raise StoreError(f"{shard}: {name} must hold the number of a class, not {text!r}")
                classes[_key(name)] = int(text)
            # tarfile takes a shard that was cut off within a header for one that ends there.
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it is cut off: its end mark is missing")
    except (tarfile.TarError, OSError) as error:
        raise StoreError(f"{shard} can't be read as a tar file ({error}): copy or make it anew") from error
    return members, classes


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _with_shard(name: str, shard: str) -> str:
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{Path(shard).stem}:{file}"


def is_pattern(path: str) -> bool:
    """Whether a path stands for several files."""
    return any(mark in path for mark in "*?[{") and not os.path.exists(path)


def find_files(pattern: str) -> list[str]:
    """The files that a pattern stands for: `{000..012}` and `{a,b}` name files that must all be there, `*` any.

    Raises StoreError naming a file that is missing; behind `*`, numbers such as `00003-of-00010` tell.
    """
    found: list[str] = []
    for path in _braces(pattern):
        files = sorted(glob(path)) if any(mark in path for mark in "*?[") else [path]
        if not files or not os.path.exists(files[0]):
            raise StoreError(f"{path} is missing: put it back, or correct data.source {pattern}")
        found += files
    if any(mark in pattern for mark in "*?["):
        _check_complete(found)
    return found


def _braces(pattern: str) -> Iterator[str]:
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    first, last, choices = found.groups()
    texts: Iterable[str]
    if choices is None:
        texts = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    else:
        texts = choices.split(",")
    for text in texts:
        yield from _braces(pattern[: found.start()] + text + pattern[found.end() :])


def _check_complete(files: list[str]) -> None:
    """Raise StoreError where names such as `train-00003-of-00010.tar` tell that others are missing."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for file in files:
        if match := re.fullmatch(r"(.*-)(\d+)-of-(\d+)(\.\w+)", file):
            before, number, count, after = match.groups()
            found.setdefault((before, count, after), set()).add(number)
    for (before, count, after), present in found.items():
        if len(present) < int(count):
            width = len(min(present))
            missing = next(name for i in range(int(count)) if (name := f"{i:0{width}}") not in present)
            raise StoreError(
                f"{before}{missing}-of-{count}{after} is missing: put it back, or name the shards that you want, as in "
                f"{{000..002}}"
            )
