"""Tar shards in WebDataset's layout, read at random by an index of where each file lies.

A streaming reader gives the images of a shard in their order and mixes them in a buffer, so where it stands after N
images can't be told without reading them, and a shard is shared out whole. Here the headers are read once, and what
they tell is kept for the next start (`index_cache`); after that an image is one read at an offset, in a file or by a
request to a server, and the stream of indices is the same as from any other source. This is why shards must not be
compressed: such ones have no offsets.
"""

from __future__ import annotations

import bisect
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urljoin

import numpy as np
from tqdm import tqdm

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
from maxgan.data.index_cache import Index, Member, Stamp, keep_index, load_index, one_at_a_time
from maxgan.data.labels import Labels, Metadata, check_numbers, class_names, numbers
from maxgan.data.remote import AT_ONCE, AbsentError, RemoteFile, Window, is_address

CLASS_SUFFIX = ".cls"
_CLASS_BYTES = 32
_BAR_AFTER_SECONDS = 2


class Shard(Protocol):
    """A tar file, wherever it is. Safe to use from several threads and after a fork, and picklable."""

    path: str

    @property
    def stamp(self) -> Stamp:
        """Its size in bytes, and what tells of a change."""

    def check(self) -> None:
        """Raise StoreError if it has changed, unless `read` does."""

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes of it."""


class LocalShard(Unchanged):
    """A tar file at hand."""

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes of it; raises StoreError once it has changed."""
        self.check()
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(size)


class Shards:
    """The files in tar files, by their names there; where two shards share a name, all bear the shard's name too.

    Two kinds of file are understood here: `KEY.cls`, the class of the image `KEY.*` as a number (a key ends at the
    first dot of the file's name), and `dataset.json` beside the shards. Nothing is ever extracted.

    Args:
        path: what to call them all.
        shards: their paths, or their addresses, where each file is a request whenever it is read.

    Attributes:
        remote: whether they are addresses.

    Raises StoreError for a shard that is missing, damaged, or holds links, devices, or names that lead outside.
    """

    def __init__(self, path: str, shards: list[str]) -> None:
        self.path = path
        self.remote = is_address(shards[0])
        with ThreadPoolExecutor(AT_ONCE) as pool:  # hides the delay of a network
            self._shards: list[Shard] = list(pool.map(RemoteFile if self.remote else LocalShard, shards))
            found = pool.map(_index, self._shards)
            contents = list(tqdm(found, "index", len(shards), unit="shard", delay=_BAR_AFTER_SECONDS, leave=False))
        count = Counter(member.name for members, _ in contents for member in members)
        shared = any(times > 1 for times in count.values())
        entries: list[tuple[str, int, int, int, int]] = []
        for number, (members, classes) in enumerate(contents):
            for name, offset, size in members:
                label = classes.pop(_key(name), -1) if suffix(name) in IMAGE_SUFFIXES else -1
                full = _with_shard(name, self._shards[number].path) if shared else name
                entries.append((full, number, offset, size, label))
            if classes:
                raise StoreError(
                    f"{self._shards[number].path} has a class for {next(iter(classes))}, but no such image: mend it"
                )
        entries.sort()
        self._names = [entry[0] for entry in entries]
        # Arrays, since a million tuples would take hundreds of megabytes.
        self._places = np.array([entry[1:4] for entry in entries], dtype=np.int64).reshape(-1, 3)
        self._classes = np.array([entry[4] for entry in entries], dtype=np.int64)
        twice = [a for a, b in zip(self._names, self._names[1:], strict=False) if a == b]
        if twice:
            raise StoreError(f"{path} holds {twice[0]} twice: give each image a name of its own")
        self._metadata = _metadata_beside(shards[0])

    def names(self) -> list[str]:
        return sorted([*self._names, METADATA]) if self._metadata else self._names

    def open(self, name: str) -> BinaryIO:
        if name == METADATA and self._metadata:
            refuse_large(self._metadata.stamp[0])
            return io.BytesIO(self._metadata.read(0, self._metadata.stamp[0]))
        number, offset, size = (int(value) for value in self._places[self._index(name)])
        refuse_large(size)
        return io.BytesIO(self._shards[number].read(offset, size))

    def states(self) -> list[str] | None:
        """What tells the content of all shards without reading them; None where their server doesn't tell."""
        stamps = [shard.stamp for shard in self._shards]
        if not self.remote or not all(state for _, state in stamps):
            return None
        return [f"{shard.path} {size} {state}" for shard, (size, state) in zip(self._shards, stamps, strict=True)]

    def stamps(self, names: list[str]) -> Iterator[str]:
        for shard in self._shards:
            yield "{} {}".format(*shard.stamp)

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


def _metadata_beside(shard: str) -> Shard | None:
    """The `dataset.json` that lies where a shard does."""
    if not is_address(shard):
        beside = Path(shard).parent / METADATA
        return LocalShard(str(beside)) if beside.is_file() else None
    try:
        return RemoteFile(urljoin(shard, METADATA))
    except AbsentError:
        return None


def _index(shard: Shard) -> Index:
    """The index of a shard: the kept one, or what its headers tell."""
    index = load_index(shard.path, shard.stamp)
    if index is None and isinstance(shard, RemoteFile):
        with one_at_a_time(shard.path):
            index = load_index(shard.path, shard.stamp) or _make_index(shard)
    return index or _make_index(shard)


def _make_index(shard: Shard) -> Index:
    index = _read_index(shard)
    shard.check()
    keep_index(shard.path, shard.stamp, index)
    return index


def _read_index(file: Shard) -> Index:
    """The files of a shard that are not hidden, and the classes in it by key."""
    shard = file.path
    members: list[Member] = []
    classes: dict[str, int] = {}
    try:
        with _headers(file) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # else it would keep them all
                if entry.size < 0:
                    raise tarfile.ReadError(f"{entry.name} has {entry.size} bytes")
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


def _headers(file: Shard) -> BinaryIO:
    return Window(file) if isinstance(file, RemoteFile) else open(file.path, "rb")  # type: ignore[return-value]


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _with_shard(name: str, shard: str) -> str:
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{Path(shard).stem}:{file}"
