"""Parquet files read where they are, against the same files at hand."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from webserver import Webserver

from maxgan.config import DataConfig, PackConfig
from maxgan.data import parquet
from maxgan.data.index_cache import cache_file
from maxgan.data.loader import ImageDataset, training_batches
from maxgan.data.pack import pack
from maxgan.data.sources import open_source

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
writer = pytest.importorskip("pyarrow.parquet")
ROOT = Path(__file__).parents[2]
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 10, 3), dtype=np.uint8)
LABELS = np.arange(12) % 5
GROUP = 3


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def table(group: int = GROUP, **columns: Any) -> bytes:
    """A parquet file with groups of three rows, compressed as most are."""
    stream = io.BytesIO()
    writer.write_table(pyarrow.table(columns), stream, row_group_size=group, compression="snappy")
    return stream.getvalue()


def by_the_library(rows: slice) -> bytes:
    names = datasets.ClassLabel(names=["ant", "bee", "cat", "dog", "eel"])
    features = datasets.Features(image=datasets.Image(), label=names)
    content = {"image": [Image.fromarray(pixels) for pixels in PIXELS[rows]], "label": LABELS[rows]}
    stream = io.BytesIO()
    datasets.Dataset.from_dict(content, features=features).to_parquet(stream, batch_size=GROUP)
    return stream.getvalue()


def as_bytes(rows: slice) -> bytes:
    return table(n=range(len(PIXELS[rows])), img=list(map(png, PIXELS[rows])), label=LABELS[rows])


def as_fields(rows: slice) -> bytes:
    return table(image=[{"bytes": png(pixels), "path": "x.png"} for pixels in PIXELS[rows]], label=LABELS[rows])


@pytest.fixture
def files(web: Webserver) -> str:
    for number, rows in enumerate((slice(0, 7), slice(7, 12))):
        web.files[f"/data/train-{number:05}-of-00002.parquet"] = as_fields(rows)
    return f"{web.url}/data/train-{{00000..00001}}-of-00002.parquet"


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.mark.parametrize("write", [by_the_library, as_bytes, as_fields])
def test_the_rows_are_those_of_the_files(
    web: Webserver, files: str, cache: str, write: Callable[[slice], bytes]
) -> None:
    for number, rows in enumerate((slice(0, 7), slice(7, 12))):
        web.files[f"/data/train-{number:05}-of-00002.parquet"] = write(rows)
    source = open_source(files, streaming=True, cache=cache)
    for each in (source, pickle.loads(pickle.dumps(source))):
        assert len(each) == 12 and each.streamed
        assert all(np.array_equal(np.asarray(each.read(i)), PIXELS[i]) for i in range(12))
    assert source.labels is not None and source.labels.tolist() == LABELS.tolist()
    assert source.class_names == (("ant", "bee", "cat", "dog", "eel") if write == by_the_library else tuple("01234"))
    assert source.describe() == (
        f"{files}: 12 images (1 looked at: 10 x 8), 5 classes from column label; read in row groups of 0.0 MB, which "
        f"are kept in {cache} (0.0 GB when all have been read)"
    )
    assert open_source(files, streaming=True, labels=False, cache=cache).labels is None


def test_a_group_is_asked_for_once_and_what_tells_of_all_is_kept(web: Webserver, files: str, cache: str) -> None:
    big = np.random.default_rng(1).integers(0, 256, (12, 200, 200, 3), dtype=np.uint8)
    for number, rows in enumerate((range(7), range(7, 12))):
        images = [png(big[i]) for i in rows]
        web.files[f"/data/train-{number:05}-of-00002.parquet"] = table(image=images, label=[i % 5 for i in rows])
    whole = sum(map(len, web.files.values()))
    source = open_source(files, streaming=True, cache=cache)
    assert web.sent() < 0.3 * whole  # footers and labels alone
    web.requests.clear()
    for i in (4, 3, 5, 4):
        assert np.array_equal(np.asarray(source.read(i)), big[i])
    assert web.sent() == pytest.approx(3 * len(png(big[0])), rel=0.1)
    web.requests.clear()
    again = open_source(files, streaming=True, cache=cache)
    assert [request.range for request in web.requests] == ["bytes=0-0"] * 2
    web.requests.clear()
    assert again.fingerprint() == source.fingerprint()
    assert np.array_equal(np.asarray(again.read(3)), big[3])
    assert not web.requests
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(again.read, [*range(12), *range(12)]))
    assert all(np.array_equal(np.asarray(picture), big[i % 12]) for i, picture in enumerate(pictures))
    assert web.sent() < 0.9 * whole


@pytest.mark.slow
def test_batches_are_those_of_the_files_at_hand(web: Webserver, files: str, cache: str, tmp_path: Path) -> None:
    for name, content in web.files.items():
        (tmp_path / Path(name).name).write_bytes(content)
    datasets.config.HF_DATASETS_CACHE, before = str(tmp_path / "hf"), datasets.config.HF_DATASETS_CACHE
    config = DataConfig(f"{tmp_path}/*.parquet", resolution=8, crop="random", crop_fraction=0.8, flip=True)
    taken = []
    for each in (config, replace(config, source=files, streaming=True, cache=cache)):
        dataset = ImageDataset(each)
        for workers, start in ((0, 0), (2, 3)):
            stream = training_batches(dataset, 4, seed=0, workers=workers, start_batch=start)
            taken.append([part for batch in itertools.islice(stream, 7 - start) for part in batch])
    datasets.config.HF_DATASETS_CACHE = before
    theirs, theirs_later, ours, ours_later = taken
    assert all(map(torch.equal, theirs, ours)) and all(map(torch.equal, theirs_later, ours_later))
    assert all(map(torch.equal, theirs[6:], ours_later))


@pytest.mark.slow
def test_a_pack(files: str, cache: str, tmp_path: Path) -> None:
    pack(PackConfig(files, str(tmp_path / "a.zip"), 8, streaming=True, cache=cache, workers=0))
    packed = open_source(str(tmp_path / "a.zip"))
    assert packed.labels is not None and packed.labels.tolist() == LABELS.tolist()
    assert np.array_equal(np.asarray(packed.read(4)), PIXELS[4][:, 1:9])


def test_a_file_that_changes_or_goes_under_way(web: Webserver, files: str, cache: str) -> None:
    source = open_source(files, streaming=True, cache=cache)
    name = "/data/train-00001-of-00002.parquet"
    web.files[name] = as_fields(slice(6, 11))
    with pytest.raises(ValueError, match=r"/data/train-00001-of-00002.parquet was changed while it was in use"):
        source.read(9)
    again = open_source(files, streaming=True, cache=cache)
    assert np.array_equal(np.asarray(again.read(9)), PIXELS[8])
    assert again.fingerprint() != source.fingerprint()
    del web.files[name]
    with pytest.raises(ValueError, match=r"train-00001-of-00002.parquet is missing \(status 404\)"):
        source.read(9)
    web.faults = ["cut"] * 20
    with pytest.raises(ValueError, match=r"train-00000-of-00002.parquet can't be read \(the connection was cut after"):
        source.read(0)
    web.faults = []
    assert np.array_equal(np.asarray(source.read(0)), PIXELS[0])


def test_what_was_kept_is_damaged(web: Webserver, files: str, cache: str) -> None:
    source = open_source(files, streaming=True, cache=cache)
    source.read(0)
    kept = next(path for path in Path(cache).rglob("*-00000") if path.is_file())
    good = kept.read_bytes()
    far = good[:16] + np.array([0, 1 << 60], "<i8").tobytes() + good[32:]
    for bad in (b"", good[:10], good[:-1], b"\xff" * len(good), far):
        kept.write_bytes(bad)
        with pytest.raises(ValueError, match=rf"{kept.name} is damaged: remove it and start again"):
            source.read(2)
    index = cache_file(f"{web.url}/data/train-00000-of-00002.parquet")
    content = json.loads(index.read_text())
    for bad_index in ({"footer": "UEFSMQ=="}, {"footer": 3}, {"numbers": {"label": [1]}}, {"numbers": 3}):
        index.write_text(json.dumps({**content, **bad_index}))
        labels = open_source(files, streaming=True, cache=cache).labels
        assert labels is not None and labels.tolist() == LABELS.tolist()


def test_rows_that_can_not_be_used(
    web: Webserver, files: str, cache: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"{web.url}/a.parquet"

    def opened(content: bytes, **options: Any) -> Any:
        web.files["/a.parquet"] = content
        return open_source(url, streaming=True, cache=cache, **options)

    secret = tmp_path / "secret.png"
    secret.write_bytes(png(PIXELS[0]))
    source = opened(table(image=[{"bytes": None, "path": str(secret)}, {"bytes": b"junk", "path": None}]))
    with pytest.raises(ValueError, match=r"a.parquet\[0\] holds no image, at most a path, which is not followed"):
        source.read(0)
    with pytest.raises(ValueError, match=r"a.parquet\[1\] can't be read as an image"):
        source.read(1)
    with pytest.raises(ValueError, match="has no label for 1 of 2 images, the first being row 1"):
        opened(table(image=[b"x", b"y"], label=[1, None]))
    for content, message in (
        (table(x=[1]), "has no single column of images among x"),
        (table(image=[3]), "column image holds .*, and not the bytes of image files"),
        (table(image=pyarrow.array([], pyarrow.binary())), "has no rows"),
        (table(group=5000, image=[b""] * 5000), r"says that [\d,]+ bytes hold 5,000 images: copy or make it anew"),
        (b"<html>Please log in", r"can't be opened \(.*\): copy or make it anew"),
        (b"", r"can't be opened \(.*\): copy or make it anew"),
        (as_bytes(slice(0, 9))[:-300], r"can't be opened \(.*\): copy or make it anew"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            opened(content)
        assert "\n" not in str(caught.value)
    # A column may be called anything, and a group say that it is of any size.
    names = datasets.Features({"../../../x": datasets.Image()})
    stream = io.BytesIO()
    datasets.Dataset.from_dict({"../../../x": [Image.fromarray(PIXELS[0])]}, features=names).to_parquet(stream)
    before = {path for path in tmp_path.rglob("*") if Path(cache) not in path.parents}
    assert np.array_equal(np.asarray(opened(stream.getvalue()).read(0)), PIXELS[0])
    assert {path for path in tmp_path.rglob("*") if Path(cache) not in path.parents} == before
    monkeypatch.setattr(parquet, "_MAX_GROUP_BYTES", 100)
    with pytest.raises(ValueError, match=r"a.parquet has row groups of .* bytes, more than the 100 that are held"):
        opened(as_bytes(slice(0, 4))).read(0)
    web.state = lambda content: None
    with pytest.raises(ValueError, match="does not tell when it changes"):
        opened(as_bytes(slice(0, 4)))


@pytest.mark.parametrize("streaming", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_broken_images_are_left_out(
    web: Webserver, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    images = list(map(png, PIXELS))
    images[4], images[7] = b"junk", images[7][:40]
    web.files["/a.parquet"] = table(image=images, label=LABELS)
    url = f"{web.url}/a.parquet"
    source = open_source(url, on_error="skip", streaming=streaming, cache=cache)
    good = [i for i in range(12) if i not in (4, 7)]
    assert source.skipped == (f"{url}[4]", f"{url}[7]") and len(source) == 10
    assert source.labels is not None and source.labels.tolist() == LABELS[good].tolist()
    assert source.where(4) == f"{url}[5]"
    assert all(np.array_equal(np.asarray(source.read(i)), PIXELS[row]) for i, row in enumerate(good))
    whole = open_source(url, streaming=streaming, cache=cache)
    assert (len(whole), whole.class_names) == (12, source.class_names)
    assert whole.fingerprint() != source.fingerprint()
    web.files["/b.parquet"] = table(image=[b"junk"])
    with pytest.raises(ValueError, match=r"b.parquet contains no image that can be read, first .*b.parquet\[0\]"):
        open_source(f"{web.url}/b.parquet", on_error="skip", streaming=streaming, cache=cache)


def test_files_of_two_kinds(web: Webserver, files: str, cache: str) -> None:
    web.files["/data/train-00001-of-00002.parquet"] = table(picture=[b"x"])
    with pytest.raises(
        ValueError, match=r"train-00001-of-00002.parquet (has no images in a column image|can't be opened)"
    ):
        open_source(files, streaming=True, cache=cache).read(0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_of_several_processes_one_fetches_a_group(web: Webserver, files: str, cache: str) -> None:
    dataset = ImageDataset(DataConfig(files, resolution=8, streaming=True, cache=cache, crop="random", workers=3))
    web.requests.clear()
    list(itertools.islice(training_batches(dataset, 6, seed=0, workers=3), 8))
    assert len(web.requests) <= 2 * 5  # five groups


HUB = """
import json, sys
import numpy as np
from maxgan.data.sources import open_source

for name in sys.argv[2:]:
    try:
        source = open_source(name, streaming=True, cache=sys.argv[1])
        images = [np.asarray(source.read(i)).tolist() for i in range(len(source))]
        print(json.dumps([images, source.labels.tolist(), source.class_names]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
- config_name: shards
  data_files:
  - split: train
    path: shards/*.tar
- config_name: text
  data_files:
  - split: train
    path: text/*.txt
---
"""
SHA = "0123456789abcdef0123456789abcdef01234567"


def hub(web: Webserver, repository: str, files: dict[str, bytes]) -> None:
    """Make a server answer as the Hugging Face Hub does for a data set."""
    web.headers = {"X-Repo-Commit": SHA}
    for revision in ("main", SHA):
        for name, content in files.items():
            web.files[f"/datasets/{repository}/resolve/{revision}/{name}"] = content
    facts = {"_id": "1", "id": repository, "sha": SHA, "private": False, "tags": [], "downloads": 0, "likes": 0,
             "siblings": [{"rfilename": name} for name in files]}  # fmt: skip
    web.files[f"/api/datasets/{repository}/revision/{SHA}"] = json.dumps(facts).encode()
    for folder in {str(parent) for name in files for parent in Path(name).parents}:
        here = [name for name in files if folder == "." or name.startswith(f"{folder}/")]
        entries: dict[str, dict[str, Any]] = {}
        for name in here:
            depth = 0 if folder == "." else folder.count("/") + 1
            path = "/".join(name.split("/")[: depth + 1])
            entries[path] = {"type": "file" if path == name else "directory", "oid": "1", "size": len(files[name])}
        listing = [{"path": path, **entry} for path, entry in entries.items()]
        ending = "" if folder == "." else f"/{folder}"
        web.files[f"/api/datasets/{repository}/tree/{SHA}{ending}"] = json.dumps(listing).encode()


@pytest.mark.slow
def test_the_hub(web: Webserver, cache: str, tmp_path: Path) -> None:
    tars = io.BytesIO()
    with tarfile.open(fileobj=tars, mode="w") as archive:
        for name, content in (("0.png", png(PIXELS[3])), ("0.cls", b"2")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    hub(
        web,
        "me/pets",
        {
            "README.md": CARD.encode(),
            "data/train-00000-of-00002.parquet": by_the_library(slice(0, 7)),
            "data/train-00001-of-00002.parquet": by_the_library(slice(7, 12)),
            "data/test-00000-of-00001.parquet": by_the_library(slice(0, 5)),
            "shards/0.tar": tars.getvalue(),
            "text/a.txt": b"words",
        },
    )
    names = ["hf:me/pets", "hf:me/pets:test", "hf:me/pets@shards", "hf:me/pets:other", "hf:me/pets@text", "hf:me/no"]
    environment = {**os.environ, "HF_ENDPOINT": web.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "me",
                   "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", HUB, cache, *names], env=environment, capture_output=True, text=True, timeout=200
    )
    train, test, shards, *problems = (json.loads(line) for line in result.stdout.splitlines())
    classes = ["ant", "bee", "cat", "dog", "eel"]
    assert train == [PIXELS.tolist(), LABELS.tolist(), classes]
    assert test == [PIXELS[:5].tolist(), LABELS[:5].tolist(), classes]
    assert shards == [[PIXELS[3].tolist()], [2], ["0", "1", "2"]]
    assert "it has no split other, but train, test" in problems[0]
    assert "neither parquet files nor shards" in problems[1] or "can't be opened" in problems[1]
    assert "hf:me/no can't be opened" in problems[2]
    parts = [request for request in web.requests if request.range]
    assert parts and all(request.authorization == "Bearer me" for request in parts)
