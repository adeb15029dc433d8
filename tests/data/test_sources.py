"""Sources against files written by the tests, and the digits against scikit-learn."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from maxgan.data import files
from maxgan.data.base import ImageSource
from maxgan.data.labels import same_numbers
from maxgan.data.sources import open_source, source_name

Make = Callable[..., Path]


def digit(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).resize((16, 16), 3))


def test_classes_of_two_sets_are_matched_by_name_where_both_have_names() -> None:
    digits = tuple("0123456789")
    assert same_numbers(("dog", "cat"), ("bird", "cat", "dog")) == (2, 1)
    assert same_numbers(("3", "5"), digits) == (3, 5)
    for names, known in ((("0", "1"), ("cat", "dog")), (("cat", "dog"), digits), ((), ("cat",)), (("cat",), ())):
        assert same_numbers(names, known) is None
    with pytest.raises(ValueError, match=r"'cow' is none of the classes bird, cat$"):
        same_numbers(("cat", "cow"), ("bird", "cat"))


def test_digits_are_those_of_scikit_learn() -> None:
    images, target = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(1797), test_size=0.2, random_state=0, stratify=target)
    for name, expected in {
        "digits": np.arange(1797),
        "digits-train": np.sort(train),
        "digits-test": np.sort(test),
    }.items():
        source = open_source(name)
        assert len(source) == {"digits": 1797, "digits-train": 1437, "digits-test": 360}[name]
        assert source.labels is not None and source.labels.dtype == np.int64
        assert np.array_equal(source.labels, target[expected])
        assert source.class_names == tuple("0123456789")
        for index in (0, 17, len(source) - 1):
            assert np.array_equal(np.asarray(source.read(index)), digit(images[expected[index]].reshape(8, 8)))
    assert source.describe() == "digits-test: 360 images (16 x 16), 10 classes from scikit-learn"
    assert open_source("digits", labels=False).labels is None


def same(a: ImageSource, b: ImageSource) -> bool:
    labels = (
        np.array_equal(a.labels, b.labels) if a.labels is not None and b.labels is not None else a.labels is b.labels
    )
    pixels = [np.array_equal(np.asarray(a.read(i)), np.asarray(b.read(i))) for i in range(len(a))]
    return len(a) == len(b) and labels and a.class_names == b.class_names and a.origin == b.origin and all(pixels)


def test_class_folders_and_zip_are_equal(folder: Make, zipped: Make) -> None:
    root = folder("cat/b.png", "dog/x/c.jpg", "cat/a.png", "ant/d.gif")
    source = open_source(str(root))
    assert source.class_names == ("ant", "cat", "dog")
    assert source.labels is not None and source.labels.tolist() == [0, 1, 1, 2]
    pixels = np.random.default_rng(2).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(source.read(1)), pixels)
    assert same(source, open_source(str(zipped(root))))
    assert source.describe() == f"{root}: 4 images (8 x 8), 3 classes from class folders"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits-train", "digits"), ("a/my-photos.v2.zip", "my-photos.v2"), ("imagenet/train/", "train"),
        ("shards/*.tar", "shards"), ("a/train-{000..099}.tar", "train"), ("a/{0..9}.tar", "a"),
        ("data/train-*.parquet", "train"), ("hf:owner/name@small:train[:10%]", "name"), ("a b/c (1).npz", "c_1"),
        ("/*.tar", "images"),
    ],
)  # fmt: skip
def test_a_name_for_a_source(source: str, name: str) -> None:
    assert source_name(source) == name


def test_a_name_for_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_name(".") == source_name("*.tar") == tmp_path.name.strip("._-")


def test_numbered_folders_keep_their_order(folder: Make) -> None:
    source = open_source(str(folder("10/a.png", "9/a.png", "100/a.png")))
    assert source.class_names == ("9", "10", "100")
    assert source.labels is not None and source.labels.tolist() == [1, 2, 0]


@pytest.mark.parametrize("names", [("a.png", "cat/b.png"), ("all/a.png", "all/b.png"), ("a.png",)])
def test_no_classes(folder: Make, names: tuple[str, ...]) -> None:
    source = open_source(str(folder(*names)))
    assert (source.labels, source.class_names) == (None, ())
    assert source.describe().endswith("no labels")


def test_a_folder_around_everything_is_no_class(folder: Make, zipped: Make) -> None:
    root = folder("wrap/cat/a.png", "wrap/dog/b.png")
    assert open_source(str(root)).class_names == ("cat", "dog")
    (root / "wrap/dataset.json").write_text('{"labels": [["cat/a.png", 2], ["dog/b.png", 1]]}')
    source = open_source(str(root))
    assert source.labels is not None and source.labels.tolist() == [2, 1]
    assert same(source, open_source(str(zipped(root))))


def test_metadata_wins_over_folders(folder: Make, zipped: Make) -> None:
    root = folder("cat/a.png", "dog/b.png", "dog/c.png", labels=[["dog/c.png", 0], ["cat\\a.png", 3], ["dog/b.png", 3]])
    source = open_source(str(root))
    assert source.labels is not None and source.labels.tolist() == [3, 3, 0]
    assert (source.class_names, source.origin) == (("0", "1", "2", "3"), "dataset.json")
    assert same(source, open_source(str(zipped(root))))
    assert open_source(str(root), labels=False).labels is None


def test_metadata_takes_the_names_of_equal_folders(folder: Make) -> None:
    root = folder("cat/a.png", "dog/b.png", "dog/c.png", labels=[["dog/c.png", 0], ["cat/a.png", 1], ["dog/b.png", 0]])
    assert open_source(str(root)).class_names == ("dog", "cat")


def test_metadata_without_labels(folder: Make) -> None:
    root = folder("cat/a.png", "dog/b.png", labels=None)
    assert open_source(str(root)).labels is None


@pytest.mark.parametrize(
    "labels, message",
    [
        ([["a.png", 0]], "no label for 1 of 2 images, the first being b.png"),
        ([["a.png", 0], ["b.png", 1], ["c.png", 1]], "names c.png, which is not there"),
        ([["a.png", 0], ["b.png", -1]], r'unlike \["b.png", -1\]'),
        ([["a.png", 0], ["b.png", 1.5]], r'unlike \["b.png", 1.5\]'),
        ([["a.png", 0], ["b.png", True]], r'unlike \["b.png", true\]'),
        ([["a.png", 0], ["b.png", [0, 1]]], r'unlike \["b.png", \[0, 1\]\]'),
        ([["a.png", 0], ["b.png", 10**9]], "class number from 0"),
        ([["a.png", 0], ["b.png", 1], ["b.png", 2]], "gives b.png two labels, 1 and 2"),
        ("a.png", 'unlike "a.png"'),
    ],
)
def test_labels_that_do_not_match(folder: Make, zipped: Make, labels: object, message: str) -> None:
    root = folder("a.png", "b.png", labels=labels)
    for path in (root, zipped(root)):
        with pytest.raises(ValueError, match=message) as caught:
            open_source(str(path))
        assert f"{path}/dataset.json" in str(caught.value)


@pytest.mark.parametrize("name", ["LOC_synset_mapping.txt", "synset_words.txt", "class_names.txt"])
def test_class_folders_are_called_as_a_file_says(folder: Make, zipped: Make, name: str) -> None:
    root = folder("n01/a.png", "n02/b.png", "n03/c.png")
    text = "n02 crane, a bird\nn01 tench, Tinca tinca\nn09 not here\n\nn03 crane, a bird\n"
    expected = ("tench, Tinca tinca", "crane, a bird (n02)", "crane, a bird (n03)")
    (root / name).write_text(text)
    for path in (root, zipped(root)):
        source = open_source(str(path))
        assert (source.class_names, source.origin) == (expected, "class folders")
        assert source.labels is not None and source.labels.tolist() == [0, 1, 2]
    os.rename(root / name, root.parent / name)
    assert open_source(str(root)).class_names == expected
    (root.parent / name).write_text("n01 tench\nn02\n")
    with pytest.raises(ValueError, match=rf"{name} has no line for 2 of 3 class folders, the first being n02: add"):
        open_source(str(root))


def test_validation_images_of_imagenet_as_they_unpack(folder: Make, zipped: Make) -> None:
    """Kaggle's archive: the images in one folder, the tables four above."""
    inside = "ILSVRC/Data/CLS-LOC"
    root = folder(
        *(f"{inside}/val/ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3)), f"{inside}/test/ILSVRC2012_test_1.JPEG",
        f"{inside}/train/n01440764/a.JPEG", f"{inside}/train/n01751748/b.JPEG", f"{inside}/train/n09193705/c.JPEG",
    )  # fmt: skip
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench\nn01751748 sea snake\nn09193705 alp\n")
    table = (
        "ImageId,PredictionString\nILSVRC2012_val_00000003,n01751748 1 2 3 4 n01751748 5 6 7 8 \n"
        "ILSVRC2012_val_00000001,n09193705 0 0 1 1 \nILSVRC2012_val_00000002,n01751748 1 1 2 2 \n"
        "ILSVRC2012_val_00000009,n01440764 1 1 2 2 \n"
    )
    (root / "LOC_val_solution.csv").write_text(table)
    train, val = (open_source(str(root / inside / part)) for part in ("train", "val"))
    assert train.class_names == val.class_names == ("tench", "sea snake", "alp")
    assert val.labels is not None and val.labels.tolist() == [2, 1, 1]
    assert val.describe().endswith("3 classes from LOC_val_solution.csv")
    assert open_source(str(root / inside / "test")).labels is None
    # Beside the images, and in a zip.
    os.rename(root / "LOC_synset_mapping.txt", root / inside / "val" / "LOC_synset_mapping.txt")
    os.rename(root / "LOC_val_solution.csv", root / inside / "val" / "LOC_val_solution.csv")
    for path in (root / inside / "val", zipped(root / inside / "val")):
        assert same(open_source(str(path)), val)
    (root / inside / "val" / "LOC_val_solution.csv").write_text(table.replace("val_00000002", "val_00000008"))
    with pytest.raises(
        ValueError, match=r"LOC_val_solution.csv has no label for 1 of 3 images, .* ILSVRC2012_val_00000002"
    ):
        open_source(str(root / inside / "val"))


def test_metadata_may_name_the_classes(folder: Make) -> None:
    root = folder("a.png", "b.png")
    metadata = {"labels": [["a.png", 2], ["b.png", 0]], "class_names": ["ant", "bee", "cat"]}
    (root / "dataset.json").write_text(json.dumps(metadata))
    assert open_source(str(root)).class_names == ("ant", "bee", "cat")
    for names, message in ((["ant"], "has 1 class_names for 3 classes"), ("ant", "must be a list of names")):
        (root / "dataset.json").write_text(json.dumps({**metadata, "class_names": names}))
        with pytest.raises(ValueError, match=message):
            open_source(str(root))


def test_a_zip_that_changes_or_goes_under_way(folder: Make, zipped: Make) -> None:
    root = folder("a.png", "b.png")
    source = open_source(str(zipped(root)))
    source.read(0)
    (root / "c.png").write_bytes((root / "a.png").read_bytes())
    zipped(root)
    with pytest.raises(ValueError, match=r"images.zip was changed while it was in use"):
        source.read(0)
    os.remove(f"{root}.zip")
    with pytest.raises(ValueError, match=r"images.zip can't be read \(No such file"):
        source.read(0)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_jpeg_in_a_zip(tmp_path: Path, method: int) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "JPEG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        file.writestr("a.jpg", stream.getvalue())
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[500] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"a.zip/a.jpg can't be read as an image \(.*\): repair or remove it; "
    ) as caught:
        open_source(str(tmp_path / "a.zip")).read(0)
    assert "\n" not in str(caught.value)


def test_an_image_of_the_wrong_mode_in_a_zip(folder: Make, zipped: Make) -> None:
    root = folder("a.png")
    Image.new("F", (8, 8)).save(root / "b.tif")
    archive = zipped(root)
    with pytest.raises(ValueError, match=r"images.zip/b.tif: images of mode F have no fixed scale .*; training") as e:
        open_source(str(archive)).read(1)
    assert "\n" not in str(e.value)
    assert open_source(str(archive), on_error="skip").skipped == ("b.tif",)


def test_metadata_too_large_to_be_true(folder: Make, zipped: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zipped(folder("a.png", labels=[["a.png", 0]] * 1000))
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ValueError, match=r"dataset.json can't be read as JSON \(it unpacks to [\d,]+ bytes"):
        open_source(str(archive))


def test_a_damaged_zip(folder: Make, zipped: Make) -> None:
    archive = zipped(folder("a.png"))
    content = bytearray(archive.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start : start + 4] = b"junk"
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"images.zip can't be read as a zip \(.*\): copy or make it anew"):
        open_source(str(archive))


def test_a_zip_entry_that_lies_about_its_size(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", stream.getvalue() + bytes(1 << 22))
    content = (tmp_path / "a.zip").read_bytes()
    size = (len(stream.getvalue()) + (1 << 22)).to_bytes(4, "little")
    assert content.count(size) == 2
    (tmp_path / "a.zip").write_bytes(content.replace(size, (9).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"a.png can't be read as an image"):
        open_source(str(tmp_path / "a.zip")).read(0)


@pytest.mark.parametrize("content, message", [(b"{", "can't be read as JSON"), (b"[]", "must hold an object")])
def test_metadata_that_is_none(folder: Make, content: bytes, message: str) -> None:
    root = folder("a.png", dataset_json=content)
    with pytest.raises(ValueError, match=message):
        open_source(str(root))
    assert len(open_source(str(root), labels=False)) == 1


def test_sidecars_and_hidden_files_are_passed_over(folder: Make, zipped: Make) -> None:
    root = folder("a.png", ".hidden.png", ".git/b.png", "__MACOSX/c.png", readme_md=b"", Thumbs_db=b"", list_TXT=b"")
    assert len(open_source(str(root))) == len(open_source(str(zipped(root)))) == 1


def test_images_without_a_known_suffix_are_found(folder: Make) -> None:
    assert len(open_source(str(folder("a.png", "b", "c.dat")))) == 3


@pytest.mark.parametrize("packed", [False, True])
def test_broken_files(folder: Make, zipped: Make, packed: bool) -> None:
    root = folder("cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png", "eel/e.png", side=64)
    content = (root / "cat/b.png").read_bytes()
    (root / "cat/b.png").write_bytes(content[: len(content) // 2])
    (root / "dog/c.png").write_bytes(b"no image")
    (root / "eel/e.png").write_bytes(b"")
    path = str(zipped(root) if packed else root)
    source = open_source(path)
    for index in (1, 2, 4):
        with pytest.raises(ValueError, match=r"can't be read as an image \(.*\): .* on_error=skip") as caught:
            source.read(index)
        assert " at 0x" not in str(caught.value)
        assert path in str(caught.value) and ("cat/b.png", "dog/c.png", "eel/e.png")[index // 2] in str(caught.value)
    left = open_source(path, on_error="skip")
    assert left.skipped == ("cat/b.png", "dog/c.png", "eel/e.png")
    assert left.class_names == ("cat", "dog", "eel")
    assert left.labels is not None and left.labels.tolist() == [0, 1]
    assert np.array_equal(np.asarray(left.read(1)), np.asarray(source.read(3)))
    assert left.describe().endswith("left out 3 that can't be read: cat/b.png, dog/c.png, eel/e.png")


def test_other_files_are_errors_at_once_or_left_out(folder: Make, zipped: Make) -> None:
    root = folder("cat/a.png", "dog/b.png", notes_doc=b"not a picture")
    for path in (root, zipped(root)):
        with pytest.raises(ValueError, match=r"notes.doc can't be read as an image"):
            open_source(str(path))
        left = open_source(str(path), on_error="skip")
        assert (left.skipped, left.class_names) == (("notes.doc",), ("cat", "dog"))


def test_nothing_to_read(folder: Make, zipped: Make, tmp_path: Path) -> None:
    root = folder(readme_txt=b"")
    for path in (root, zipped(root)):
        with pytest.raises(ValueError, match="contains no images"):
            open_source(str(path))
    (root / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image that can be read, first a\.png"):
        open_source(str(root), on_error="skip")
    with pytest.raises(ValueError, match="is neither a folder nor a zip, npz, tar or parquet file"):
        open_source(str(root / "a.png"))
    with pytest.raises(ValueError, match=r"data.source .*nowhere does not exist: give digits"):
        open_source(str(tmp_path / "nowhere"))


def test_too_large_to_be_true(folder: Make, zipped: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder("a.png", side=16)
    archive = zipped(root)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 100)
    with pytest.raises(ValueError, match=r"it unpacks to [\d,]+ bytes"):
        open_source(str(archive)).read(0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 255)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match="16 x 16 pixels, more than 255"):
        open_source(str(root)).read(0)


def test_photographs_are_turned_upright(folder: Make) -> None:
    root = folder()
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned; the picture is shown rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(root / "a.png", exif=exif)
    assert np.array_equal(np.asarray(open_source(str(root)).read(0)), np.rot90(pixels, -1))


def test_the_description_tells_the_range_of_sizes(folder: Make) -> None:
    root = folder("b.png", "c.png")
    for name, size in {"a.png": (30, 20), "d.png": (9, 7)}.items():
        Image.new("L", size).save(root / name)
    assert open_source(str(root)).describe() == f"{root}: 4 images (9 x 7 to 30 x 20), no labels"


def test_links_are_followed_once(folder: Make) -> None:
    root = folder("cat/a.png", "dog/b.png")
    os.symlink(root, root / "dog" / "loop")
    assert len(open_source(str(root))) == 2


@pytest.mark.parametrize("name", ["../a.png", "/b.png", "c/../../d.png", "C:\\e.png", "..\\f.png"])
def test_zip_entries_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("good.png", b"")
        file.writestr(name, b"")
    with pytest.raises(ValueError, match="which leads out of its folder"):
        open_source(str(tmp_path / "a.zip"))


def test_a_zip_is_opened_anew_in_each_process(folder: Make, zipped: Make) -> None:
    source = open_source(str(zipped(folder("a.png", "b.png"))))
    parent = source._store._archive()  # type: ignore[attr-defined]
    child = os.fork()
    if child == 0:
        os._exit(0 if source._store._archive() is not parent else 1)  # type: ignore[attr-defined]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert source._store._archive() is parent  # type: ignore[attr-defined]
    assert same(source, pickle.loads(pickle.dumps(source)))
