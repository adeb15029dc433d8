"""Small files of images, made for each test."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write random RGB images of 8 x 8 under the names given, and further files, into a folder."""

    def make(*names: str, labels: object = ..., side: int = 8, **files: bytes) -> Path:
        root = tmp_path / "images"
        for number, name in enumerate(names):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path, "PNG")
        root.mkdir(exist_ok=True)
        for name, content in files.items():
            (root / name.replace("__", "/").replace("_", ".")).write_bytes(content)
        if labels is not ...:
            (root / "dataset.json").write_text(json.dumps({"labels": labels}))
        return root

    return make


@pytest.fixture
def zipped() -> Callable[[Path], Path]:
    """Write the files of a folder as a zip beside it."""

    def make(root: Path) -> Path:
        archive = root.with_suffix(".zip")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(root.rglob("*"), reverse=True):
                if path.is_file():
                    file.write(path, path.relative_to(root).as_posix())
        return archive

    return make


@pytest.fixture(params=["folder", "zip", "npz", "tar", "parquet"])
def each_source(
    folder: Callable[..., Path],
    zipped: Callable[[Path], Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The same 11 images of 12 x 12 in each form, the class of image i being i % 3."""
    root = folder(*(f"{i:02}.png" for i in range(11)), side=12, labels=[[f"{i:02}.png", i % 3] for i in range(11)])
    pixels = np.stack([np.asarray(Image.open(root / f"{i:02}.png")) for i in range(11)])
    labels = np.arange(11) % 3
    kind = request.param
    if kind == "folder":
        return str(root)
    if kind == "zip":
        return str(zipped(root))
    if kind == "npz":
        np.savez(tmp_path / "a.npz", pixels, labels)
        return str(tmp_path / "a.npz")
    if kind == "tar":
        for shard in range(3):
            with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
                for i in range(4 * shard, min(4 * shard + 4, 11)):
                    archive.add(root / f"{i:02}.png", f"{i:02}.png")
                    entry = tarfile.TarInfo(f"{i:02}.cls")
                    entry.size = 1
                    archive.addfile(entry, io.BytesIO(b"%d" % labels[i]))
        return f"{tmp_path}/{{0..2}}.tar"
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=3))
    rows = {"image": [Image.fromarray(image) for image in pixels], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")
