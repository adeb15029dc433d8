"""Images and arrays in an npz: mapped, never unpickled; and what identifies the content of a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maxgan.data.arrays import array_names, read_array
from maxgan.data.sources import open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [IMAGES, IMAGES.transpose(3, 2, 1, 0), np.array("text"), np.zeros((0, 3)), np.float64(3), np.arange(5)[::2]],
    ids=["images", "fortran", "text", "empty", "scalar", "strided"],
)
def test_arrays_are_what_numpy_reads(tmp_path: Path, save: Callable[..., None], array: np.ndarray) -> None:
    save(tmp_path / "a.npz", first=IMAGES, second=array)
    path = str(tmp_path / "a.npz")
    assert array_names(path) == ["first", "second"]
    found = read_array(path, "second")
    with np.load(path) as expected:
        np.testing.assert_array_equal(found, expected["second"])
        assert found.dtype == expected["second"].dtype
    if save is np.savez and array is IMAGES:
        assert isinstance(found, np.memmap)


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, objects=np.array([{}, print], dtype=object))
        with pytest.raises(ValueError, match=r"objects of .* can't be read"):
            read_array(str(path), "objects")
    with pytest.raises(ValueError, match="holds no array arr_0, only objects"):
        open_source(str(path))
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="can't be read as an npz"):
        open_source(str(path))


@pytest.mark.parametrize("labels", ["labels", "arr_1"])
def test_images_of_an_npz(tmp_path: Path, labels: str) -> None:
    np.savez(tmp_path / "a.npz", arr_0=IMAGES, **{labels: np.arange(7) % 3})
    source = open_source(str(tmp_path / "a.npz"))
    assert (len(source), source.size(3), source.class_names) == (7, (10, 8), ("0", "1", "2"))
    np.testing.assert_array_equal(np.asarray(source.read(3)), IMAGES[3])
    np.testing.assert_array_equal(source.labels, np.arange(7) % 3)
    assert open_source(str(tmp_path / "a.npz"), labels=False).labels is None
    np.savez(tmp_path / "grey.npz", arr_0=IMAGES[..., :1])
    assert open_source(str(tmp_path / "grey.npz")).read(0).mode == "L"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": IMAGES.astype(np.float32)}, "float32 .* where images uint8"),
        ({"arr_0": IMAGES[0]}, "where images uint8"),
        ({"arr_0": IMAGES[:0]}, "contains no images"),
        ({"arr_0": IMAGES, "labels": np.arange(6)}, "must be 7 whole numbers"),
        ({"arr_0": IMAGES, "labels": np.arange(7) - 1}, "must be 7 whole numbers"),
    ],
)
def test_mistakes_in_an_npz_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / "a.npz"))


def test_a_fingerprint_changes_with_content_order_names_and_labels(
    tmp_path: Path, folder: Callable[..., Path], zipped: Callable[[Path], Path]
) -> None:
    root = folder("a/1.png", "b/2.png")
    first = open_source(str(root)).fingerprint()
    assert open_source(str(root)).fingerprint() == first
    # The same files in a zip are the same content.
    assert open_source(str(zipped(root))).fingerprint() == first
    found = {first, open_source(str(root), labels=False).fingerprint()}
    (root / "b" / "2.png").rename(root / "b" / "3.png")
    found.add(open_source(str(root)).fingerprint())
    content = bytearray((root / "b" / "3.png").read_bytes())
    content[-20] ^= 1
    (root / "b" / "3.png").write_bytes(content)
    found.add(open_source(str(root)).fingerprint())
    for name in ("digits", "digits-train", "digits-test"):
        found.add(open_source(name).fingerprint())
    for number, images in enumerate((IMAGES, IMAGES[::-1], IMAGES.reshape(7, 10, 8, 3))):
        np.savez(tmp_path / f"{number}.npz", arr_0=images)
        found.add(open_source(str(tmp_path / f"{number}.npz")).fingerprint())
    assert len(found) == 10
