"""Small files of images, made for each test."""

from __future__ import annotations

import json
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
