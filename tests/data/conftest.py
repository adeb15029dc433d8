"""Small files of images, made for each test."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webserver import Webserver

from maxgan.config import DataConfig
from maxgan.data import remote
from maxgan.data.http import close_idle


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


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("copies", "rows at an address")]


@pytest.fixture(params=["folder", "zip", "npz", "tar", "parquet", "shards at an address", *SLOW])
def each_source(
    folder: Callable[..., Path],
    zipped: Callable[[Path], Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> DataConfig:
    """The same 11 images of 12 x 12 in each form, the class of image i being i % 3."""
    root = folder(*(f"{i:02}.png" for i in range(11)), side=12, labels=[[f"{i:02}.png", i % 3] for i in range(11)])
    pixels = np.stack([np.asarray(Image.open(root / f"{i:02}.png")) for i in range(11)])
    labels = np.arange(11) % 3
    kind = request.param
    if kind == "folder":
        return DataConfig(str(root))
    if kind == "zip":
        return DataConfig(str(zipped(root)))
    if kind == "npz":
        np.savez(tmp_path / "a.npz", pixels, labels)
        return DataConfig(str(tmp_path / "a.npz"))
    kept = str(tmp_path / "kept")
    if kind in ("tar", "shards at an address", "copies"):
        for shard in range(3):
            with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
                for i in range(4 * shard, min(4 * shard + 4, 11)):
                    archive.add(root / f"{i:02}.png", f"{i:02}.png")
                    entry = tarfile.TarInfo(f"{i:02}.cls")
                    entry.size = 1
                    archive.addfile(entry, io.BytesIO(b"%d" % labels[i]))
        if kind == "tar":
            return DataConfig(f"{tmp_path}/{{0..2}}.tar")
        web = request.getfixturevalue("web")
        web.files = {f"/{shard}.tar": (tmp_path / f"{shard}.tar").read_bytes() for shard in range(3)}
        return DataConfig(f"{web.url}/{{0..2}}.tar", streaming=kind != "copies", cache=kept)
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=3))
    rows = {"image": [Image.fromarray(image) for image in pixels], "label": labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    if kind == "parquet":
        return DataConfig(str(tmp_path / "a.parquet"))
    web = request.getfixturevalue("web")
    web.files["/a.parquet"] = (tmp_path / "a.parquet").read_bytes()
    return DataConfig(f"{web.url}/a.parquet", streaming=True, cache=kept)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webserver]:
    """A server of files on this machine; nobody waits long before another attempt."""
    monkeypatch.setattr(remote, "WAITS", (0.001,) * 4)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Webserver()
    yield server
    close_idle()
    server.close()
