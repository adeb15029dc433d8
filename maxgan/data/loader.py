"""Batches of images: one endless stream of positions, split exactly over processes, and finite passes for evaluation.

Position p of the stream is image p % N of a permutation of epoch p // N. Global batch t holds positions
[t * B, (t + 1) * B), and what happens to a position depends on the seed and the position alone. So resuming is an
offset, and neither the number of processes nor that of workers changes what is learned from.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maxgan.cli import PREEMPTIONS
from maxgan.config import DataConfig, ImageFacts
from maxgan.data.base import ImageSource
from maxgan.data.sources import open_source
from maxgan.data.transforms import cut, set_channels, to_array
from maxgan.runtime import end_with_parent

Batch = tuple[Tensor, Tensor]
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]
MEMORY_BUDGET = 1 << 30
"""Bytes of decoded pixels that each training process may keep."""
DEVICE_SHARE = 16
"""Images that memory keeps go to the GPU if they take at most one part in so many of what is free there."""
_REQUESTS_AT_ONCE = 8  # of each decoding process: enough to hide what a request takes, and no siege of the server
_ORDER, _CHANGES = 0, 1  # what random numbers are for, so that no two uses share a stream


class ImageDataset:
    """The images of a source, all of one size, as uint8 arrays; those that fit stay in memory once decoded.

    Args:
        config: where the images are and how they are cut.
        memory: the most bytes of pixels to keep; random crops need the originals and keep none.
        augment: changes an image uint8 `(C, H, W)` of the training stream, after its crop and flip.

    Raises ValueError where the source can't be used (see `open_source`), or where its images are not all square and of
    one size while data.resolution is unset.
    """

    def __init__(self, config: DataConfig, memory: int = MEMORY_BUDGET, augment: Augment | None = None) -> None:
        self.config = config
        self.augment = augment
        self.source: ImageSource = open_source(
            config.source, config.labels, config.on_error, config.streaming, config.cache
        )
        self.labels = self.source.labels
        self.facts = ImageFacts(
            resolution=_common_side(self.source) if config.resolution is None else config.resolution,
            channels=len(self.source.read(0).getbands()) if config.channels is None else config.channels,
            num_classes=len(self.source.class_names),
        )
        shape = (len(self), self.facts.channels, self.facts.resolution, self.facts.resolution)
        self.in_memory = config.crop in ("center", "whole") and int(np.prod(shape)) <= memory
        self._pixels = np.empty(shape if self.in_memory else 0, dtype=np.uint8)
        self._decoded = np.zeros(len(self), dtype=bool)

    def __len__(self) -> int:
        return len(self.source)

    def describe(self, device: torch.device | None = None) -> str:
        """One line: the source, the size and channels its images are used with, and where training keeps them."""
        facts = self.facts
        kept = ", kept in memory" if self.in_memory else ""
        if device is not None and self.fits_on(device):
            kept = f", kept on {device}"
        return f"{self.source.describe()}; used as {facts.resolution} x {facts.resolution} x {facts.channels}{kept}"

    def read(self, index: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """One image, uint8 `(C, H, W)`: central crop (or the whole) and no flip, or with `rng` cropped, flipped and
        augmented as in training.

        Raises ValueError naming a file that can't be read.
        """
        if not self.in_memory:
            pixels = self._decode(index, rng)
        else:
            if not self._decoded[index]:
                self._pixels[index] = self._decode(index, None)
                self._decoded[index] = True
            pixels = self._pixels[index]
        if rng is not None and self.flips(rng):
            pixels = pixels[:, :, ::-1]
        if rng is not None and self.augment is not None:
            return self.augment(pixels.copy(), rng)
        return pixels.copy()

    @property
    def random(self) -> bool:
        """Whether anything about an image in training is drawn at random."""
        return self.config.crop in ("random", "resized") or self.config.flip or self.augment is not None

    def flips(self, rng: np.random.Generator) -> bool:
        """Whether an image is mirrored; `rng` is that of its position."""
        return self.config.flip and rng.random() < 0.5

    def fits_on(self, device: torch.device) -> bool:
        """Whether the images may lie on a GPU: memory keeps them, nothing but flips changes them, and there is room."""
        if device.type != "cuda" or not self.in_memory or self.augment is not None:
            return False
        return self._pixels.nbytes * DEVICE_SHARE <= torch.cuda.mem_get_info(device)[0]

    def pixels(self, threads: int) -> np.ndarray:
        """All images that memory keeps, uint8 `(N, C, H, W)`, decoded by several threads."""
        self.preload(threads)
        return self._pixels

    def preload(self, threads: int) -> None:
        """Decode, with several threads, every image that memory keeps."""
        with _mapping(self.source, threads) as each:  # the decoders let go of Python's lock
            for _ in each(self.read, np.flatnonzero(~self._decoded).tolist()):
                pass

    def _decode(self, index: int, rng: np.random.Generator | None) -> np.ndarray:
        image = set_channels(self.source.read(index), self.facts.channels)
        return to_array(cut(image, self.facts.resolution, self.config.crop, self.config.crop_fraction, rng))

    def label(self, index: int) -> int:
        """The class of one image, 0 where there are no classes."""
        return 0 if self.labels is None else int(self.labels[index])


def _common_side(source: ImageSource) -> int:
    if source.streamed:
        raise ValueError(
            f"data.source {source.name} is read where it is, and to see whether all images are of one size would take "
            f"a request for each: set data.resolution"
        )
    side = source.size(0)[0]
    for index in range(len(source)):
        width, height = source.size(index)
        if (width, height) != (side, side):
            other = "" if index == 0 else f" while {source.where(0)} has {side} x {source.size(0)[1]}"
            raise ValueError(
                f"{source.where(index)} has {width} x {height} pixels{other}, so the images give no common "
                f"resolution: set data.resolution in a training, or cut them by python -m maxgan.data pack"
            )
    return side


@lru_cache(maxsize=2)
def _permutation(length: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(length)


def stream_index(position: int, length: int, seed: int) -> tuple[int, int]:
    """Image and epoch at a position of the endless stream over `length` images."""
    epoch, place = divmod(position, length)
    return int(_permutation(length, epoch, seed)[place]), epoch


class _Stream(Dataset[Batch | Exception]):
    """The batch of any range of positions, or what went wrong (see `handed_over`)."""

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def indices(self, positions: range) -> list[int]:
        """The images at some positions."""
        return [stream_index(position, len(self.dataset), self.seed)[0] for position in positions]

    def rng(self, position: int) -> np.random.Generator:
        """What the changes of the image at a position are drawn from."""
        return np.random.default_rng((self.seed, _CHANGES, position))

    def __getitem__(self, positions: range) -> Batch | Exception:
        indices = self.indices(positions)
        try:
            with _mapping(self.dataset.source, 0) as each:
                # A generator of random numbers takes as long as a small image, and most sets draw nothing from it.
                rngs = map(self.rng, positions) if self.dataset.random else itertools.repeat(None)
                images = list(each(self.dataset.read, indices, rngs))
        except (ValueError, OSError) as error:
            return handed_over(error)
        return _batch(self.dataset, indices, images)


@contextmanager
def _mapping(source: ImageSource, threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yield `map`, over that many threads; more where reading an image is a request, which takes long and no work."""
    if source.streamed:
        threads = max(threads, _REQUESTS_AT_ONCE)
    if not threads:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


class _OnDevice:
    """The same batches from images that all lie on a device, so that only their indices and flips go there."""

    def __init__(self, stream: _Stream, device: torch.device, threads: int) -> None:
        self.stream, self.device = stream, device
        dataset = stream.dataset
        self.images = torch.from_numpy(dataset.pixels(threads)).to(device)
        labels = np.zeros(len(dataset), dtype=np.int64) if dataset.labels is None else dataset.labels
        self.labels = torch.from_numpy(labels).to(device)

    def __getitem__(self, positions: range) -> Batch:
        stream = self.stream
        indices = torch.tensor(stream.indices(positions)).to(self.device)
        images = self.images[indices]
        if stream.dataset.config.flip:
            flips = torch.tensor([stream.dataset.flips(stream.rng(position)) for position in positions])
            images = torch.where(flips.to(self.device)[:, None, None, None], images.flip(3), images)
        return images, self.labels[indices]


def _batch(dataset: ImageDataset, indices: Sequence[int], images: Iterable[np.ndarray]) -> Batch:
    labels = torch.tensor([dataset.label(index) for index in indices], dtype=torch.int64)
    return torch.from_numpy(np.stack(list(images))), labels


def keep(batch: Any) -> Any:
    """Collate nothing: what a worker makes is what it gives."""
    return batch


def handed_over(error: ValueError | OSError) -> Exception:
    """A user's mistake as a decoding process gives it to the one that waits: raised there, it would bring a traceback
    in its message."""
    return (OSError if isinstance(error, OSError) else ValueError)(str(error))


@contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Turn what torch raises when a decoding process is killed, wherever that is, into an OSError of one sentence."""
    try:
        yield
    except RuntimeError as error:
        problem = " ".join(str(error).split())
        if "DataLoader worker (pid" not in problem:
            raise
        # torch's own would keep the other workers alive, and the locks that those inherited.
        traceback.clear_frames(error.__traceback__)
        raise OSError(
            f"a decoding process was ended from outside, perhaps for want of memory ({problem.rstrip('.')}): the same "
            f"command goes on, perhaps with fewer workers"
        ) from error


def start_worker(worker: int) -> None:
    """Prepare a decoding process."""
    # Of a training or a pack that was killed nothing must go on writing, or hold its lock.
    end_with_parent(signal.SIGKILL)
    # Ctrl-C reaches every process of the terminal, and a cluster's signals every one of the job: the training process
    # decides what to do, and ends its workers.
    for number in {signal.SIGINT, *PREEMPTIONS} - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where SIGTERM to the whole group stops the run without a save
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    """Wait for a SIGTERM of the training process, by which it ends its workers; those of others are passed over."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def images_at_once(batch_size: int, num_processes: int, accumulation: int) -> int:
    """Return the images of a micro-batch of one process; raise ValueError where the batch can't be split equally."""
    parts = num_processes * accumulation
    if batch_size < 1 or batch_size % parts:
        raise ValueError(
            f"training.batch_size {batch_size} can't be split equally over {num_processes} processes with "
            f"training.accumulation {accumulation}: make it a multiple of {parts}, or change their number"
        )
    return batch_size // parts


def training_batches(
    dataset: ImageDataset,
    batch_size: int,
    seed: int,
    start_batch: int = 0,
    rank: int = 0,
    num_processes: int = 1,
    workers: int = 0,
    accumulation: int = 1,
    device: torch.device | None = None,
) -> Iterator[Batch]:
    """The endless batches of one process: images uint8 `(b, C, H, W)`, labels int64 `(b,)` (0 without classes).

    Global batch t takes positions [t * batch_size, (t + 1) * batch_size) of the stream, each process the contiguous
    slice of its rank, in `accumulation` equal parts: b = batch_size / (num_processes * accumulation).

    Args:
        dataset: the images.
        batch_size: images in a global batch.
        seed: of order, crops and flips; 0 or more.
        start_batch: the first global batch.
        rank: global rank of this process.
        num_processes: number of processes.
        workers: decoding processes. Images that memory keeps need none: so many threads decode them all beforehand.
        accumulation: parts in which the slice of a process is given.
        device: where the batches are needed. Images that fit there (`ImageDataset.fits_on`) are copied once and taken
            from there; other batches come from the CPU.

    Raises ValueError at once where the batch size is not divisible; and when it is reached, naming a file that can't be
    read, or OSError where a disk is full that should keep it. A decoding process that is killed raises RuntimeError in
    whatever the training does then: see `naming_lost_workers`.
    """
    part = images_at_once(batch_size, num_processes, accumulation)
    positions = (
        range(start, start + part)
        for batch in itertools.count(start_batch)
        for start in (batch * batch_size + part * (rank * accumulation + i) for i in range(accumulation))
    )
    stream = _Stream(dataset, seed)
    if device is not None and dataset.fits_on(device):
        resident = _OnDevice(stream, device, max(1, workers))
        return (resident[part] for part in positions)
    return _batches(stream, positions, workers)


def _batches(stream: _Stream, positions: Iterator[range], workers: int) -> Iterator[Batch]:
    batches: Iterator[Batch | Exception]
    if stream.dataset.in_memory or not workers:
        if workers:
            stream.dataset.preload(workers)
        batches = (stream[part] for part in positions)
    else:
        batches = iter(
            DataLoader(
                stream,
                batch_size=None,
                sampler=positions,  # an index is a range: a worker makes a whole batch
                num_workers=workers,
                prefetch_factor=4,
                collate_fn=keep,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=start_worker,
                generator=torch.Generator(),  # else it would draw from the global one, and only with workers
            )
        )
    try:
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        del batches  # ends the workers at once; the traceback of an error would keep them


def evaluation_batches(dataset: ImageDataset, batch_size: int, indices: Sequence[int]) -> Iterator[Batch]:
    """The images of `indices` in that order, not cut at random nor changed: batches as in training, the last smaller.

    Decodes with as many threads as the data has workers, a batch ahead of the one that is given.
    """
    waiting: list[tuple[list[int], Iterable[Any]]] = []
    with _mapping(dataset.source, dataset.config.workers) as each:
        for start in range(0, len(indices), batch_size):
            part = [int(index) for index in indices[start : start + batch_size]]
            waiting.append((part, each(dataset.read, part)))  # with threads they begin at once
            if len(waiting) > 1:
                yield _batch(dataset, *waiting.pop(0))
        for part, images in waiting:
            yield _batch(dataset, part, images)
