"""Images at an address, read where they are or from copies, against the same files at hand."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from webserver import Webserver

from maxgan.config import DataConfig, PackConfig
from maxgan.data import download, remote
from maxgan.data.content import content_hash
from maxgan.data.download import downloads
from maxgan.data.index_cache import cache_file
from maxgan.data.loader import ImageDataset, evaluation_batches, training_batches
from maxgan.data.pack import pack
from maxgan.data.sources import open_source, source_name

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 12, 12, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def shards(web: Webserver) -> str:
    """12 images in 3 shards, the class of image i being i % 5; the address of all of them."""
    for shard in range(3):
        files = {}
        for i in range(4 * shard, 4 * shard + 4):
            files |= {f"{i:06}.png": png(PIXELS[i]), f"{i:06}.cls": str(i % 5).encode(), f"{i:06}.json": b"{}"}
        web.files[f"/set/train-{shard:03}.tar"] = tar(files)
    return f"{web.url}/set/train-{{000..002}}.tar"


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.mark.parametrize("streaming", [True, False])
def test_the_images_are_those_of_the_shards(web: Webserver, shards: str, streaming: bool, cache: str) -> None:
    web.files["/set/dataset.json"] = b'{"class_names": ["a", "b", "c", "d", "e"]}'
    source = open_source(shards, streaming=streaming, cache=cache)
    assert source.streamed == streaming
    for each in (source, pickle.loads(pickle.dumps(source))):
        assert all(np.array_equal(np.asarray(each.read(i)), PIXELS[i]) for i in range(12))
    assert source.labels is not None and source.labels.tolist() == [i % 5 for i in range(12)]
    assert source.class_names == tuple("abcde")
    note = "each image a request, none kept on disk" if streaming else f"copies in {cache}"
    assert source.describe() == f"{shards}: 12 images (12 x 12), 5 classes from .cls files; {note}"
    assert source.where(7) == f"{shards}/000007.png"
    assert open_source(shards, labels=False, streaming=streaming, cache=cache).labels is None
    assert not streaming or not Path(cache).exists()


def test_an_index_is_kept_and_an_image_is_one_request(web: Webserver, shards: str) -> None:
    open_source(shards, streaming=True)
    web.requests.clear()
    source = open_source(shards, streaming=True)
    # The state of each shard, and dataset.json, which isn't there.
    assert sorted(request.range for request in web.requests) == ["bytes=0-0"] * 4
    web.requests.clear()
    source.read(5)
    assert [(request.path, request.sent) for request in web.requests] == [("/set/train-001.tar", len(png(PIXELS[5])))]
    web.files["/set/train-001.tar"] = web.files["/set/train-000.tar"]
    with pytest.raises(ValueError, match=r"/set/train-001.tar was changed while it was in use"):
        source.read(5)
    changed = open_source(shards, streaming=True)
    assert np.array_equal(np.asarray(changed.read(4)), PIXELS[0])
    assert changed.where(4) == f"{shards}/train-001:000000.png"


def test_without_a_state_no_index_is_kept(web: Webserver, shards: str) -> None:
    web.state = lambda content: None
    source = open_source(shards, streaming=True)
    assert not cache_file(f"{web.url}/set/train-000.tar").exists()
    web.requests.clear()
    first = source.fingerprint()
    assert web.sent() == sum(len(png(pixels)) for pixels in PIXELS)
    assert first == open_source(shards, cache=str(downloads(None))).fingerprint()


def test_a_fingerprint_is_of_the_states(web: Webserver, shards: str, cache: str) -> None:
    source = open_source(shards, streaming=True)
    web.requests.clear()
    first = source.fingerprint()
    assert not web.requests
    assert open_source(shards, streaming=True).fingerprint() == first
    assert open_source(shards, streaming=True, labels=False).fingerprint() != first
    assert content_hash(source) == content_hash(open_source(shards, cache=cache))
    web.files["/set/train-002.tar"] = tar(
        {f"{i:06}.{kind}": c for i in range(4) for kind, c in (("png", png(PIXELS[0])), ("cls", b"1"))}
    )
    assert open_source(shards, streaming=True).fingerprint() != first


CONFIG = DataConfig("", resolution=8, crop="random", crop_fraction=0.8, flip=True)


def batches(config: DataConfig, count: int = 5, **options: int) -> list[torch.Tensor]:
    stream = training_batches(ImageDataset(config), 4, seed=0, workers=config.workers, **options)
    return [part for batch in itertools.islice(stream, count) for part in batch]


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [True, False])
def test_batches_are_those_of_the_shards_at_hand(web: Webserver, shards: str, tmp_path: Path, streaming: bool) -> None:
    for shard in range(3):
        (tmp_path / f"{shard}.tar").write_bytes(web.files[f"/set/train-{shard:03}.tar"])
    local = replace(CONFIG, source=f"{tmp_path}/{{0..2}}.tar")
    there = replace(CONFIG, source=shards, streaming=streaming, cache=str(tmp_path / "cache"))
    for config in (there, replace(there, workers=2)):
        assert all(map(torch.equal, batches(config), batches(local)))
        assert all(map(torch.equal, batches(config, start_batch=3), batches(local, start_batch=3)))
    ours, theirs = (evaluation_batches(ImageDataset(config), 5, range(12)) for config in (there, local))
    assert all(torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.slow
def test_batches_of_spawned_workers(shards: str) -> None:
    config = replace(CONFIG, source=shards, streaming=True)
    expected = batches(config)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert all(map(torch.equal, batches(replace(config, workers=2)), expected))
    finally:
        multiprocessing.set_start_method(None, force=True)


def test_images_of_a_batch_are_asked_for_at_once(web: Webserver, shards: str) -> None:
    dataset = ImageDataset(replace(CONFIG, source=shards, streaming=True))
    together = threading.Barrier(4, timeout=20)
    read = dataset.source.read

    def wait_and_read(index: int) -> Image.Image:
        together.wait()
        return read(index)

    dataset.source.read = wait_and_read  # type: ignore[method-assign]
    next(training_batches(dataset, 4, seed=0))


def test_the_size_is_to_be_set_where_finding_it_costs_all(shards: str) -> None:
    with pytest.raises(ValueError, match=r"would take a request for each: set data.resolution"):
        ImageDataset(DataConfig(shards, streaming=True))


def test_a_pack_of_an_address(shards: str, cache: str, tmp_path: Path) -> None:
    hashes, files = set(), []
    for streaming in (True, False):
        config = PackConfig(shards, str(tmp_path / f"{streaming}.zip"), 8, streaming=streaming, cache=cache, workers=0)
        hashes.add(pack(config).content_sha256)
        packed = open_source(config.dest)
        assert len(packed) == 12 and packed.labels is not None and packed.labels[7] == 2
        with zipfile.ZipFile(config.dest) as archive:
            files.append({name: archive.read(name) for name in archive.namelist() if name != "dataset.json"})
    assert len(hashes) == 1
    assert files[0] == files[1] and len(files[0]) == 12
    with pytest.raises(ValueError, match=r"is a pack with other settings \(streaming"):
        pack(replace(config, dest=str(tmp_path / "True.zip")))


def test_copies_need_no_network(web: Webserver, shards: str, cache: str) -> None:
    open_source(shards, cache=cache)
    assert sum(request.sent for request in web.requests) >= sum(map(len, web.files.values()))
    web.requests.clear()
    for content in ("changed", "gone"):
        web.files = {name: content.encode() for name in web.files} if content == "changed" else {}
        source = open_source(shards, cache=cache)
        assert np.array_equal(np.asarray(source.read(9)), PIXELS[9])
    assert not web.requests
    files = sorted(path.name for path in Path(cache).rglob("*") if path.is_file())
    assert files == [".lock", "train-000.tar", "train-001.tar", "train-002.tar"]


def test_a_download_that_was_stopped_goes_on(
    web: Webserver, shards: str, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(web.files["/set/train-001.tar"])
    monkeypatch.setattr(remote, "PIECE_BYTES", size // 4)
    monkeypatch.setattr(download, "AT_ONCE", 1)
    pieces = remote.RemoteFile.pieces

    def fail(file: remote.RemoteFile, start: int = 0) -> Iterator[bytes]:
        for number, piece in enumerate(pieces(file, start)):
            if "train-001" in file.path and number == 2:
                raise OSError("the process ends here")
            yield piece

    monkeypatch.setattr(remote.RemoteFile, "pieces", fail)
    with pytest.raises(OSError, match="the process ends here"):
        open_source(shards, cache=cache)
    present = {path.name: path.stat().st_size for path in Path(cache).rglob("*.tar")}
    part = next(name for name in present if name.startswith(".tmp-"))
    assert part.endswith("-train-001.tar") and present[part] == 2 * (size // 4)
    assert "train-000.tar" in present and "train-001.tar" not in present
    monkeypatch.setattr(remote.RemoteFile, "pieces", pieces)
    web.requests.clear()
    source = open_source(shards, cache=cache)
    assert all(np.array_equal(np.asarray(source.read(i)), PIXELS[i]) for i in range(12))
    asked = [request.range for request in web.requests if "train-001" in request.path]
    assert asked[:2] == ["bytes=0-0", f"bytes={2 * (size // 4)}-{3 * (size // 4) - 1}"]
    assert not any("train-000" in request.path for request in web.requests)
    assert not list(Path(cache).rglob(".tmp-*"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_download_that_is_killed_at_any_moment_goes_on(
    web: Webserver, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    files = {f"/set/{i}.tar": rng.bytes(400_000) for i in range(3)}
    web.files, web.pause = dict(files), 0.002
    monkeypatch.setattr(remote, "PIECE_BYTES", 10_000)
    urls = [f"{web.url}{name}" for name in files]
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        process = context.Process(target=download.keep_copies, args=(urls, cache))
        before = web.sent()
        process.start()
        wanted = before + int(rng.integers(10_000, 200_000))
        while process.is_alive() and web.sent() < wanted:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)  # 0 where this process was late
    paths = download.keep_copies(urls, cache)
    assert [Path(path).read_bytes() for path in paths] == list(files.values())
    assert web.sent() < 1.5 * sum(map(len, files.values()))
    assert not list(Path(cache).rglob(".tmp-*"))


def test_a_download_of_another_state_begins_anew(web: Webserver, shards: str, cache: str) -> None:
    open_source(shards, cache=cache)
    path = next(Path(cache).rglob("train-001.tar"))
    path.rename(path.with_name(".tmp-0123456789ab-train-001.tar"))
    path.with_name(".tmp-0123456789ab-train-001.tar").write_bytes(b"of another state")
    assert np.array_equal(np.asarray(open_source(shards, cache=cache).read(5)), PIXELS[5])
    assert not list(Path(cache).rglob(".tmp-*"))


def test_a_server_without_ranges_gives_copies(web: Webserver, shards: str, cache: str) -> None:
    web.ranges = False
    with pytest.raises(ValueError, match="is sent as a whole only"):
        open_source(shards, streaming=True)
    assert np.array_equal(np.asarray(open_source(shards, cache=cache).read(5)), PIXELS[5])


@pytest.mark.parametrize("fault", [404, 403, "cut", "long"])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_server_that_fails_under_way_damages_nothing(
    web: Webserver, shards: str, cache: str, streaming: bool, fault: int | str
) -> None:
    if streaming:
        source = open_source(shards, streaming=True)
        web.faults = [fault] * 20
        with pytest.raises(ValueError, match=r"/set/train-001.tar (is missing|is refused|can't be read) \("):
            source.read(5)
        web.faults = []
        assert np.array_equal(np.asarray(source.read(5)), PIXELS[5])
        return
    web.faults = [fault] * 200
    with pytest.raises(ValueError, match=r"/set/train-00\d.tar (is missing|is refused|can't be read) \("):
        open_source(shards, cache=cache)
    assert not list(Path(cache).rglob("train*.tar"))
    web.faults = []
    assert np.array_equal(np.asarray(open_source(shards, cache=cache).read(5)), PIXELS[5])


def test_a_shard_that_is_missing_or_no_tar(web: Webserver, shards: str, cache: str) -> None:
    for streaming in (True, False):
        with pytest.raises(ValueError, match=r"/set/train-003.tar is missing \(status 404\)"):
            open_source(shards.replace("002", "003"), streaming=streaming, cache=cache)
    web.files["/set/train-001.tar"] = web.files["/set/train-001.tar"][:3000]
    for streaming in (True, False):
        with pytest.raises(ValueError, match=r"train-001.tar can't be read as a tar file \(.*\): copy or make it anew"):
            open_source(shards, streaming=streaming, cache=cache)


def test_a_disk_that_is_too_small(shards: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        ValueError, match=r"take .* bytes, and .* has 1,000 free: name a folder on a larger disk in data"
    ):
        open_source(shards, cache=cache)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("streaming", [True, False])
def test_of_two_processes_one_asks(web: Webserver, shards: str, cache: str, streaming: bool) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()

    def open_and_count() -> None:
        results.put(len(open_source(shards, streaming=streaming, cache=cache)))

    processes = [context.Process(target=open_and_count) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=300) for _ in processes] == [12] * 3
    for process in processes:
        process.join(300)
    whole = sum(map(len, web.files.values()))
    assert web.sent() < whole * 1.1 + 2000


def test_what_a_hostile_shard_may_not(web: Webserver, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (("../a.png", "leads out of its folder"), ("/etc/a.png", "leads out of its folder")):
        web.files["/set/train-001.tar"] = tar({name: b""})
        with pytest.raises(ValueError, match=message):
            open_source(shards, streaming=True)
    # A long name of a terabyte, and a file of minus one byte.
    header = tarfile.TarInfo("a.png")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 10**12
    web.files["/set/train-001.tar"] = header.tobuf() + bytes(1024)
    with pytest.raises(ValueError, match="can't be read as a tar file"):
        open_source(shards, streaming=True)
    header.type, header.size = tarfile.REGTYPE, -1
    web.files["/set/train-001.tar"] = header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)
    with pytest.raises(ValueError, match="can't be read as a tar file"):
        open_source(shards, streaming=True)


@pytest.mark.parametrize("kind", ["zip", "npz", pytest.param("parquet", marks=pytest.mark.slow)])
def test_other_files(
    web: Webserver, kind: str, folder: Callable[..., Path], zipped: Callable[[Path], Path], cache: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        zipped(folder("a.png", "b.png")).rename(path)
    elif kind == "npz":
        np.savez(path, PIXELS)
    else:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
        features = datasets.Features(image=datasets.Image())
        datasets.Dataset.from_dict({"image": list(map(Image.fromarray, PIXELS))}, features=features).to_parquet(path)
    web.files[f"/a.{kind}"] = path.read_bytes()
    theirs, ours = open_source(str(path)), open_source(f"{web.url}/a.{kind}", cache=cache)
    assert np.array_equal(np.asarray(ours.read(1)), np.asarray(theirs.read(1)))
    assert ours.fingerprint() == theirs.fingerprint()
    web.files[f"/b.{kind}"] = b"<html>Please log in"
    with pytest.raises(ValueError, match=rf"b.{kind}.* can't be (read|opened)"):
        open_source(f"{web.url}/b.{kind}", cache=cache)


@pytest.mark.parametrize(
    "name, message",
    [
        ("s3://b/a.tar", "is an address of an unknown kind: give one that begins with https://"),
        ("https://x.org/*.tar", r"can't be looked up over a network: name its files, as in \{000..099\}"),
        ("https://x.org/a.tar.gz", "ends in .gz: give the address of a .zip, a .npz, or of .tar or of .parquet files"),
        ("https://x.org/sets/", "ends in nothing: give the address"),
        ("https://x.org/{a,b}.zip", "ends in .zip: give"),
        ("https://x.org/{a.zip,b.tar}", "ends in .tar, .zip: give"),
        ("https://me:secret@x.org/{a,a}.tar", r"data.source names https://x.org/a.tar twice: name it once"),
    ],
)
def test_addresses_that_can_not_be_used(name: str, message: str, cache: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(name, cache=cache)


def test_what_can_not_be_read_where_it_is() -> None:
    with pytest.raises(ValueError, match=r"https://x.org/a.zip can't be read where it is, as .tar .*: leave out data"):
        open_source("https://x.org/a.zip?sig=secret", streaming=True)


def test_names_of_runs() -> None:
    assert source_name("https://x.org/sets/train-{000..099}.tar?a=b") == "train"
    assert source_name("https://x.org/photos.zip") == "photos"
