"""Sources of images behind one small interface: embedded digits, folders, zips, shards, arrays, Hugging Face."""

from __future__ import annotations

import glob
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from maxgan.data.arrays import Npz
from maxgan.data.base import ImageSource, decode, picture_size, readable_ones, succeeds, unreadable
from maxgan.data.download import downloads, keep_copies
from maxgan.data.files import IMAGE_SUFFIXES, Folder, Store, StoreError, Zip, is_candidate, suffix
from maxgan.data.huggingface import PREFIX, HuggingFace, one_split
from maxgan.data.labels import find_labels, find_metadata
from maxgan.data.parquet import StreamedRows, hub_files
from maxgan.data.patterns import braces, find_files, is_pattern
from maxgan.data.remote import AT_ONCE, is_address, plain
from maxgan.data.shards import Shards

OnError = Literal["raise", "skip", "later"]
DIGITS = ("digits", "digits-train", "digits-test")
MANY = (".tar", ".parquet")
"""Those of files that together are one set."""
MANY_TEXT = "a pattern of .tar or of .parquet files"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Digits(ImageSource):
    """Scikit-learn's 1,797 handwritten digits: 8 x 8 pixels of 17 levels, shown as 16 x 16 (bicubic), grey, 10 classes.

    `digits-train` are 1,437 of them, `digits-test` the other 360: a fixed split, stratified by class.
    """

    def __init__(self, name: str, labels: bool = True) -> None:
        # Importing scikit-learn takes a second or two, which nobody else should pay.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        kept = np.arange(len(digits.target))
        if name != "digits":
            train, test = train_test_split(kept, test_size=360, random_state=0, stratify=digits.target)
            kept = np.sort(train if name == "digits-train" else test)
        self.name = name
        self._pixels = np.rint(digits.images[kept] * (255 / 16)).astype(np.uint8)
        if labels:
            self.labels = digits.target[kept].astype(np.int64)
            self.class_names = tuple(str(digit) for digit in range(10))
            self.origin = "scikit-learn"

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index]).resize((16, 16), Image.Resampling.BICUBIC)

    def size(self, index: int) -> tuple[int, int]:
        return 16, 16

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def _content(self) -> Iterator[bytes]:
        yield self._pixels.tobytes()


class ImageFiles(ImageSource):
    """The images among the files of a folder or a zip, in the order of their paths.

    Hidden files and common sidecars (text, tables, JSON, ...) are passed over. Every other file has to be an image: one
    whose suffix isn't an image's is tried when the set is opened. The rest fail when they are read, or, with
    `on_error="skip"`, all are decoded once when the set is opened, since the set may not change during a run.
    """

    def __init__(self, name: str, store: Store, labels: bool = True, on_error: OnError = "raise") -> None:
        self.name = name
        self._store = store
        names = store.names()
        self._files = [file for file in names if is_candidate(file)]
        if not self._files:
            raise ValueError(f"{name} contains no images: give a folder or a zip that does")
        readable = (
            readable_ones(self.read, len(self._files)) if on_error == "skip" else self._check_odd(on_error == "raise")
        )
        good_files = [file for file, good in zip(self._files, readable, strict=True) if good]
        self.skipped = tuple(file for file, good in zip(self._files, readable, strict=True) if not good)
        if not good_files:
            raise ValueError(f"{name} contains no image that can be read, first {self.skipped[0]}: repair the files")
        # Damaged images count here, so that a class keeps its number whichever of its files are damaged.
        images = [
            file for file, good in zip(self._files, readable, strict=True) if good or suffix(file) in IMAGE_SUFFIXES
        ]
        try:
            metadata = find_metadata(store, names, images)
        except ValueError:
            if labels:
                raise
            metadata = None  # it is said not to matter
        if metadata is not None and metadata.content.get("images") == len(good_files):
            recorded = metadata.content.get("content_sha256")
            self.recorded_hash = recorded if isinstance(recorded, str) else None
        if labels:
            found = store.labels(images, metadata) if isinstance(store, Shards) else None
            found = found or find_labels(store, names, images, metadata)
            if found.values is not None:
                label_of = dict(zip(images, found.values.tolist(), strict=True))
                self.labels = np.array([label_of[file] for file in good_files], dtype=np.int64)
                self.class_names, self.origin = found.class_names, found.origin
        self._files = good_files
        if isinstance(store, Shards) and store.remote:
            self.streamed, self.looked_at = True, AT_ONCE
            self.note = "each image a request, none kept on disk"

    def _check_odd(self, strict: bool) -> list[bool]:
        """Whether each file has the suffix of an image or is one; if strict, raise ValueError for the first other."""
        readable = []
        for index, file in enumerate(self._files):
            readable.append(suffix(file) in IMAGE_SUFFIXES or succeeds(self.size, index, strict))
        return readable

    def __len__(self) -> int:
        return len(self._files)

    def where(self, index: int) -> str:
        return f"{self._store.path}/{self._files[index]}"

    def size(self, index: int) -> tuple[int, int]:
        with self._open(index) as stream:
            return picture_size(stream, self.where(index))

    def read(self, index: int) -> Image.Image:
        return decode(self._bytes(index), self.where(index))

    def stamps(self) -> Iterator[str]:
        return self._store.stamps(self._files)

    def _content(self) -> Iterator[bytes]:
        states = self._store.states() if isinstance(self._store, Shards) else None
        yield from (state.encode() for state in states or ())
        for index, file in enumerate(self._files):
            yield file.encode(errors="surrogateescape")
            if states is None:
                yield self._bytes(index)

    def _bytes(self, index: int) -> bytes:
        with self._open(index) as stream:
            try:
                return stream.read()
            except Exception as error:  # zlib, zipfile and the system each have their own
                raise unreadable(self.where(index), error) from error

    def _open(self, index: int) -> BinaryIO:
        try:
            return self._store.open(self._files[index])
        except StoreError:
            raise
        except Exception as error:
            raise unreadable(self.where(index), error) from error


def open_source(
    name: str, labels: bool = True, on_error: OnError = "raise", streaming: bool = False, cache: str | None = None
) -> ImageSource:
    """Open a set of images by name, path or address.

    Args:
        name: `digits`, `digits-train`, `digits-test` (`./digits` is a folder); the path of a folder, a zip, an npz, a
            tar shard or a parquet file; a pattern of shards or parquet files, such as `train-{000..099}.tar` or
            `data/train-*.parquet`, or a folder of nothing else; an address of files, such as
            `https://host/train-{000..099}.tar`; or `hf:OWNER/NAME[@CONFIG][:SPLIT]`, on the Hugging Face Hub.
        labels: use labels where there are any.
        on_error: what to do with files that can't be read: `raise` when one is reached; `skip`, which reads all files
            now; or `later`, which leaves out only what doesn't look like an image now, for a caller that catches the
            ValueError of `read`.
        streaming: read what lies at an address where it is, in place of a copy that is made now and kept; for others
            it means nothing.
        cache: folder of copies; None for maxgan/downloads in the user's cache folder.

    Raises ValueError where there is no such set, where it has no images, and where labels and images don't match.
    """
    if name in DIGITS:
        return Digits(name, labels)
    if name.startswith(PREFIX):
        if not streaming:
            return HuggingFace(name, labels=labels, skip=on_error == "skip")
        urls, features = hub_files(name)
        return _open_streamed(name, urls, labels, on_error, cache, features)
    if is_address(name):
        return _open_address(name, labels, on_error, streaming, cache)
    if "://" in name:
        raise ValueError(f"data.source {name} is an address of an unknown kind: give one that begins with https://")
    path = os.path.expanduser(name)
    if is_pattern(path):
        return _open_many(name, path, find_files(path), labels, on_error)
    kind = suffix(path)
    if os.path.isdir(path):
        kind = _kind_of_folder(path)
        if not kind:
            return ImageFiles(name, Folder(path), labels, on_error)
        return _open_many(name, path, find_files(f"{glob.escape(path)}/*{kind}"), labels, on_error)
    if kind in MANY and os.path.exists(path):
        return _open_many(name, path, [path], labels, on_error)
    if kind == ".npz" and os.path.exists(path):
        return Npz(name, path, labels)
    if zipfile.is_zipfile(path):
        return ImageFiles(name, Zip(path), labels, on_error)
    if path.endswith(COMPRESSED):
        raise ValueError(f"data.source {name} is compressed, so nothing in it can be found: unpack it to a .tar first")
    problem = "is neither a folder nor a zip, npz, tar or parquet file" if os.path.exists(path) else "does not exist"
    raise ValueError(f"data.source {name} {problem}: give {', '.join(DIGITS)}, or the path of one of those")


def _open_address(name: str, labels: bool, on_error: OnError, streaming: bool, cache: str | None) -> ImageSource:
    shown, urls = plain(name), list(braces(name))
    kinds = {suffix(urlsplit(url).path) for url in urls}
    if any(mark in shown for mark in "*["):
        raise ValueError(f"data.source {shown} can't be looked up over a network: name its files, as in {{000..099}}")
    if not (kinds in ({".tar"}, {".parquet"}) or (kinds in ({".zip"}, {".npz"}) and len(urls) == 1)):
        ends = ", ".join(sorted(kinds - {""})) or "nothing"
        raise ValueError(
            f"data.source {shown} ends in {ends}: give the address of a .zip, a .npz, or of .tar or of .parquet files"
        )
    if streaming:
        return _open_streamed(shown, urls, labels, on_error, cache)
    paths = keep_copies(urls, cache)
    source: ImageSource
    if kinds == {".zip"}:
        source = ImageFiles(shown, Zip(paths[0]), labels, on_error)
    elif kinds == {".npz"}:
        source = Npz(shown, paths[0], labels)
    else:
        source = _open_many(shown, shown, paths, labels, on_error)
    source.note = f"copies in {downloads(cache)}"
    return source


def _open_streamed(
    name: str, urls: list[str], labels: bool, on_error: OnError, cache: str | None, features: Any = None
) -> ImageSource:
    kinds = {suffix(urlsplit(url).path) for url in urls}
    if kinds == {".tar"}:
        return ImageFiles(name, Shards(name, urls), labels, on_error)
    if kinds == {".parquet"}:
        return StreamedRows(name, urls, labels, on_error == "skip", cache, features)
    raise ValueError(
        f"data.source {name} can't be read where it is, as .tar and .parquet can: leave out data.streaming"
    )


def source_name(name: str) -> str:
    """Return a short name, fit for a folder, of what `open_source` opens: `digits`, `photos` of `a/photos.zip`, `train`
    of `a/train-{000..099}.tar`, `a` of `a/*.tar`, NAME of `hf:OWNER/NAME`."""
    if name in DIGITS:
        return DIGITS[0]
    if name.startswith(PREFIX):
        name = re.split("[@:]", name.removeprefix(PREFIX))[0]
    if is_address(name):
        name = urlsplit(name).path
    for part in reversed(Path(name).expanduser().absolute().parts):
        plain = re.split(r"[*?\[{]", part)[0]
        if plain == part and suffix(part) in (".zip", ".npz", *MANY):
            plain = part[: -len(suffix(part))]
        if found := re.sub(r"[^\w.-]+", "_", plain).strip("._-"):
            return found
    return "images"


def _kind_of_folder(path: str) -> str:
    """The suffix of MANY that all files of a folder have, sidecars apart; empty if it is a folder of images."""
    kinds = {"/" if entry.is_dir() else suffix(entry.name) for entry in os.scandir(path) if is_candidate(entry.name)}
    return kinds.pop() if len(kinds) == 1 and kinds <= set(MANY) else ""


def _open_many(name: str, path: str, files: list[str], labels: bool, on_error: OnError) -> ImageSource:
    kinds = {suffix(file) for file in files}
    if kinds == {".tar"}:
        return ImageFiles(name, Shards(path, files), labels, on_error)
    if kinds == {".parquet"}:
        return HuggingFace(name, one_split(files, path), labels, on_error == "skip")
    raise ValueError(f"data.source {name} stands for files that end in {', '.join(sorted(kinds))}: give {MANY_TEXT}")
