"""The kept index of tar shards: as good as the headers, and never trusted after a change."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from maxgan.data import shards
from maxgan.data.index_cache import cache_file
from maxgan.data.shards import Shard, Shards

HOUR = 3600


def write(path: Path, files: dict[str, bytes], age: float = HOUR) -> str:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    status = path.stat()
    os.utime(path, (status.st_atime - age, status.st_mtime - age))
    return str(path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose headers were read."""
    read_index, found = shards._read_index, []

    def read(shard: Shard) -> object:
        found.append(shard.path)
        return read_index(shard)

    monkeypatch.setattr(shards, "_read_index", read)
    return found


def contents(paths: list[str]) -> tuple[dict[str, bytes], list[int]]:
    opened = Shards("set", paths)
    names = opened.names()
    labels = opened.labels([name for name in names if name.endswith(".png")], None)
    assert labels is not None and labels.values is not None
    return {name: opened.open(name).read() for name in names}, labels.values.tolist()


def test_headers_are_read_once_and_again_after_a_change(tmp_path: Path, reads: list[str]) -> None:
    files = {"a.png": b"one", "a.cls": b"3", "über/b.png": b"two", "über/b.cls": b"0", "c.txt": b""}
    paths = [write(tmp_path / "0.tar", files), write(tmp_path / "1.tar", {"d.png": b"three", "d.cls": b"1"})]
    first = contents(paths)
    assert first[1] == [3, 1, 0]
    assert sorted(reads) == paths  # by several threads, in any order
    assert contents(paths) == first
    assert len(reads) == 2
    # Of the same size, but another time.
    write(tmp_path / "1.tar", {"e.png": b"other", "e.cls": b"2"}, age=2 * HOUR)
    second = contents(paths)
    assert second[0]["e.png"] == b"other"
    assert second[1] == [3, 2, 0]
    assert reads[2:] == [paths[1]]
    # Another file in its place, with the time of the first.
    (tmp_path / "1.tar").unlink()
    assert len(reads) == 3
    write(tmp_path / "1.tar", {f"{i}.png": b"x" * 9000 for i in range(4)} | {f"{i}.cls": b"0" for i in range(4)})
    assert len(contents(paths)[1]) == 6
    assert len(reads) == 4


def test_a_shard_that_was_just_written_is_not_kept(tmp_path: Path, reads: list[str]) -> None:
    path = write(tmp_path / "0.tar", {"a.png": b"one", "a.cls": b"3"}, age=0)
    contents([path]), contents([path])
    assert reads == [path, path]
    assert not cache_file(path).exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:50],
        lambda text: "[]",
        lambda text: "null",
        lambda text: json.dumps({**json.loads(text), "members": [["a.png", 512, 10**9]]}),
        lambda text: json.dumps({**json.loads(text), "members": [["a.png", -5, 2]]}),
        lambda text: json.dumps({**json.loads(text), "members": [["a.png", "x", 2]]}),
        lambda text: json.dumps({**json.loads(text), "classes": 3}),
        lambda text: json.dumps({**json.loads(text), "version": 0}),
    ],
)
def test_a_damaged_index_is_made_anew(tmp_path: Path, reads: list[str], damage: object) -> None:
    path = write(tmp_path / "0.tar", {"a.png": b"one", "a.cls": b"3"})
    expected = contents([path])
    file = cache_file(path)
    assert callable(damage)
    file.write_text(damage(file.read_text()))
    assert contents([path]) == expected
    assert reads == [path, path]
    assert contents([path]) == expected
    assert len(reads) == 2


def test_without_a_place_to_keep_it_nothing_is_kept(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = write(tmp_path / "0.tar", {"a.png": b"one", "a.cls": b"3"})
    assert contents([path]) == contents([path])
    assert reads == [path, path]
