"""Sources of images behind one small interface: embedded digits, a folder, a zip, an npz."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from maxgan.data.arrays import array_names, read_array
from maxgan.data.files import IMAGE_SUFFIXES, Folder, Store, Zip, find_labels, is_candidate, suffix
from maxgan.data.transforms import normalize_mode

OnError = Literal["raise", "skip"]
DIGITS = ("digits", "digits-train", "digits-test")
_LOOKED_AT = 2000


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
        """All bytes that the pictures are made of, and their names."""

    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal of the pictures' bytes, their names, their order and their labels."""
        sha = hashlib.sha256()
        for part in self._content():
            sha.update(len(part).to_bytes(8, "little"))
            sha.update(part)
        sha.update(b"none" if self.labels is None else self.labels.astype("<i8").tobytes())
        return sha.hexdigest()

    def describe(self) -> str:
        """One line: number of images, sizes (of some), classes, where labels were found, files left out."""
        looked_at = sorted(set(np.linspace(0, len(self) - 1, _LOOKED_AT, dtype=int).tolist()))
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
        return line


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


class Arrays(ImageSource):
    """The images of an npz as ADM writes its samples: `arr_0` uint8 `(N, H, W, C)`, and `labels` or `arr_1` `(N,)`.

    Arrays that lie in the file uncompressed, as `np.savez` writes them, are mapped and not held in memory. Pickled
    objects are refused.
    """

    def __init__(self, name: str, path: str, labels: bool = True) -> None:
        self.name = name
        self._pixels = read_array(path, "arr_0")
        if self._pixels.dtype != np.uint8 or self._pixels.ndim != 4 or self._pixels.shape[3] not in (1, 2, 3, 4):
            raise ValueError(
                f"{name} holds {self._pixels.dtype} {self._pixels.shape} where images uint8 (N, H, W, C) are needed: "
                "write them as arr_0"
            )
        if not len(self._pixels):
            raise ValueError(f"{name} contains no images: give an npz that does")
        found = [key for key in ("labels", "arr_1") if labels and key in array_names(path)]
        if found:
            values = read_array(path, found[0])
            if values.shape != (len(self),) or values.dtype.kind not in "iu" or not 0 <= values.min() <= values.max():
                raise ValueError(f"{found[0]} of {name} must be {len(self)} whole numbers from 0, not {values.shape}")
            self.labels = np.asarray(values, dtype=np.int64)
            self.class_names = tuple(str(i) for i in range(int(values.max()) + 1))
            self.origin = found[0]

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int) -> Image.Image:
        pixels = np.ascontiguousarray(self._pixels[index])
        return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)

    def size(self, index: int) -> tuple[int, int]:
        return self._pixels.shape[2], self._pixels.shape[1]

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def _content(self) -> Iterator[bytes]:
        yield str(self._pixels.shape).encode()
        for start in range(0, len(self._pixels), 256):
            yield self._pixels[start : start + 256].tobytes()


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
        readable = self._check_all() if on_error == "skip" else self._check_odd()
        good_files = [file for file, good in zip(self._files, readable, strict=True) if good]
        self.skipped = tuple(file for file, good in zip(self._files, readable, strict=True) if not good)
        if not good_files:
            raise ValueError(f"{name} contains no image that can be read, first {self.skipped[0]}: repair the files")
        if labels:
            # Damaged images count here, so that a class keeps its number whichever of its files are damaged.
            images = [
                file for file, good in zip(self._files, readable, strict=True) if good or suffix(file) in IMAGE_SUFFIXES
            ]
            found = find_labels(store, names, images)
            if found.values is not None:
                label_of = dict(zip(images, found.values.tolist(), strict=True))
                self.labels = np.array([label_of[file] for file in good_files], dtype=np.int64)
                self.class_names, self.origin = found.class_names, found.origin
        self._files = good_files

    def _check_odd(self) -> list[bool]:
        """Raise ValueError for the first file that neither has the suffix of an image nor is one."""
        for index, file in enumerate(self._files):
            if suffix(file) not in IMAGE_SUFFIXES:
                self.size(index)
        return [True] * len(self._files)

    def _check_all(self) -> list[bool]:
        def check(index: int) -> bool:
            try:
                self.read(index)
            except ValueError:
                return False
            return True

        def check_some(start: int) -> list[bool]:  # a task for each of millions of files would take memory
            return [check(index) for index in range(start, min(start + 64, len(self._files)))]

        with ThreadPoolExecutor() as pool:  # the decoders let go of Python's lock
            return list(itertools.chain(*pool.map(check_some, range(0, len(self._files), 64))))

    def __len__(self) -> int:
        return len(self._files)

    def where(self, index: int) -> str:
        return f"{self._store.path}/{self._files[index]}"

    def size(self, index: int) -> tuple[int, int]:
        return self._open(index, decode=False).size

    def _content(self) -> Iterator[bytes]:
        for file in self._files:
            yield file.encode()
            with self._store.open(file) as stream:
                yield stream.read()

    def read(self, index: int) -> Image.Image:
        return self._open(index, decode=True)

    def _open(self, index: int, decode: bool) -> Image.Image:
        try:
            with self._store.open(self._files[index]) as stream:
                image: Image.Image = Image.open(io.BytesIO(stream.read()) if decode else stream)
                limit = Image.MAX_IMAGE_PIXELS
                if limit is not None and image.width * image.height > limit:  # PIL only warns, up to twice this
                    raise ValueError(f"it has {image.width} x {image.height} pixels, more than {limit:,}")
                if not decode:
                    return image
                image.load()
        except Exception as error:  # damaged files make decoders raise nearly anything
            problem = f"{self.where(index)} can't be read as an image ({error})"
            raise ValueError(f"{problem}: repair or remove it, or set data.on_error=skip") from error
        with contextlib.suppress(Exception):  # a damaged EXIF block is no reason to refuse good pixels
            ImageOps.exif_transpose(image, in_place=True)
        try:
            return normalize_mode(image)
        except ValueError as error:
            raise ValueError(f"{self.where(index)}: {error}, or set data.on_error=skip") from error


def open_source(name: str, labels: bool = True, on_error: OnError = "raise") -> ImageSource:
    """Open a set of images by name or path.

    Args:
        name: `digits`, `digits-train`, `digits-test` (`./digits` is a folder), or the path of a folder, a zip or an
            npz of images.
        labels: use labels where there are any.
        on_error: `raise` at a file that can't be read, or `skip` it, which costs one read of all files now.

    Raises ValueError where there is no such set, where it has no images, and where labels and files don't match.
    """
    if name in DIGITS:
        return Digits(name, labels)
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return ImageFiles(name, Folder(path), labels, on_error)
    if path.lower().endswith(".npz") and os.path.isfile(path):
        return Arrays(name, path, labels)
    if zipfile.is_zipfile(path):
        return ImageFiles(name, Zip(path), labels, on_error)
    problem = "is neither a folder nor a zip nor an npz" if os.path.exists(path) else "does not exist"
    choices = f"{', '.join(DIGITS)}, or the path of a folder, a zip or an npz of images"
    raise ValueError(f"data.source {name} {problem}: give {choices}")
