"""Packing against a loop with PIL alone, and against being stopped at any point."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maxgan.config import DataConfig, PackConfig
from maxgan.data import pack as packing
from maxgan.data.__main__ import main
from maxgan.data.content import content_hash
from maxgan.data.loader import ImageDataset
from maxgan.data.pack import pack
from maxgan.data.sources import ImageFiles, open_source

Make = Callable[..., Path]
LABELS = [0] * 7 + [1] * 8 + [2] * 8


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """23 photographs of different sizes in three class folders."""
    rng = np.random.default_rng(0)
    for i in range(23):
        path = tmp_path / "photos" / "cba"[i % 3] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((20 + i, 43 - i), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "photos"


def small(path: Path, side: int) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


def config(photos: Path, dest: str, **options: object) -> PackConfig:
    defaults = {"resolution": 16, "shard_images": 5, "workers": 0, **options}
    return PackConfig(source=str(photos), dest=str(photos.parent / dest), **defaults)  # type: ignore[arg-type]


def contents(path: Path) -> dict[str, bytes]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("dest", ["out.zip", "out"])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_packed_is_the_source_made_small(photos: Path, dest: str, workers: int) -> None:
    packed = pack(config(photos, dest, workers=workers))
    source = open_source(str(photos.parent / dest))
    paths = sorted(photos.rglob("*.jpg"))
    expected = [small(path, 16) for path in paths]
    assert len(source) == packed.images == 23
    assert all(np.array_equal(np.asarray(source.read(i)), expected[i]) for i in range(23))
    assert source.class_names == ("a", "b", "c")
    assert source.labels is not None and source.labels.tolist() == ["abc".index(path.parent.name) for path in paths]
    one_by_one = [hashlib.sha256(b"(3, 16, 16)" + image.transpose(2, 0, 1).tobytes()).digest() for image in expected]
    digest = hashlib.sha256(b"".join(one_by_one)).hexdigest()
    assert packed.content_sha256 == source.recorded_hash == content_hash(source, recorded=False) == digest
    assert sorted(os.listdir(photos.parent)) == [dest, "photos"]


def test_a_zip_has_the_layout_of_stylegan(photos: Path) -> None:
    pack(config(photos, "out.zip"))
    with zipfile.ZipFile(photos.parent / "out.zip") as archive:
        names = [name for name in archive.namelist() if name != "dataset.json"]
        assert names == [f"00000/img{i:08}.png" for i in range(23)]
        labels = json.loads(archive.read("dataset.json"))["labels"]
        assert labels == [[name, LABELS[i]] for i, name in enumerate(names)]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def test_shards_are_read_by_webdataset(photos: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pack(config(photos, "out"))
    shards = sorted(str(path) for path in (photos.parent / "out").glob("*.tar"))
    assert [os.path.basename(shard) for shard in shards] == [f"shard-{i:05}-of-00005.tar" for i in range(5)]
    theirs = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    assert [label for _, label in theirs] == LABELS
    assert np.array_equal(theirs[22][0], small(sorted(photos.rglob("*.jpg"))[22], 16))
    os.remove(shards[3])
    with pytest.raises(ValueError, match=r"shard-00003-of-00005.tar is missing: put it back"):
        open_source(str(photos.parent / "out"))


def test_training_on_the_packed_is_training_on_the_source(photos: Path) -> None:
    pack(config(photos, "out.zip", crop="whole", channels=1))
    straight = ImageDataset(DataConfig(source=str(photos), resolution=16, channels=1, crop="whole"))
    packed = ImageDataset(DataConfig(source=str(photos.parent / "out.zip")))
    assert packed.facts == straight.facts
    assert all(np.array_equal(packed.read(i), straight.read(i)) for i in range(23))


@pytest.mark.parametrize("source", ["digits-test", "npz"])
def test_sets_without_files_or_labels(tmp_path: Path, source: str) -> None:
    if source == "npz":
        source = str(tmp_path / "a.npz")
        np.savez(source, np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8))
    for dest in ("out", "out.zip"):
        packed = pack(PackConfig(source=source, dest=str(tmp_path / dest), resolution=16, workers=0))
        out, original = open_source(str(tmp_path / dest)), open_source(source)
        assert (out.labels is None) == (original.labels is None) and out.class_names == original.class_names
        if source == "digits-test":
            assert packed.content_sha256 == content_hash(original)


@pytest.mark.parametrize("dest", ["out.zip", "out"])
def test_a_stopped_pack_goes_on_and_ends_the_same(photos: Path, dest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(config(photos, "whole" + dest))
    calls: list[int] = []

    def failing(self: ImageFiles, index: int) -> Image.Image:
        calls.append(index)
        if len(calls) == 14:
            raise KeyboardInterrupt
        return read(self, index)

    read = ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        pack(config(photos, dest))
    work = photos.parent / f"{dest}.parts"
    assert not (photos.parent / dest).exists() and len(list((work / "reports").iterdir())) == 2
    (work / "shards" / ".tmp-left").touch()
    (work / "shards" / f"shard-00002-of-00005.{'zip' if dest.endswith('zip') else 'tar'}").write_bytes(
        b"without a report"
    )
    calls[:] = range(20)
    pack(config(photos, dest))
    assert calls[20:] == [0, *range(10, 23)]  # the first tells the channels
    assert contents(photos.parent / dest) == contents(photos.parent / f"whole{dest}")
    assert not work.exists()


def test_broken_images(photos: Path) -> None:
    whole = pack(config(photos, "whole"))
    for name in ("b/01.jpg", "c/03.jpg", "a/02.jpg"):
        (photos / name).write_bytes((photos / name).read_bytes()[:300])
    (photos / "a" / "notes.doc").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"notes.doc can't be read as an image"):
        pack(config(photos, "out"))
    os.rename(photos / "a" / "notes.doc", photos / "notes.txt")
    with pytest.raises(ValueError, match=r"a/02.jpg can't be read as an image .*on_error=skip") as caught:
        pack(config(photos, "out"))
    assert "\n" not in str(caught.value) and not (photos.parent / "out").exists()
    os.rename(photos / "notes.txt", photos / "a" / "notes.doc")
    packed = pack(config(photos, "out", on_error="skip"))
    names = [f"{photos}/{name}" for name in ("a/02.jpg", "b/01.jpg", "c/03.jpg")]
    assert sorted(name for name, _ in packed.skipped) == sorted([*names, "a/notes.doc"])
    assert packed.images == 20 and packed.content_sha256 != whole.content_sha256
    text = packed.describe("out")
    assert text.startswith("out: 20 images, content ") and "4 skipped\n  skipped " in text
    source = open_source(str(photos.parent / "out"))
    assert source.labels is not None and np.bincount(source.labels).tolist() == [6, 7, 7]
    assert json.loads((photos.parent / "out" / "dataset.json").read_bytes())["skipped"] == [
        list(x) for x in packed.skipped
    ]


def test_nothing_is_left(photos: Path) -> None:
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="contains no image that can be read"):
        pack(config(photos, "out", on_error="skip"))
    assert not (photos.parent / "out").exists()


@pytest.mark.parametrize("dest", ["out.zip", "out"])
def test_a_finished_pack_is_left_alone(photos: Path, dest: str) -> None:
    first = pack(config(photos, dest))
    before = contents(photos.parent / dest)
    times = [path.stat().st_mtime_ns for path in (photos.parent / dest, *(photos.parent / dest).rglob("*"))]
    (photos.parent / f"{dest}.parts").mkdir()
    assert pack(config(photos, dest, workers=2, on_error="skip")) == first
    assert contents(photos.parent / dest) == before and not (photos.parent / f"{dest}.parts").exists()
    assert times == [path.stat().st_mtime_ns for path in (photos.parent / dest, *(photos.parent / dest).rglob("*"))]
    with pytest.raises(ValueError, match=r"is a pack with other settings \(resolution: 16 -> 32\): remove it or name"):
        pack(config(photos, dest, resolution=32))
    os.rename(photos / "a" / "02.jpg", photos / "a" / "x.jpg")
    with pytest.raises(ValueError, match=r"is a pack of other images, or of these before they changed: remove it"):
        pack(config(photos, dest))
    assert contents(photos.parent / dest) == before


def test_a_source_that_has_changed_since(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(config(photos, "shards"))
    shard = tmp_path / "shards" / "shard-00002-of-00005.tar"
    again = replace(config(photos, "of-photos"), dest=str(tmp_path / "of-photos"))
    of_shards = replace(again, source=str(tmp_path / "shards"), dest=str(tmp_path / "of-shards"))
    pack(again)
    with monkeypatch.context() as context:
        context.setattr(packing, "_make", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            pack(of_shards)
    Image.new("RGB", (9, 9)).save(photos / "a" / "05.jpg")
    os.utime(shard, ns=(0, 0))
    for changed, message in ((again, "dest .*of-photos is a pack"), (of_shards, r"of-shards\.parts is of a pack")):
        with pytest.raises(ValueError, match=rf"{message} of other images, or of these before they changed: remove it"):
            pack(changed)


def test_places_that_are_taken(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("dear")
    (tmp_path / "a.zip").write_text("dear")
    for dest in ("full", "a.zip"):
        with pytest.raises(ValueError, match="exists and is no pack: name another"):
            pack(config(photos, dest))
    assert (tmp_path / "full" / "thesis.txt").read_text() == (tmp_path / "a.zip").read_text() == "dear"
    with pytest.raises(ValueError, match=r"out.tar must end in .zip, or be a folder for shards"):
        pack(config(photos, "out.tar"))
    with pytest.raises(ValueError, match="lies in the source"):
        pack(config(photos, "photos/out.zip"))


def test_parts_of_other_settings_or_of_another_process(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(packing, "_make", lambda *_: pytest.fail("held"))
    with pytest.raises(pytest.fail.Exception):
        pack(config(photos, "out"))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"out.parts is of a pack with other settings \(compression: 0 -> 6\)"):
        pack(config(photos, "out", compression=6))
    with (photos.parent / "out.parts" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another process is packing to .*out: wait for it"):
            pack(config(photos, "out"))
    assert pack(config(photos, "out")).images == 23


def test_a_worker_that_is_killed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, parent = ImageFiles.read, os.getpid()

    def deadly(self: ImageFiles, index: int) -> Image.Image:
        if index == 12 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(ImageFiles, "read", deadly)
    with pytest.raises(OSError, match="a decoding process was ended from outside"):
        pack(config(photos, "out", workers=2))
    monkeypatch.undo()
    assert pack(config(photos, "out")).images == 23


def test_a_source_that_changes_under_way(photos: Path, zipped: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(photos)
    make = packing._make

    def late(*arguments: object) -> None:
        os.utime(archive, ns=(0, 0))
        make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "_make", late)
    with pytest.raises(ValueError, match=r"photos.zip was changed while it was in use"):
        pack(replace(config(photos, "out", on_error="skip"), source=str(archive)))


def test_the_recorded_hash_counts_only_with_all_images(photos: Path) -> None:
    pack(config(photos, "out.zip"))
    with zipfile.ZipFile(photos.parent / "out.zip", "a") as archive:
        archive.writestr("00000/img00000099.png", archive.read("00000/img00000000.png"))
    source = open_source(str(photos.parent / "out.zip"), labels=False)
    assert source.recorded_hash is None and len(source) == 24


def test_the_command(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = photos.parent / "out.zip"
    main(["pack", str(photos), str(dest), "--resolution", "16", "--workers", "0"])
    printed = capsys.readouterr()
    digest = open_source(str(dest)).recorded_hash
    assert digest is not None and printed.out == f"{dest}: 23 images, content {digest[:16]}, 0 skipped\n"
    assert "23/23" in printed.err
    for arguments, message in (
        ([], "usage: python -m maxgan.data pack SOURCE DEST"),
        (["pack", "digits", "x.tar", "--resolution", "8"], "dest x.tar must end in .zip"),
        (["pack", "digits", "x.zip", "--resolution", "7"], "resolution must be from 8 to 16384, not 7"),
        (["pack", "digits", "x.zip", "--resolution", "8", "--crop_fraction", "0"], r"crop_fraction must be in (0, 1]"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err


def written(reports: Path) -> int:
    try:
        return sum(name.endswith(".json") for name in os.listdir(reports))
    except FileNotFoundError:  # not made yet, or removed by a pack that is whole
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("dest", ["out.zip", "out"])
def test_sigkill_at_random_moments(photos: Path, dest: str) -> None:
    pack(config(photos, "whole" + dest, shard_images=1, resolution=512, workers=2))
    command = [sys.executable, "-m", "maxgan.data", "pack", str(photos), str(photos.parent / dest)]
    command += ["--resolution", "512", "--shard_images", "1", "--workers", "2"]
    rng = np.random.default_rng(0)
    reports = photos.parent / f"{dest}.parts" / "reports"
    for _ in range(5):
        child = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
        before = written(reports)
        while child.poll() is None and written(reports) <= before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        # Not 1: what a killed pack leaves behind mustn't refuse the next one.
        assert child.wait() in (-signal.SIGKILL, 0)
        if (photos.parent / dest).exists():
            break
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True)
    assert contents(photos.parent / dest) == contents(photos.parent / f"whole{dest}")
