"""The stream and its batches against loops written from the definition."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from maxgan.config import DataConfig
from maxgan.data.loader import (
    Batch,
    ImageDataset,
    evaluation_batches,
    naming_lost_workers,
    stream_index,
    training_batches,
)
from maxgan.data.sources import ImageFiles

Make = Callable[..., Path]


def take(dataset: ImageDataset, count: int, batch_size: int, **options: int) -> list[Batch]:
    return list(itertools.islice(training_batches(dataset, batch_size, **{"seed": 0, **options}), count))


def equal(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """30 images of 8 x 8, the pixels and the class of image i being i."""
    for i in range(30):
        (tmp_path / f"{i:02}").mkdir()
        Image.new("L", (8, 8), i).save(tmp_path / f"{i:02}" / "a.png")
    return tmp_path


@pytest.fixture
def photos(folder: Make, zipped: Make) -> str:
    return str(zipped(folder(*(f"{name}/{i}.png" for name in "abc" for i in range(5)), side=12)))


def test_stream_is_one_permutation_after_another() -> None:
    drawn = [stream_index(position, 7, seed=3) for position in range(70)]
    epochs = [[index for index, epoch in drawn if epoch == e] for e in range(10)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert [epoch for _, epoch in drawn] == sorted(epoch for _, epoch in drawn)
    assert len({tuple(epoch) for epoch in epochs}) == 10
    assert drawn != [stream_index(position, 7, seed=4) for position in range(70)]
    assert [stream_index(position, 7, seed=3) for position in (69, 3, 40)] == [drawn[69], drawn[3], drawn[40]]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_position_goes_to_one_process(numbered: Path, processes: int, accumulation: int) -> None:
    dataset = ImageDataset(DataConfig(source=str(numbered)))
    parts = [
        take(
            dataset, 4 * accumulation, 60, rank=rank, num_processes=processes, accumulation=accumulation, start_batch=2
        )
        for rank in range(processes)
    ]
    for step in range(4):
        seen: list[int] = []
        for part in parts:
            for images, labels in part[step * accumulation : (step + 1) * accumulation]:
                assert len(labels) == 60 // (processes * accumulation)
                assert torch.equal(images.amax((1, 2, 3)).long(), labels)
                seen += labels.tolist()
        assert seen == [stream_index(60 * (step + 2) + i, 30, 0)[0] for i in range(60)]


@pytest.mark.parametrize("batch_size, processes, accumulation", [(10, 3, 1), (10, 2, 2), (0, 1, 1)])
def test_batches_that_can_not_be_split(batch_size: int, processes: int, accumulation: int) -> None:
    dataset = ImageDataset(DataConfig())
    with pytest.raises(
        ValueError, match=f"batch_size {batch_size} .* {processes} .* {accumulation}: .* {processes * accumulation}, or"
    ):
        training_batches(dataset, batch_size, 0, num_processes=processes, accumulation=accumulation)


@pytest.mark.parametrize("crop", ["center", "random", "resized", "whole"])
def test_resuming_is_an_offset_and_workers_change_nothing(
    photos: str, crop: Literal["center", "random", "resized", "whole"]
) -> None:
    config = DataConfig(source=photos, resolution=8, crop=crop, crop_fraction=0.8, flip=True)
    dataset, on_disk = ImageDataset(config), ImageDataset(config, memory=0)
    assert (dataset.in_memory, on_disk.in_memory) == (crop in ("center", "whole"), False)
    state = torch.get_rng_state()
    expected = take(dataset, 12, 4)
    assert expected[0][0].shape == (4, 3, 8, 8) and expected[0][0].dtype == torch.uint8
    assert equal(take(dataset, 12, 4), expected)
    assert equal(take(on_disk, 12, 4), expected)
    assert equal(take(on_disk, 12, 4, workers=2), expected)
    assert equal(take(ImageDataset(config), 12, 4, workers=2), expected)
    assert equal(take(on_disk, 5, 4, start_batch=7, workers=2), expected[7:])
    assert not equal(take(dataset, 12, 4, seed=1), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_source_gives_the_same_stream_from_any_offset(each_source: DataConfig, tmp_path: Path) -> None:
    config = replace(each_source, resolution=8, crop="random", crop_fraction=0.8, flip=True)
    dataset = ImageDataset(config)
    expected = take(dataset, 10, 6)
    assert equal(take(ImageDataset(replace(config, source=str(tmp_path / "images"))), 10, 6), expected)
    for start in (0, 5):  # N batches and N more are 2 N
        assert equal(take(dataset, 5, 6, start_batch=start, workers=2), expected[start : start + 5])


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_each_source_uses_each_position_once(each_source: DataConfig, processes: int) -> None:
    dataset = ImageDataset(replace(each_source, resolution=12))
    batch_size, steps = 30, 4  # 120 positions are no whole number of passes over 11 images
    parts = [take(dataset, steps, batch_size, rank=rank, num_processes=processes) for rank in range(processes)]
    for step in range(steps):
        images = torch.cat([part[step][0] for part in parts])
        indices = [stream_index(batch_size * step + i, 11, 0)[0] for i in range(batch_size)]
        assert torch.equal(images, torch.stack([torch.from_numpy(dataset.read(index)) for index in indices]))
        assert torch.cat([part[step][1] for part in parts]).tolist() == [index % 3 for index in indices]


def on_gpu(free: int, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A stand-in for a GPU with so many free bytes; what would lie there stays on the CPU."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    return torch.device("cuda", 0)


def test_images_on_the_device_give_the_same_batches(photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = [
        DataConfig(source=photos, resolution=8, flip=flip, labels=labels)
        for flip in (False, True)
        for labels in (False, True)
    ]
    expected = [take(ImageDataset(config), 12, 4, start_batch=3) for config in configs]
    device = on_gpu(15 * 3 * 64 * 16, monkeypatch)
    for config, batches in zip(configs, expected, strict=True):
        dataset = ImageDataset(config)
        assert dataset.describe(device).endswith("used as 8 x 8 x 3, kept on cuda:0")
        found = training_batches(dataset, 4, 0, start_batch=3, device=device)
        dataset.read = lambda *_: pytest.fail("read one by one")  # type: ignore[method-assign]
        assert equal(list(itertools.islice(found, 12)), batches)


def test_images_stay_off_the_device_where_they_do_not_fit(photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source=photos, resolution=8)
    device = on_gpu(15 * 3 * 64 * 16 - 1, monkeypatch)
    dataset = ImageDataset(config)
    assert not dataset.fits_on(device)
    assert dataset.describe(device).endswith("kept in memory")
    device = on_gpu(1 << 40, monkeypatch)
    assert dataset.fits_on(device)
    assert not dataset.fits_on(torch.device("cpu"))
    assert not ImageDataset(config, memory=0).fits_on(device)
    assert not ImageDataset(config, augment=shade).fits_on(device)
    assert not ImageDataset(replace(config, crop="random")).fits_on(device)


def test_flips_follow_the_position(photos: str) -> None:
    plain = take(ImageDataset(DataConfig(source=photos, resolution=8)), 40, 5)
    mirrored = take(ImageDataset(DataConfig(source=photos, resolution=8, flip=True)), 40, 5)
    flips = []
    for (a, _), (b, _) in zip(plain, mirrored, strict=True):
        for x, y in zip(a, b, strict=True):
            flips.append(torch.equal(x.flip(2), y))
            assert flips[-1] or torch.equal(x, y)
    assert 70 <= sum(flips) <= 130  # 200 fair coins: further off in fewer than one seed in 40,000
    epochs = [flips[start : start + 15] for start in range(0, 195, 15)]
    assert len({tuple(epoch) for epoch in epochs}) > 1


def shade(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return pixels // 2 + np.uint8(rng.integers(100))


def test_augmentation_follows_the_position_and_spares_evaluation(photos: str) -> None:
    config = DataConfig(source=photos, resolution=8)
    dataset = ImageDataset(config, augment=shade)
    plain, shaded = take(ImageDataset(config), 12, 4), take(dataset, 12, 4)
    added = [(b - a // 2) for (a, _), (b, _) in zip(plain, shaded, strict=True)]
    amounts = torch.cat(added).flatten(1)
    assert torch.equal(amounts, amounts[:, :1].expand_as(amounts))
    assert len(amounts[:, 0].unique()) > 20
    assert equal(take(ImageDataset(config, memory=0, augment=shade), 5, 4, start_batch=7, workers=2), shaded[7:])
    before, after = (next(evaluation_batches(d, 15, range(15))) for d in (ImageDataset(config), dataset))
    assert equal([before], [after])


def test_without_rng_nothing_is_random(photos: str) -> None:
    config = DataConfig(source=photos, resolution=8, crop="random", crop_fraction=0.7, flip=True)
    central = DataConfig(source=photos, resolution=8, crop_fraction=0.7)
    for index in range(15):
        assert np.array_equal(ImageDataset(config).read(index), ImageDataset(central).read(index))


def test_memory_is_neither_shared_out_nor_read_twice(photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ImageDataset(DataConfig(source=photos, resolution=8))
    first = dataset.read(3)
    kept = first.copy()
    first[:] = 0
    monkeypatch.setattr(dataset.source, "read", lambda index: pytest.fail("read again"))
    assert np.array_equal(dataset.read(3), kept)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_and_complete(numbered: Path, workers: int) -> None:
    config = DataConfig(source=str(numbered), workers=workers, flip=True)
    for memory in (0, 1 << 20):
        indices = [5, 3, 29, 0, 3, 7, 11]
        batches = list(evaluation_batches(ImageDataset(config, memory), 3, indices))
        assert [len(labels) for _, labels in batches] == [3, 3, 1]
        assert torch.cat([labels for _, labels in batches]).tolist() == indices
        assert torch.cat([images for images, _ in batches]).amax((1, 2, 3)).tolist() == indices


def test_threads_decode_a_batch_ahead_in_an_evaluation(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for workers in (0, 1):
        dataset = ImageDataset(DataConfig(source=str(numbered), workers=workers))
        ahead, read = threading.Event(), dataset.source.read

        def noticing(
            index: int, ahead: threading.Event = ahead, read: Callable[..., Image.Image] = read
        ) -> Image.Image:
            if index == 5:
                ahead.set()
            return read(index)

        monkeypatch.setattr(dataset.source, "read", noticing)
        batches = evaluation_batches(dataset, 3, range(9))
        next(batches)
        assert ahead.wait(300 if workers else 0) == bool(workers)
        assert [labels.tolist() for _, labels in batches] == [[3, 4, 5], [6, 7, 8]]


def save(path: Path, mode: str, size: tuple[int, int] = (16, 16)) -> None:
    Image.new(mode, size, 1).save(path)


@pytest.mark.parametrize(
    "mode, suffix, channels",
    [
        ("L", "png", 1),
        ("1", "png", 1),
        ("I;16", "png", 1),
        ("LA", "png", 2),
        ("RGB", "png", 3),
        ("P", "png", 3),
        ("CMYK", "jpg", 3),
        ("RGBA", "png", 4),
    ],
)
def test_facts_come_from_the_images(tmp_path: Path, mode: str, suffix: str, channels: int) -> None:
    save(tmp_path / f"a.{suffix}", mode)
    dataset = ImageDataset(DataConfig(source=str(tmp_path)))
    assert (dataset.facts.resolution, dataset.facts.channels, dataset.facts.num_classes) == (16, channels, 0)
    assert dataset.read(0).shape == (channels, 16, 16)
    assert take(dataset, 1, 2)[0][1].tolist() == [0, 0]
    asked = ImageDataset(DataConfig(source=str(tmp_path), resolution=8, channels=3))
    assert asked.read(0).shape == (3, 8, 8)


def test_facts_of_the_digits() -> None:
    dataset = ImageDataset(DataConfig())
    assert (dataset.facts.resolution, dataset.facts.channels, dataset.facts.num_classes) == (16, 1, 10)
    assert dataset.describe().endswith("; used as 16 x 16 x 1, kept in memory")
    assert ImageDataset(DataConfig(labels=False)).facts.num_classes == 0


def test_images_without_a_common_size(tmp_path: Path) -> None:
    save(tmp_path / "a.png", "L")
    save(tmp_path / "b.png", "L", (32, 32))
    with pytest.raises(ValueError, match=r"b.png has 32 x 32 pixels while .*a.png has 16 x 16.*: set data.resolution"):
        ImageDataset(DataConfig(source=str(tmp_path)))
    save(tmp_path / "a.png", "L", (16, 8))
    with pytest.raises(ValueError, match=r"a.png has 16 x 8 pixels, .*: set data.resolution"):
        ImageDataset(DataConfig(source=str(tmp_path)))
    save(tmp_path / "a.png", "L", (24, 24))
    save(tmp_path / "b.png", "L", (24, 24))
    assert ImageDataset(DataConfig(source=str(tmp_path))).facts.resolution == 24
    assert ImageDataset(DataConfig(source=str(tmp_path), resolution=8)).read(0).shape == (1, 8, 8)


@pytest.mark.parametrize("memory", [0, 1 << 20])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_in_one_sentence(numbered: Path, workers: int, memory: int) -> None:
    damaged = numbered / "29" / "a.png"
    damaged.write_bytes(damaged.read_bytes()[:45])
    dataset = ImageDataset(DataConfig(source=str(numbered), resolution=8), memory)
    with pytest.raises(ValueError) as caught:
        take(dataset, 6, 5, workers=workers)
    assert str(caught.value).startswith(f"{damaged} can't be read as an image (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_is_full_is_told_of_in_one_sentence(
    photos: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where row groups of parquet files are kept."""

    def full(self: ImageFiles, index: int) -> Image.Image:
        raise OSError("no space left on the disk to write a")

    monkeypatch.setattr(ImageFiles, "read", full)
    dataset = ImageDataset(DataConfig(source=photos, resolution=8, channels=3), memory=0)
    with pytest.raises(OSError, match=r"^no space left on the disk to write a$"):
        take(dataset, 1, 5, workers=workers)


def test_a_decoding_process_that_is_killed(photos: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, parent = ImageFiles.read, os.getpid()

    def deadly(self: ImageFiles, index: int) -> Image.Image:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(ImageFiles, "read", deadly)
    dataset = ImageDataset(DataConfig(source=photos, resolution=8), memory=0)
    with pytest.raises(OSError, match=r"^a decoding process was ended from outside") as caught, naming_lost_workers():
        take(dataset, 1, 5, workers=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"^another$"), naming_lost_workers():
        raise RuntimeError("another")


def test_workers_leave_signals_to_the_training_process(photos: str) -> None:
    program = (
        "import signal\n"
        "from maxgan.config import DataConfig; from maxgan.data.loader import *\n"
        f"dataset = ImageDataset(DataConfig(source={photos!r}, resolution=8), memory=0)\n"
        "batches = training_batches(dataset, 4, 0, workers=2)\n"
        "next(batches)\n"
        "came = set()\n"
        "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):\n"
        "    signal.signal(number, lambda number, _: came.add(number))\n"
        "print('started', flush=True)\n"
        "while len(came) < 3: next(batches)\n"
        "for _ in range(50): next(batches)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program],  # on one core torch warns of two workers
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    # As a terminal does, and a cluster that wants its machines back.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.killpg(child.pid, number)
    _, errors = child.communicate(timeout=300)
    assert (child.returncode, errors) == (0, "")
