"""Arrays of an npz, and images that are such arrays, against numpy; and what identifies the content of a source."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maxgan.data import arrays
from maxgan.data.arrays import array_names, read_array
from maxgan.data.sources import open_source

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 10, 8, 3), dtype=np.uint8)
LABELS = np.array([0, 3, 1, 1, 0, 2])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [PIXELS, PIXELS.transpose(3, 2, 1, 0), np.array("text"), np.zeros((0, 3)), np.float64(3), np.arange(5)[::2]],
    ids=["images", "fortran", "text", "empty", "scalar", "strided"],
)
def test_arrays_are_what_numpy_reads(tmp_path: Path, save: Callable[..., None], array: np.ndarray) -> None:
    save(tmp_path / "a.npz", first=PIXELS, second=array)
    path = str(tmp_path / "a.npz")
    assert array_names(path) == ["first", "second"]
    found = read_array(path, "second")
    with np.load(path) as expected:
        np.testing.assert_array_equal(found, expected["second"])
        assert found.dtype == expected["second"].dtype
    if save is np.savez and array is PIXELS:
        assert isinstance(found, np.memmap)


def test_what_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, objects=np.array([{}, print], dtype=object))
        with pytest.raises(ValueError, match=r"objects of .* can't be read"):
            read_array(str(path), "objects")
    with pytest.raises(ValueError, match="holds no array arr_0, only objects"):
        read_array(str(path), "arr_0")
    with pytest.raises(ValueError, match="has no array named images or arr_0, but objects: rename one"):
        open_source(str(path))
    path.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="can't be read as an npz"):
        open_source(str(path))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1"), ("arr_0", "labels")])
def test_images_and_labels(tmp_path: Path, save: object, names: tuple[str, str]) -> None:
    path = tmp_path / "a.npz"
    save(path, **{names[0]: PIXELS, names[1]: LABELS.astype(np.int32)})  # type: ignore[operator]
    source = open_source(str(path))
    for each in (source, pickle.loads(pickle.dumps(source))):
        assert all(np.array_equal(np.asarray(each.read(i)), PIXELS[i]) for i in range(6))
    assert source.labels is not None and source.labels.dtype == np.int64
    assert source.labels.tolist() == LABELS.tolist() and source.class_names == tuple("0123")
    assert source.describe() == f"{path}: 6 images (8 x 10), 4 classes from {names[1]}"
    assert open_source(str(path), labels=False).labels is None
    assert len(pickle.dumps(source)) < 2000


@pytest.mark.parametrize("channels, mode", [((), "L"), ((1,), "L"), ((2,), "LA"), ((4,), "RGBA")])
def test_channels(tmp_path: Path, channels: tuple[int, ...], mode: str) -> None:
    pixels = RNG.integers(0, 256, (2, 5, 5, *channels), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", pixels, np.full(2, -1))
    source = open_source(str(tmp_path / "a.npz"))
    assert (source.read(1).mode, source.labels) == (mode, None)
    assert np.array_equal(np.asarray(source.read(1)).ravel(), pixels[1].ravel())


@pytest.mark.parametrize(
    "content, message",
    [
        ({"x": PIXELS}, "has no array named images or arr_0, but x"),
        ({"images": PIXELS.astype(np.float32)}, "images must hold uint8 in C order, not float32"),
        ({"images": np.asfortranarray(PIXELS)}, "not uint8 in Fortran order"),
        ({"images": PIXELS.transpose(0, 3, 1, 2).copy()}, "not 6 x 3 x 10 x 8: move the channels to the end"),
        ({"images": PIXELS[0, 0]}, "must have the shape N x H x W x C"),
        ({"images": PIXELS[:0]}, "must have the shape N x H x W x C"),
        ({"images": PIXELS, "labels": LABELS[:5]}, "labels must hold 6 whole numbers, one for each image, not 5"),
        ({"images": PIXELS, "labels": LABELS / 2}, "must hold 6 whole numbers.* of float64"),
        ({"images": PIXELS, "labels": LABELS - 1}, "has no label for 2 of 6 images, the first being image 0"),
        ({"images": PIXELS, "labels": LABELS * -2}, "gives image 1 the class -6"),
        ({"images": PIXELS, "labels": LABELS + 10**6}, "classes are numbers from 0 to 99999"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / "a.npz"))


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pickle-was-run",)


def test_pickles_are_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = np.array([Bomb()], dtype=object)
    for content in ({"images": bomb}, {"images": PIXELS, "labels": bomb}):
        np.savez(tmp_path / "a.npz", **content)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"a\.npz"):
            open_source("a.npz")
    assert os.listdir(tmp_path) == ["a.npz"]


def test_what_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((10, 8, 8), np.uint8))
    np.savez(tmp_path / "b.npz", images=np.zeros((10, 8, 8), np.uint8))
    monkeypatch.setattr(arrays, "MAX_UNPACKED_BYTES", 700)
    with pytest.raises(ValueError, match="unpacks to 768 bytes, more than the 700 that are held in memory"):
        open_source(str(tmp_path / "a.npz"))
    assert len(open_source(str(tmp_path / "b.npz"))) == 10


def test_a_shape_that_lies(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("images.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (2**50, 8, 8)})
    with pytest.raises(ValueError, match=r"which its shape .* does not fit"):
        open_source(str(tmp_path / "a.npz"))


def test_damaged_and_changed_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=PIXELS)
    source = open_source(str(path))
    np.savez(path, images=PIXELS[:5])
    with pytest.raises(ValueError, match=r"a.npz was changed while it was in use"):
        source.read(0)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"a.npz can't be read as an npz"):
        open_source(str(path))


@pytest.mark.parametrize("labels", ["labels", "arr_1"])
def test_images_of_an_npz(tmp_path: Path, labels: str) -> None:
    np.savez(tmp_path / "a.npz", arr_0=PIXELS, **{labels: np.arange(6) % 3})
    source = open_source(str(tmp_path / "a.npz"))
    assert (len(source), source.size(3), source.class_names) == (6, (8, 10), ("0", "1", "2"))
    np.testing.assert_array_equal(np.asarray(source.read(3)), PIXELS[3])
    np.testing.assert_array_equal(source.labels, np.arange(6) % 3)
    assert open_source(str(tmp_path / "a.npz"), labels=False).labels is None
    np.savez(tmp_path / "grey.npz", arr_0=PIXELS[..., :1])
    assert open_source(str(tmp_path / "grey.npz")).read(0).mode == "L"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": PIXELS.astype(np.float32)}, "must hold uint8 in C order, not float32"),
        ({"arr_0": PIXELS[0, 0]}, "must have the shape N x H x W x C"),
        ({"arr_0": PIXELS[:0]}, "must have the shape N x H x W x C"),
        ({"arr_0": PIXELS, "labels": np.arange(5)}, "must hold 6 whole numbers"),
        ({"arr_0": PIXELS, "labels": np.arange(6) - 1}, "has no label for 1 of 6 images"),
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
    for number, images in enumerate((PIXELS, PIXELS[::-1], PIXELS.reshape(6, 8, 10, 3))):
        np.savez(tmp_path / f"{number}.npz", arr_0=images)
        found.add(open_source(str(tmp_path / f"{number}.npz")).fingerprint())
    assert len(found) == 10


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_fingerprint_is_of_the_pixels_of_an_npz_and_not_of_how_they_are_kept(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    save(tmp_path / "b.npz", arr_0=PIXELS, arr_1=LABELS.astype(np.int16))
    first, second = (open_source(str(tmp_path / name)) for name in ("a.npz", "b.npz"))
    assert first.fingerprint() == second.fingerprint()
    save(tmp_path / "b.npz", arr_0=PIXELS, arr_1=LABELS[::-1])
    assert open_source(str(tmp_path / "b.npz")).fingerprint() != first.fingerprint()
    with pytest.raises(ValueError, match="was changed while it was in use"):
        second.fingerprint()
