"""Images to a PNG folder, a zip, an npz or one grid picture; output appears whole or not at all."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor

from maxgan.checkpoint import together
from maxgan.cli import available_cores
from maxgan.files import TEMPORARY_PREFIX, atomic_path, naming_full_disk, refuse_existing, remove, replace_folder

METADATA = "dataset.json"
# Who wrote a folder: only such a one is ever replaced.
MAKER = {"made_by": "maxgan"}
# Endings of files that are no folder's name, and not written.
NO_FORMATS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".tar", ".gz", ".npy", ".pt", ".pth", ".safetensors"}
ARCHIVES = (".zip", ".npz")
ENCODERS = 4
QUEUE = 32 * ENCODERS


class Batch(NamedTuple):
    """Some seeds and their images `(N, C, H, W)`, uint8 where they are written, and labels int64 `(N,)` or None."""

    seeds: Sequence[int]
    images: Tensor
    labels: Tensor | None


def image_grid(images: Tensor, columns: int = 8, gap: int = 2, min_side: int = 64) -> Image.Image:
    """Return images uint8 `(N, C, H, W)` as one picture, row by row, on white.

    Args:
        gap: pixels between and around images.
        min_side: images that are smaller are enlarged by a whole factor to at least this, in pixels.
    """
    n, channels, height, width = images.shape
    scale = -(-min_side // max(height, width)) if max(height, width) < min_side else 1
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    height, width = height * scale, width * scale
    columns = min(columns, n)
    rows = -(-n // columns)
    canvas = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[:, top : top + height, left : left + width] = image
    return to_picture(canvas)


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        picture.save(temporary, "png")


def to_picture(image: Tensor) -> Image.Image:
    """Return an image uint8 `(C, H, W)` with 1 to 4 channels as a picture of mode L, LA, RGB or RGBA."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def write_images(batches: Iterable[Batch], output: str | Path, overwrite: bool = False) -> None:
    """Write images as a folder of PNGs, a `.zip` or an `.npz`, chosen by suffix; it appears whole or not at all.

    All processes call it, each with its own batches: theirs are joined in the order of the processes. Folder:
    `<seed>.png`, below `<class>/` where there are labels, and `dataset.json`. Zip: the layout of StyleGAN's datasets,
    stored. npz: `arr_0` uint8 `(N, H, W, C)` as in ADM, and `labels` int64 `(N,)` if there are any.

    Args:
        output: on a file system that all nodes share; for zip and npz twice their size is needed.
        overwrite: replace a file, or a folder that this function made.

    Raises:
        ValueError: if `output` exists and must not be overwritten.
        OSError: if the disk is full.
    """
    output = Path(output).absolute()
    state = PartialState()
    # Not unique, since all processes must find it.
    temporary = output.with_name(f"{TEMPORARY_PREFIX}{output.name}")
    try:
        with together(), naming_full_disk(output):
            if state.is_main_process:
                check_output(output, overwrite)
                output.parent.mkdir(parents=True, exist_ok=True)
                remove(temporary)
                temporary.mkdir()
        with together(), naming_full_disk(output):
            part = _write_part(batches, output.suffix.lower(), temporary, state.process_index)
        parts: list[_Part] = gather_object([part])
        with together(), naming_full_disk(output):
            if state.is_main_process:
                _join(parts, temporary, output)
    finally:
        if state.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)


class _Part(NamedTuple):
    """What one process wrote: its file (None for a folder), names, labels (empty without classes), and `(H, W, C)`."""

    file: Path | None
    names: list[str]
    labels: list[int]
    shape: tuple[int, ...]


def check_output(output: Path, overwrite: bool) -> None:
    """Raise ValueError where `write_images` can't put its images, so that it may be known before they are made."""
    if output.suffix.lower() in NO_FORMATS:
        raise ValueError(f"output {output} has an unknown ending: name a folder, a .zip or an .npz")
    if not overwrite:
        refuse_existing(output)
    elif output.is_dir() and any(output.iterdir()):
        # A slip of the finger must not cost a folder of anything else.
        try:
            ours = json.loads((output / METADATA).read_text()).items() >= MAKER.items()
        except (OSError, ValueError, AttributeError):
            ours = False
        if not ours:
            raise ValueError(
                f"{output} holds something other than samples, so it is not overwritten: remove it or name another"
            )


def _write_part(batches: Iterable[Batch], suffix: str, folder: Path, rank: int) -> _Part:
    names: list[str] = []
    labels: list[int] = []
    shape: tuple[int, ...] = ()
    file = folder / f"part-{rank:05d}" if suffix in ARCHIVES else None
    with _adding(suffix, file, folder) as add:
        for batch in batches:
            shape = tuple(batch.images.shape[i] for i in (2, 3, 1))
            classes = [] if batch.labels is None else batch.labels.tolist()
            for i, seed in enumerate(batch.seeds):
                if suffix == ".zip":
                    number = f"{seed:08d}"
                    name = f"{number[:5]}/img{number}.png"
                else:
                    name = f"{classes[i]}/{seed:06d}.png" if classes else f"{seed:06d}.png"
                names.append(name)
                add(name, batch.images[i])
            labels += classes
    return _Part(file, names, labels, shape)


@contextmanager
def _adding(suffix: str, file: Path | None, folder: Path) -> Iterator[Callable[[str, Tensor], Any]]:
    """Yield a function that adds a named image `(C, H, W)` to `file`, or to `folder` if that is None."""
    if file is None:
        with _encoding(lambda name, png: _write_file(folder / name, png)) as add:
            yield add
    elif suffix == ".zip":
        with (
            zipfile.ZipFile(file, "w") as archive,
            _encoding(lambda name, png: archive.writestr(zipfile.ZipInfo(name), png)) as add,
        ):
            yield add
    else:
        with file.open("wb") as stream:
            yield lambda _, image: stream.write(image.permute(1, 2, 0).contiguous().numpy().tobytes())


def _join(parts: list[_Part], temporary: Path, output: Path) -> None:
    """Make `output` of what the processes have written in `temporary`."""
    parts = [part for part in parts if part.names]
    names = [name for part in parts for name in part.names]
    labels = [label for part in parts for label in part.labels]
    # Without labels too: a reader must not take the zip's folders for classes.
    metadata = json.dumps({**MAKER, "labels": list(zip(names, labels, strict=True)) if labels else None})
    suffix = output.suffix.lower()
    if suffix not in ARCHIVES:
        (temporary / METADATA).write_text(metadata)
        replace_folder(temporary, output)
        return
    with atomic_path(output) as path, zipfile.ZipFile(path, "w") as archive:
        if suffix == ".npz":
            _join_arrays(archive, parts, labels)
            return
        for part in parts:
            assert part.file is not None
            with zipfile.ZipFile(part.file) as source:
                for entry in source.infolist():
                    archive.writestr(entry, source.read(entry))
        archive.writestr(zipfile.ZipInfo(METADATA), metadata)


def _join_arrays(archive: zipfile.ZipFile, parts: list[_Part], labels: list[int]) -> None:
    shape = (sum(len(part.names) for part in parts), *parts[0].shape)
    with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for part in parts:
            assert part.file is not None
            with part.file.open("rb") as source:
                shutil.copyfileobj(source, stream, 1 << 20)
    if labels:
        with archive.open(zipfile.ZipInfo("labels.npy"), "w") as stream:
            np.lib.format.write_array(stream, np.array(labels, dtype=np.int64), allow_pickle=False)


@contextmanager
def _encoding(put: Callable[[str, bytes], Any]) -> Iterator[Callable[[str, Tensor], None]]:
    """Yield a function that takes a name and an image `(C, H, W)`; threads make PNGs, and `put` gets all in order."""
    pending: deque[tuple[str, Future[bytes]]] = deque()

    def put_oldest() -> None:
        name, png = pending.popleft()
        put(name, png.result())

    with ThreadPoolExecutor(min(ENCODERS, available_cores())) as pool:

        def encode(name: str, image: Tensor) -> None:
            pending.append((name, pool.submit(_to_png, image)))
            if len(pending) > QUEUE:
                put_oldest()

        try:
            yield encode
            while pending:
                put_oldest()
        finally:
            pool.shutdown(cancel_futures=True)


def _to_png(image: Tensor) -> bytes:
    buffer = io.BytesIO()
    # Level 1 is several times faster than the default and a few per cent larger.
    to_picture(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
