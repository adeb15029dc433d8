"""A hash of the pixels of a set of images, whatever files they are in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from maxgan.cli import available_cores
from maxgan.data.base import ImageSource
from maxgan.data.transforms import to_array

_AT_ONCE = 256


def content_hash(source: ImageSource, recorded: bool = True) -> str:
    """SHA-256 of the decoded pixels of all images in their order; labels, names and file formats don't count.

    Args:
        source: the images.
        recorded: take the hash that `python -m maxgan.data pack` wrote beside them, if it did, instead of reading all;
            it is right as long as nobody has changed the packed images since. Give False to make sure.

    Raises ValueError naming a file that can't be read.
    """
    if recorded and source.recorded_hash is not None:
        return source.recorded_hash
    with ThreadPoolExecutor(available_cores()) as pool:  # the decoders let go of Python's lock

        def digests() -> Iterator[bytes]:
            for start in range(0, len(source), _AT_ONCE):
                indices = range(start, min(start + _AT_ONCE, len(source)))
                yield from pool.map(lambda index: image_digest(to_array(source.read(index))), indices)

        return combine(digests())


def image_digest(pixels: np.ndarray) -> bytes:
    """SHA-256 of one image, uint8 `(C, H, W)`: of its shape, as text, and of its bytes."""
    assert pixels.dtype == np.uint8 and pixels.ndim == 3, (pixels.dtype, pixels.shape)
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()


def combine(digests: Iterable[bytes]) -> str:
    """The content hash of a set, from the digests of its images."""
    digest = hashlib.sha256()
    for part in digests:
        digest.update(part)
    return digest.hexdigest()
