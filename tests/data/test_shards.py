"""Tar shards against webdataset's own reader and writer, and against the same images in a folder."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maxgan.data.patterns import find_files
from maxgan.data.sources import open_source

Make = Callable[..., Path]


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), value).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, files: dict[str, bytes], **odd: object) -> Path:
    """A tar of files, whose last entry gets the attributes in `odd`."""
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as archive:
        for i, (name, content) in enumerate(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            if i == len(files) - 1:
                for key, value in odd.items():
                    setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(content))
    return path


def values(path: object, **options: bool) -> list[int]:
    source = open_source(str(path), **options)
    return [int(np.asarray(source.read(i))[0, 0]) for i in range(len(source))]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of four images: image i is i, its class i % 5."""
    for shard in range(3):
        files = {}
        for i in range(4 * shard, 4 * shard + 4):
            files |= {f"{i:06}.png": png(i), f"{i:06}.cls": str(i % 5).encode(), f"{i:06}.json": b"{}"}
        write(tmp_path / "wds" / f"train-{shard:03}.tar", files)
    return tmp_path / "wds"


@pytest.mark.parametrize("name", ["", "/train-{000..002}.tar", "/*.tar", "/train-00{0,1,2}.tar", "/train-00[0-2].tar"])
def test_every_way_to_name_shards(shards: Path, name: str) -> None:
    source = open_source(f"{shards}{name}")
    assert values(f"{shards}{name}") == list(range(12))
    assert source.labels is not None and source.labels.tolist() == [i % 5 for i in range(12)]
    assert source.class_names == tuple("01234")
    assert source.describe() == f"{shards}{name}: 12 images (8 x 8), 5 classes from .cls files"
    assert source.where(7) == f"{shards}{name}/000007.png"
    assert open_source(f"{shards}{name}", labels=False).labels is None
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(again.read(7)), np.asarray(source.read(7)))


def test_some_of_the_shards(shards: Path) -> None:
    assert values(shards / "train-001.tar") == [4, 5, 6, 7]
    assert values(shards / "train-{001..002}.tar") == list(range(4, 12))


def test_webdataset_reads_what_we_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    with webdataset.ShardWriter(str(tmp_path / "a-%02d.tar"), maxcount=7, verbose=0) as writer:
        for i in range(20):
            writer.write({"__key__": f"{i:04}", "png": Image.fromarray(pixels[i]), "cls": i % 3})
    paths = sorted(str(path) for path in tmp_path.glob("*.tar"))
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    ours = open_source(f"{tmp_path}/a-{{00..02}}.tar")
    assert len(ours) == len(theirs) == 20 and ours.labels is not None
    for i, (picture, label) in enumerate(theirs):
        assert np.array_equal(np.asarray(ours.read(i)), np.asarray(picture))
        assert np.array_equal(np.asarray(picture), pixels[i]) and ours.labels[i] == label == i % 3


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_class_folders(folder: Make, form: int) -> None:
    long = "x" * (60 if form == tarfile.USTAR_FORMAT else 150)
    root = folder(f"cat/{long}.png", "cat/a.png", "dog/b.png")
    with tarfile.open(root.with_suffix(".tar"), "w", format=form) as archive:
        archive.add(root, arcname=".")
    packed, plain = open_source(str(root.with_suffix(".tar"))), open_source(str(root))
    assert packed.class_names == plain.class_names == ("cat", "dog")
    assert packed.labels is not None and packed.labels.tolist() == [0, 0, 1]
    assert all(np.array_equal(np.asarray(packed.read(i)), np.asarray(plain.read(i))) for i in range(3))


def test_names_that_begin_anew_in_each_shard(tmp_path: Path) -> None:
    for shard in range(2):
        files = {
            f"c/{i}.{kind}": data for i in range(3) for kind, data in (("png", png(10 * shard + i)), ("cls", b"1"))
        }
        write(tmp_path / f"{shard}.tar", {**files, f"c/only{shard}.png": png(shard), f"c/only{shard}.cls": b"0"})
    source = open_source(str(tmp_path))
    assert values(tmp_path) == [0, 1, 2, 0, 10, 11, 12, 1]
    assert source.labels is not None and source.labels.tolist() == [1, 1, 1, 0] * 2
    assert source.where(4) == f"{tmp_path}/c/1:0.png"
    for shard in range(2):
        write(tmp_path / f"{shard}.tar", {"cat/a.png": png(1), "dog/a.png": png(2)})
    assert open_source(str(tmp_path)).class_names == ("cat", "dog")


def test_hidden_files_and_class_names_beside_the_shards(shards: Path) -> None:
    write(shards / "train-003.tar", {"._000012.png": b"junk", "000012.png": png(12), "000012.cls": b"0"})
    (shards / "dataset.json").write_text('{"class_names": ["a", "b", "c", "d", "e"]}')
    source = open_source(str(shards))
    assert len(source) == 13 and source.class_names == tuple("abcde")
    (shards / "dataset.json").write_text('{"class_names": ["a"]}')
    with pytest.raises(ValueError, match="has 1 class_names for 5 classes"):
        open_source(str(shards))


def test_a_folder_of_images_beside_shards_stays_one(shards: Path) -> None:
    (shards / "cat").mkdir()
    with pytest.raises(ValueError, match=r"train-000.tar can't be read as an image"):
        open_source(str(shards))


@pytest.mark.parametrize(
    "odd", [{"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, {"type": tarfile.LNKTYPE, "linkname": "a.png"}]
    + [{"type": kind} for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)],
)  # fmt: skip
def test_links_and_devices(tmp_path: Path, odd: dict[str, object]) -> None:
    path = write(tmp_path / "a.tar", {"a.png": png(0), "b.png": b""}, **odd)
    with pytest.raises(ValueError, match=r"a.tar holds b.png, which is no plain file but a link or the like"):
        open_source(str(path))


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "a/../../b.png"])
def test_names_that_lead_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"a.tar holds '.*', which leads out of its folder"):
        open_source(str(write(tmp_path / "a.tar", {name: png(0)})))


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a.png": png(0), "a.cls": b"1", "b.png": png(1)}, "has no label for 1 of 2 images, the first being b.png"),
        ({"a.png": png(0), "a.cls": b"cat"}, r"a.cls must hold the number of a class, not b'cat'"),
        ({"a.png": png(0), "a.cls": b"123456"}, r"gives a.png the class 123456: classes are numbers from 0 to 99999"),
        ({"a.png": png(0), "b.cls": b"0"}, "has a class for b, but no such image"),
        ({"a.txt": b""}, "contains no images"),
    ],
)
def test_labels_that_do_not_match(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(str(write(tmp_path / "a.tar", files)))


def test_a_name_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", {"a.png": png(0)})
    with tarfile.open(path, "a") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ValueError, match=r"holds a:a.png twice"):
        open_source(str(path))


def test_missing_shards(shards: Path) -> None:
    with pytest.raises(ValueError, match=r"train-003.tar is missing: put it back"):
        open_source(f"{shards}/train-{{000..005}}.tar")
    with pytest.raises(ValueError, match=r"none-\*.tar is missing"):
        open_source(f"{shards}/none-*.tar")
    for shard in (0, 2):
        os.rename(shards / f"train-{shard:03}.tar", shards / f"train-{shard:05}-of-00003.tar")
    os.remove(shards / "train-001.tar")
    for name in (shards, f"{shards}/*.tar"):
        with pytest.raises(ValueError, match=r"train-00001-of-00003.tar is missing"):
            open_source(str(name))
    assert values(f"{shards}/train-0000{{0,2}}-of-00003.tar") == [0, 1, 2, 3, 8, 9, 10, 11]
    with pytest.raises(ValueError, match="stands for files that end in"):
        open_source(f"{shards}/{{train-00000-of-00003.tar,../wds}}")


def test_braces_against_braceexpand(tmp_path: Path) -> None:
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    pattern = f"{tmp_path}/{{a,b}}-{{08..11}}{{,x}}"
    expected = list(braceexpand(pattern))
    assert len(expected) == 16
    for path in expected:
        Path(path).touch()
    assert find_files(pattern) == expected


@pytest.mark.parametrize("cut", [0, 100, 511, 512, 700, 1023, 1024, 1100, 1536, 1537, 2048, 2500])
def test_truncated_shards(shards: Path, cut: int) -> None:
    path = shards / "train-001.tar"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"train-001.tar can't be read as a tar file \(.*\): copy or make it anew"):
        open_source(str(shards))


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_shard_that_changes_or_goes_under_way(shards: Path, on_error: str) -> None:
    source = open_source(str(shards), on_error=on_error)  # type: ignore[arg-type]
    write(shards / "train-001.tar", {"000004.png": png(99)})
    assert np.asarray(source.read(0)).max() == 0
    with pytest.raises(ValueError, match=r"train-001.tar was changed while it was in use: let it rest and start"):
        source.read(5)
    os.remove(shards / "train-002.tar")
    with pytest.raises(ValueError, match=r"train-002.tar can't be read \(No such file.*\): put it back"):
        source.read(9)


def test_a_damaged_image_in_a_shard(shards: Path) -> None:
    write(shards / "train-001.tar", {"000004.png": png(4)[:30], "000004.cls": b"4", "x.png": png(5), "x.cls": b"0"})
    with pytest.raises(ValueError, match=r"wds/000004.png can't be read as an image"):
        open_source(str(shards)).read(4)
    source = open_source(str(shards), on_error="skip")
    assert (len(source), source.skipped) == (9, ("000004.png",))
    assert source.labels is not None and source.labels.tolist() == [0, 1, 2, 3, 3, 4, 0, 1, 0]


def test_compressed_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(ValueError, match=r"a.tar.gz is compressed, .* unpack it to a .tar first"):
        open_source(str(tmp_path / "a.tar.gz"))
    os.rename(tmp_path / "a.tar.gz", tmp_path / "a.tar")
    with pytest.raises(ValueError, match="can't be read as a tar file"):
        open_source(str(tmp_path / "a.tar"))


def test_a_fingerprint_is_of_the_files_and_not_of_the_shards_they_are_in(tmp_path: Path) -> None:
    files = {f"{i}.png": png(i) for i in range(4)}
    classes = {f"{i}.cls": b"%d" % (i % 2) for i in range(4)}
    one = open_source(str(write(tmp_path / "one.tar", files | classes)))
    for i in range(2):
        names = [f"{j}.{ending}" for j in (2 * i, 2 * i + 1) for ending in ("png", "cls")]
        write(tmp_path / "two" / f"{i}.tar", {name: (files | classes)[name] for name in names})
    assert open_source(str(tmp_path / "two")).fingerprint() == one.fingerprint()
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    unlabelled = open_source(str(tmp_path / "two"), labels=False).fingerprint()
    assert unlabelled == open_source(str(folder)).fingerprint() != one.fingerprint()
    other = write(tmp_path / "other.tar", files | classes | {"3.png": png(7)})
    assert open_source(str(other)).fingerprint() != one.fingerprint()
