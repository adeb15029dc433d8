"""Arrays of an npz, read without pickle, and mapped from the file where they lie in it uncompressed."""

from __future__ import annotations

import zipfile

import numpy as np

_LOCAL_HEADER = 30  # bytes before the name of a member of a zip (PKWARE's APPNOTE, 4.3.7)


def array_names(path: str) -> list[str]:
    """Return the names of the arrays of an npz; ValueError if it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} can't be read as an npz ({error}): give another file") from error


def read_array(path: str, name: str) -> np.ndarray:
    """Return an array of an npz, read-only and mapped if it is not compressed.

    Raises:
        ValueError: if there is no such array, or it holds pickled objects, or the file is damaged.
    """
    if name not in array_names(path):
        raise ValueError(f"{path} holds no array {name}, only {', '.join(array_names(path))}: write it as {name}")
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            entry = archive.getinfo(f"{name}.npy")
            if entry.compress_type != zipfile.ZIP_STORED:
                with archive.open(entry) as stream:
                    return np.lib.format.read_array(stream, allow_pickle=False)
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER)
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"version {version} of its header is unknown")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read(file)
            if dtype.hasobject:
                raise ValueError("it holds pickled objects")
            if not shape or not np.prod(shape):
                return np.frombuffer(file.read(dtype.itemsize if not shape else 0), dtype).reshape(shape)
            order = "F" if fortran_order else "C"
            return np.memmap(path, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name} of {path} can't be read as an array ({error}): write it again") from error
