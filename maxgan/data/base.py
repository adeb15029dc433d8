"""What every source of images offers, and how the bytes of one become a picture."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maxgan.data.files import StoreError
from maxgan.data.transforms import normalize_mode

# Of the commands those two have the setting, as data.on_error and as on_error.
SKIPPING = "training and packing leave such images out by on_error=skip"


class ImageSource(ABC):
    """A fixed, ordered set of pictures with or without labels; reading is safe from threads and worker processes."""

    name: str
    """The name or path it was opened by."""
    labels: np.ndarray | None = None
    """Class of each image, int64 `(N,)`; None without classes."""
    class_names: tuple[str, ...] = ()
    """One name a class; its length is the number of classes."""
    origin: str = ""
    """Where the labels were found; empty if there are none."""
    skipped: tuple[str, ...] = ()
    """Names of the files that were left out because they can't be read."""
    streamed: bool = False
    """Whether reading a picture is a request over a network, so that many are better made at once."""
    looked_at: int = 2000
    """Of how many pictures the size is looked at for a description."""
    note: str = ""
    """Where the pictures are read, if not where the name says."""
    recorded_hash: str | None = None
    """The content hash that `python -m maxgan.data pack` wrote beside the images, if it did (see `content_hash`)."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """One picture, upright, in mode L, LA, RGB or RGBA; raises ValueError naming a file that can't be read."""

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """Width and height of one picture as stored, without decoding it; raises ValueError as `read` does."""

    @abstractmethod
    def where(self, index: int) -> str:
        """What to call one picture in a message."""

    @abstractmethod
    def _content(self) -> Iterator[bytes]:
        """All bytes that the pictures are made of, and the names of their files."""

    def stamps(self) -> Iterable[str]:
        """What tells of a change of the pictures without reading them; nothing where none can happen."""
        return ()

    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of the pictures' bytes as stored, their names, their order and their labels.

        Nothing is decoded: `content_hash` is of the pixels. For files at an address that are read where they are, what
        their server calls their state stands for their bytes, if it does. Raises ValueError naming a file that can't be
        read.
        """
        sha = hashlib.sha256()
        for part in self._content():
            sha.update(len(part).to_bytes(8, "little"))
            sha.update(part)
        sha.update(b"none" if self.labels is None else self.labels.astype("<i8").tobytes())
        return sha.hexdigest()

    def describe(self) -> str:
        """One line: number of images, sizes (of some), classes, where labels were found, files left out."""
        looked_at = sorted(set(np.linspace(0, len(self) - 1, self.looked_at, dtype=int).tolist()))
        sizes = sorted({self.size(index) for index in looked_at}, key=lambda size: (size[0] * size[1], size))
        text = " to ".join(f"{width} x {height}" for width, height in dict.fromkeys((sizes[0], sizes[-1])))
        if len(looked_at) < len(self):
            text = f"{len(looked_at):,} looked at: {text}"
        line = f"{self.name}: {len(self):,} images ({text}), "
        classes = len(self.class_names)
        line += f"{classes:,} class{'es' if classes > 1 else ''} from {self.origin}" if classes else "no labels"
        if self.skipped:
            line += f"; left out {len(self.skipped)} that can't be read: {', '.join(self.skipped[:3])}"
            line += ", ..." if len(self.skipped) > 3 else ""
        return f"{line}; {self.note}" if self.note else line


def decode(content: bytes, where: str) -> Image.Image:
    """The picture in a file, upright, in mode L, LA, RGB or RGBA.

    Raises ValueError naming `where` if it can't be read.
    """
    try:
        image = _open(io.BytesIO(content))
        image.load()
    except Exception as error:  # damaged files make decoders raise nearly anything
        raise unreadable(where, error) from error
    with contextlib.suppress(Exception):  # a damaged EXIF block is no reason to refuse good pixels
        ImageOps.exif_transpose(image, in_place=True)
    try:
        return normalize_mode(image)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; {SKIPPING}") from error


def picture_size(stream: BinaryIO, where: str) -> tuple[int, int]:
    """Width and height in the header of an image file; raises ValueError as `decode` does."""
    try:
        return _open(stream).size
    except Exception as error:
        raise unreadable(where, error) from error


def _open(stream: BinaryIO) -> Image.Image:
    """A picture whose pixels are not decoded yet; raises nearly anything for damaged files, ValueError if too large."""
    image: Image.Image = Image.open(stream)
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # PIL only warns, up to twice this
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {limit:,}")
    return image


def unreadable(where: str, error: Exception) -> ValueError:
    """The error to raise for a file that is no image."""
    # PIL's own words name an object in memory.
    reason = "it has no known format" if isinstance(error, UnidentifiedImageError) else error
    return ValueError(f"{where} can't be read as an image ({reason}): repair or remove it; {SKIPPING}")


def readable_ones(read: Callable[[int], object], count: int) -> list[bool]:
    """Whether each of `count` images can be read; what damages the whole set is raised."""

    def check_some(start: int) -> list[bool]:  # a task for each of millions of files would take memory
        return [succeeds(read, index) for index in range(start, min(start + 64, count))]

    with ThreadPoolExecutor() as pool:  # the decoders let go of Python's lock
        return list(itertools.chain(*pool.map(check_some, range(0, count, 64))))


def succeeds(read: Callable[[int], object], index: int, strict: bool = False) -> bool:
    """Whether an image can be read; if strict, its error is raised. What damages the whole set always is."""
    try:
        read(index)
    except StoreError:
        raise
    except ValueError:
        if strict:
            raise
        return False
    return True
