"""Hugging Face datasets against rows written with that library and with pyarrow alone."""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from maxgan.data.sources import open_source

datasets = pytest.importorskip("datasets")
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 8, 10, 3), dtype=np.uint8)
LABELS = [0, 2, 1, 1, 0, 2, 2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def pngs() -> list[bytes]:
    streams = [io.BytesIO() for _ in PIXELS]
    for pixels, stream in zip(PIXELS, streams, strict=True):
        Image.fromarray(pixels).save(stream, "PNG")
    return [stream.getvalue() for stream in streams]


def dataset(**columns: Any) -> Any:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["ant", "bee", "cat"]))
    rows = {"image": [Image.fromarray(pixels) for pixels in PIXELS], "label": LABELS, **columns}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Two shards in a folder."""
    root = tmp_path / "data"
    root.mkdir()
    rows = dataset()
    for i, part in enumerate((range(4), range(4, 7))):
        rows.select(part).to_parquet(root / f"train-{i:05}-of-00002.parquet")
    return root


def test_local_files(parquet: Path) -> None:
    for name in (f"{parquet}", f"{parquet}/train-*.parquet", f"{parquet}/train-{{00000..00001}}-of-00002.parquet"):
        source = open_source(name)
        for each in (source, pickle.loads(pickle.dumps(source))):
            assert all(np.array_equal(np.asarray(each.read(i)), PIXELS[i]) for i in range(7))
        assert source.labels is not None and source.labels.tolist() == LABELS
        assert source.class_names == ("ant", "bee", "cat")
        assert source.describe() == f"{name}: 7 images (10 x 8), 3 classes from column label"
        assert open_source(name, labels=False).labels is None
    assert len(open_source(f"{parquet}/train-00001-of-00002.parquet")) == 3


def test_by_name_and_split(parquet: Path) -> None:
    dataset().select(range(2)).to_parquet(parquet / "test-00000-of-00001.parquet")
    assert len(open_source(f"hf:{parquet}")) == len(open_source(f"hf:{parquet}:train")) == 7
    assert len(open_source(f"hf:{parquet}:test")) == 2
    with pytest.raises(ValueError, match=r"holds test, train: name one by a pattern such as .*/test\*"):
        open_source(str(parquet))
    with pytest.raises(ValueError, match=r"hf:.*:other can't be opened \(.*\): give hf:OWNER/NAME"):
        open_source(f"hf:{parquet}:other")
    with pytest.raises(ValueError, match="can't be opened") as caught:
        open_source("hf:nobody/nothing")
    assert "\n" not in str(caught.value)


def test_files_of_other_writers(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for images in (pngs(), [{"bytes": content, "path": "x.png"} for content in pngs()]):
        parquet.write_table(pyarrow.table({"n": range(7), "img": images, "label": LABELS}), tmp_path / "a.parquet")
        source = open_source(str(tmp_path / "a.parquet"))
        assert np.array_equal(np.asarray(source.read(3)), PIXELS[3])
        assert (source.class_names, source.origin) == (("0", "1", "2"), "column label")


def test_rows_that_can_not_be_used(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    secret = tmp_path / "secret.png"
    Image.new("L", (8, 8)).save(secret)
    rows = [{"bytes": None, "path": str(secret)}, {"bytes": b"junk", "path": None}]
    parquet.write_table(pyarrow.table({"image": rows, "label": [1, None]}), path)
    with pytest.raises(ValueError, match="has no label for 1 of 2 images, the first being row 1"):
        open_source(str(path))
    source = open_source(str(path), labels=False)
    with pytest.raises(ValueError, match=r"a.parquet\[0\] holds no image, at most a path, which is not followed"):
        source.read(0)
    with pytest.raises(ValueError, match=r"a.parquet\[1\] can't be read as an image"):
        source.read(1)
    for columns, message in (
        ({"x": [1]}, "has no single column of images among x"),
        ({"image": [3]}, "column image holds .*, and not the bytes of image files"),
        ({"image": pyarrow.array([], pyarrow.binary())}, "has no rows|can't be opened"),
    ):
        parquet.write_table(pyarrow.table(columns), path)
        os.utime(path, ns=(len(message), len(message)))
        with pytest.raises(ValueError, match=message):
            open_source(str(path))
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=r"can't be opened \(.*\): check the files"):
        open_source(str(path))


def test_labels_that_are_hidden(tmp_path: Path) -> None:
    dataset(label=[-1] * 7).to_parquet(tmp_path / "a.parquet")
    assert open_source(str(tmp_path / "a.parquet")).labels is None


def test_the_library_is_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(ValueError, match=r"needs datasets 4 or newer, not 3\.6\.0"):
        open_source("hf:a/b")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the library datasets: pip install 'datasets>=4'"):
        open_source("hf:a/b")


def test_a_fingerprint_changes_with_rows_and_labels(parquet: Path) -> None:
    first = open_source(str(parquet)).fingerprint()
    assert open_source(f"{parquet}/train-*.parquet").fingerprint() == first
    assert open_source(str(parquet), labels=False).fingerprint() != first
    assert open_source(f"{parquet}/train-{{00001,00000}}-of-00002.parquet").fingerprint() != first
