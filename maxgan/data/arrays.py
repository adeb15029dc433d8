"""Arrays of an npz, read without pickle and mapped where they lie uncompressed; and images that are such arrays."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from maxgan.data.base import ImageSource
from maxgan.data.files import StoreError, Unchanged
from maxgan.data.labels import check_numbers, numbers
from maxgan.data.transforms import MODES

IMAGES = ("images", "arr_0")
LABELS = ("labels", "arr_1")
MAX_UNPACKED_BYTES = 1 << 34
"""The most that a compressed array may unpack to, as it is held in memory; one that is merely stored may be larger."""
_LOCAL_HEADER = 30  # bytes before the name of a member of a zip (PKWARE's APPNOTE, 4.3.7)
_AT_ONCE = 256
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)


def array_names(path: str) -> list[str]:
    """Return the names of the arrays of an npz; StoreError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except _DAMAGE as error:
        raise StoreError(f"{path} can't be read as an npz ({error}): write it anew by np.savez") from error


def read_array(path: str, name: str) -> np.ndarray:
    """Return an array of an npz: mapped and read-only if it is stored, or else unpacked into memory.

    Raises:
        StoreError: if there is no such array, if it holds pickled objects or is damaged, or if it is compressed and
            unpacks to more than MAX_UNPACKED_BYTES.
    """
    names = array_names(path)
    if name not in names:
        raise StoreError(f"{path} holds no array {name}, only {', '.join(names)}: write it as {name}")
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(f"{name}.npy")
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"version {version} of its header is unknown")
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran_order, dtype = read(stream)
                start = stream.tell()
            if dtype.hasobject:
                raise ValueError("it holds pickled objects")
            size = math.prod(shape) * dtype.itemsize
            if start + size != entry.file_size:  # else a false shape would take any amount of memory
                raise ValueError(f"it has {entry.file_size:,} bytes, which its shape {shape} does not fit")
            compressed = entry.compress_type != zipfile.ZIP_STORED
            if compressed and entry.file_size > MAX_UNPACKED_BYTES:
                raise StoreError(
                    f"{path}: {name} unpacks to {entry.file_size:,} bytes, more than the {MAX_UNPACKED_BYTES:,} that "
                    f"are held in memory: store it without compression"
                )
            if compressed or not shape or not size:  # what has no bytes can't be mapped
                with archive.open(entry) as stream:
                    return np.lib.format.read_array(stream, allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(entry.header_offset)
            local = file.read(_LOCAL_HEADER)
        # The name and the extra field come before the data; the directory at the end may have others.
        skipped = _LOCAL_HEADER + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        order = "F" if fortran_order else "C"
        return np.memmap(path, dtype, "r", entry.header_offset + skipped + start, shape, order)  # type: ignore[call-overload]
    except StoreError:
        raise
    except _DAMAGE as error:
        raise StoreError(f"{name} of {path} can't be read as an array ({error}): write it again") from error


class Npz(ImageSource):
    """Images uint8 `(N, H, W, C)` or `(N, H, W)` named `images` or `arr_0`, and labels `(N,)`, `labels` or `arr_1`.

    An array that is stored (as `np.savez` and `sample.py` do) stays on disk and is read in place; a compressed one is
    unpacked into memory. Nothing is ever unpickled.

    Raises StoreError where the arrays are missing, damaged, or do not fit together.
    """

    def __init__(self, name: str, path: str, labels: bool = True) -> None:
        self.name, self._path = name, path
        self._unchanged = Unchanged(path)
        self._opened: np.ndarray | None = None
        present = array_names(path)
        found = next((array for array in IMAGES if array in present), None)
        if found is None:
            names = ", ".join(sorted(present)[:5])
            raise StoreError(f"{name} has no array named {' or '.join(IMAGES)}, but {names}: rename one")
        self._array = found
        self._check(self._pixels())
        self._shape = self._pixels().shape
        of_labels = next((array for array in LABELS if array in present), None)
        if labels and of_labels is not None:
            self._set_labels(read_array(path, of_labels), of_labels)

    def _check(self, pixels: np.ndarray) -> None:
        """Raise StoreError if an array is none of images."""
        what, shape = f"{self.name}: {self._array}", pixels.shape
        if pixels.dtype != np.uint8 or not pixels.flags.c_contiguous:
            order = "" if pixels.flags.c_contiguous else " in Fortran order"
            raise StoreError(f"{what} must hold uint8 in C order, not {pixels.dtype}{order}")
        if len(shape) not in (3, 4) or 0 in shape or (len(shape) == 4 and shape[3] not in MODES):
            text = " x ".join(map(str, shape))
            hint = ": move the channels to the end" if len(shape) == 4 and shape[1] in MODES else ""
            raise StoreError(f"{what} must have the shape N x H x W x C with 1 to 4 channels, not {text}{hint}")

    def _set_labels(self, values: np.ndarray, array: str) -> None:
        if values.dtype.kind not in "iu" or values.shape != (len(self),):
            text = " x ".join(map(str, values.shape))
            raise StoreError(
                f"{self.name}: {array} must hold {len(self)} whole numbers, one for each image, not {text} of "
                f"{values.dtype}: mend it, or set data.labels=false"
            )
        try:
            self.labels = check_numbers(values.astype(np.int64), self.name, lambda i: f"image {i}")
        except ValueError as error:
            raise StoreError(str(error)) from error
        if self.labels is not None:
            self.class_names, self.origin = numbers(self.labels), array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _pixels(self) -> np.ndarray:
        if self._opened is None:
            self._opened = read_array(self._path, self._array)
        return self._opened

    def __len__(self) -> int:
        return self._shape[0]

    def read(self, index: int) -> Image.Image:
        self._unchanged.check()
        pixels = np.array(self._pixels()[index])
        return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)

    def size(self, index: int) -> tuple[int, int]:
        return self._shape[2], self._shape[1]

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def stamps(self) -> tuple[str]:
        return (self._unchanged.text,)

    def _content(self) -> Iterator[bytes]:
        yield str(self._shape).encode()
        for start in range(0, len(self), _AT_ONCE):
            self._unchanged.check()
            yield self._pixels()[start : start + _AT_ONCE].tobytes()
