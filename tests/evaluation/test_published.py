"""Where published weights are looked for, and what is refused."""

from __future__ import annotations

import hashlib
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import IncompleteRead
from pathlib import Path

import pytest
import torch

from maxgan.evaluation.published import KERAS, PORT_2015, WeightFile, find_weights, load_torchscript

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = WeightFile("w.pth", "https://example.org/w.pth", DIGEST)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (checkpoints := tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return checkpoints


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    asked = []

    def download(url: str, path: str, prefix: str) -> None:
        asked.append((url, path, prefix))
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


def test_a_file_is_taken_by_path_then_from_the_usual_places(
    hub: Path, offline: list[tuple[str, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = replace(FILE, also_in=str(elsewhere))
    with pytest.raises(ValueError, match=rf"fetch {FILE.url} and put it at {hub / 'w.pth'}"):
        find_weights(file)
    assert offline == [(FILE.url, str(hub / "w.pth"), DIGEST)]
    for place in (elsewhere / "w.pth", hub / "w.pth"):
        place.write_bytes(CONTENT)
        assert find_weights(file) == (place, DIGEST)
    mine = tmp_path / "mine.pth"
    with pytest.raises(ValueError, match=rf"no weight file {mine}: fetch {FILE.url} and name it"):
        find_weights(file, mine)
    mine.write_bytes(CONTENT)
    assert find_weights(file, mine) == (mine, DIGEST)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_weights(file, "~/mine.pth") == (mine, DIGEST)
    assert len(offline) == 1


def test_what_is_missing_is_downloaded_under_its_checksum(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, prefix: Path(path).write_bytes(CONTENT))
    assert find_weights(FILE) == (hub / "w.pth", DIGEST)
    for error in (RuntimeError("bad hash"), IncompleteRead(b"", 7)):

        def fail(*_: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
        with pytest.raises(ValueError, match=r"can't be downloaded \((bad hash|IncompleteRead)"):
            find_weights(PORT_2015)


def test_of_several_that_miss_a_file_one_downloads_and_the_others_wait(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads = []

    def download(url: str, path: str, prefix: str) -> None:
        downloads.append(url)
        time.sleep(0.1)
        Path(path).write_bytes(CONTENT)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    # The lock is on the file, so threads exclude each other as processes do.
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(find_weights, [FILE] * 4)) == [(hub / "w.pth", DIGEST)] * 4
    assert downloads == [FILE.url]


def test_another_checksum_is_refused_unless_trusted(hub: Path, tmp_path: Path) -> None:
    (mine := tmp_path / "mine.pth").write_bytes(b"other")
    digest = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match=f"mine.pth has the SHA-256 {digest[:12]}.*published w.pth has {DIGEST[:12]}"):
        find_weights(FILE, mine)
    assert find_weights(FILE, mine, trust=True) == (mine, digest)
    with pytest.raises(ValueError, match="trust_weights is for a file that you name"):
        find_weights(FILE, trust=True)
    # What lies in a usual place, which others may write to, is checked as well.
    (hub / "w.pth").write_bytes(b"other")
    with pytest.raises(ValueError, match="has the SHA-256"):
        find_weights(FILE)


def test_a_file_that_its_user_makes_is_explained(hub: Path) -> None:
    with pytest.raises(ValueError, match=rf"fetch .*\.h5 and put the \.npz, made of it .*, at {hub / KERAS.name}"):
        find_weights(KERAS)
    (hub / KERAS.name).write_bytes(CONTENT)
    assert find_weights(KERAS) == (hub / KERAS.name, DIGEST)


def test_an_archive_is_loaded_only_as_it_was_checked(tmp_path: Path) -> None:
    (path := tmp_path / "w.pt").write_bytes(CONTENT)
    with pytest.raises(ValueError, match="has changed since its checksum was taken"):
        load_torchscript(path, hashlib.sha256(b"before").hexdigest())
    with pytest.raises(ValueError, match="is no TorchScript archive"):
        load_torchscript(path, DIGEST)
