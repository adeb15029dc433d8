"""Parts of files over HTTP, against the files; servers that go wrong in every way that they do."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import select
import shutil
import socket
import ssl
import subprocess
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from huggingface_hub import constants
from webserver import Webserver

from maxgan.data import http, remote
from maxgan.data.remote import AbsentError, RemoteFile, Window

CONTENT = np.random.default_rng(0).bytes(100_000)


@pytest.fixture
def url(web: Webserver) -> str:
    web.files["/a b/x.tar"] = CONTENT
    return f"{web.url}/a%20b/x.tar?token=secret"


def test_parts_come_over_connections_that_stay_open(web: Webserver, url: str) -> None:
    file = RemoteFile(url)
    assert (file.stamp[0], file.stamp[1] != "", file.ranges) == (100_000, True, True)
    assert [file.read(*part) for part in ((0, 1), (500, 70), (99_999, 1), (7, 0))] == [
        CONTENT[:1], CONTENT[500:570], CONTENT[-1:], b"",
    ]  # fmt: skip
    assert {request.path for request in web.requests} == {"/a b/x.tar"}
    assert [request.range for request in web.requests[1:]] == ["bytes=0-0", "bytes=500-569", "bytes=99999-99999"]
    assert len({request.connection for request in web.requests}) == 1
    http.close_idle()
    assert pickle.loads(pickle.dumps(file)).read(5, 5) == CONTENT[5:10]
    parts = np.random.default_rng(1).integers(0, 99_000, 64).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda start: file.read(start, 1000), parts)) == [CONTENT[i : i + 1000] for i in parts]
    assert len({request.connection for request in web.requests}) <= 2 + 8
    assert web.sent() == 1 + 72 + 5 + 64_000


def read_parts(file: RemoteFile, parts: list[int], results: multiprocessing.Queue[bytes]) -> None:
    for start in parts:
        results.put(file.read(start, 10))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_has_connections_of_its_own(web: Webserver, url: str) -> None:
    file = RemoteFile(url)
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[bytes] = context.Queue()
    process = context.Process(target=read_parts, args=(file, [10, 20, 30], results))
    process.start()
    mine = [file.read(start, 10) for start in (40, 50, 60)]
    theirs = [results.get(timeout=300) for _ in range(3)]
    process.join(300)
    assert (mine, theirs) == ([CONTENT[i : i + 10] for i in (40, 50, 60)], [CONTENT[i : i + 10] for i in (10, 20, 30)])
    by_connection: dict[int, set[str | None]] = {}
    for request in web.requests[1:]:
        by_connection.setdefault(request.connection, set()).add(request.range)
    assert sorted(map(len, by_connection.values())) == [3, 3]


@pytest.mark.parametrize("fault", [500, 503, 429, 408, "cut", "long", "endless"])
def test_what_passes_is_tried_again(web: Webserver, url: str, fault: int | str) -> None:
    web.faults = [503]
    file = RemoteFile(url)
    web.faults = [fault] * 3
    assert file.read(1000, 5000) == CONTENT[1000:6000]
    web.faults = [fault] * 9
    if fault == "endless":  # no more than what was asked for is read of it
        assert file.read(1000, 5000) == CONTENT[1000:6000]
        return
    with pytest.raises(
        ValueError, match=r"x.tar can't be read \(.*; 5 attempts\): see the network and the addr"
    ) as caught:
        file.read(1000, 5000)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_server_says_how_long_to_wait(web: Webserver, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=waits.append))
    file = RemoteFile(url)
    for asked, waited in (("7", 7), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.001), ("999999", 120)):
        web.faults, web.headers = [429], {"Retry-After": asked}
        assert file.read(0, 3) == CONTENT[:3]
        assert waits.pop() == waited


@pytest.mark.parametrize(
    "status, message",
    [
        (404, r"a%20b/x.tar is missing \(status 404\)"),
        (410, "is missing"),
        (403, r"is refused \(status 403\): ask for the right to read it"),
        (401, "is refused"),
        (418, r"can't be read \(status 418\)"),
    ],
)
def test_what_does_not_pass_is_said_at_once(web: Webserver, url: str, status: int, message: str) -> None:
    file = RemoteFile(url)
    web.faults = [status] * 2
    with pytest.raises(ValueError, match=message):
        file.read(0, 10)
    with pytest.raises(ValueError, match=message) as caught:
        RemoteFile(url)
    assert isinstance(caught.value, AbsentError) == (status != 418)
    assert len(web.requests) == 3


def test_nobody_answers(web: Webserver, url: str) -> None:
    file = RemoteFile(url)
    web.close()
    http.close_idle()
    with pytest.raises(ValueError, match=r"can't be read \(.*refused; 5 attempts\)"):
        file.read(0, 10)
    with pytest.raises(ValueError, match=r"can't be read \(.*refused; 4 attempts\)"):
        RemoteFile(url)


@pytest.mark.parametrize("change", [CONTENT[:-1], CONTENT[::-1], b"", None])
def test_a_file_that_changes_under_way(web: Webserver, url: str, change: bytes | None) -> None:
    file = RemoteFile(url)
    if change is None:
        del web.files["/a b/x.tar"]
    else:
        web.files["/a b/x.tar"] = change
    with pytest.raises(ValueError, match="was changed while it was in use" if change is not None else "is missing"):
        file.read(10, 10)


def test_a_server_without_ranges_sends_only_whole_files(web: Webserver, url: str) -> None:
    web.ranges = False
    file = RemoteFile(url)
    assert not file.ranges and file.stamp[0] == len(CONTENT)
    with pytest.raises(ValueError, match=r"is sent as a whole only, .* set data.streaming false, which keeps a copy"):
        file.read(0, 10)
    assert b"".join(file.pieces()) == CONTENT
    for fault in ("cut", 500):
        web.faults = [fault]
        with pytest.raises(ValueError, match="can't be read"):
            list(file.pieces())
    web.files["/a b/x.tar"] = CONTENT[:-1]
    with pytest.raises(ValueError, match="was changed"):
        list(file.pieces())


def test_pieces(web: Webserver, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PIECE_BYTES", 30_000)
    pieces = list(RemoteFile(url).pieces(20_000))
    assert b"".join(pieces) == CONTENT[20_000:]
    assert list(map(len, pieces)) == [30_000, 30_000, 20_000]


def test_redirects_are_remembered_until_they_fail(web: Webserver, url: str) -> None:
    web.redirects["/old.tar"] = url
    file = RemoteFile(f"{web.url}/old.tar")
    for _ in range(2):
        assert file.read(3, 3) == CONTENT[3:6]
    assert [request.path for request in web.requests] == ["/old.tar", "/a b/x.tar", "/a b/x.tar", "/a b/x.tar"]
    web.faults = [403]  # a place that was signed for an hour
    assert file.read(3, 3) == CONTENT[3:6]
    assert [request.path for request in web.requests[4:]] == ["/a b/x.tar", "/old.tar", "/a b/x.tar"]
    web.redirects["/a b/x.tar"] = url
    with pytest.raises(ValueError, match=r"it leads on more than 5 times; 1 attempt\)"):
        file.read(3, 3)
    web.redirects["/a b/x.tar"] = "file:///etc/passwd"
    with pytest.raises(ValueError, match="it leads to file://, which is not followed"):
        file.read(3, 3)


def test_a_token_is_for_the_hub_alone(web: Webserver, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "me")
    monkeypatch.setattr(constants, "ENDPOINT", web.url)
    other = Webserver()
    other.files["/x.tar"] = CONTENT
    web.redirects["/x.tar"] = f"{other.url}/x.tar"
    file = RemoteFile(f"{web.url}/x.tar")
    assert file.read(5, 5) == CONTENT[5:10]
    assert [request.authorization for request in web.requests] == ["Bearer me"]
    assert [request.authorization for request in other.requests] == [None, None]
    http.close_idle()
    other.close()


def test_a_file_of_a_commit_is_what_it_is(web: Webserver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", web.url)
    commit = "0123456789abcdef0123456789abcdef01234567"
    web.files = {f"/datasets/me/pets/resolve/{commit}/x.tar": CONTENT, "/resolve/main/x.tar": CONTENT}
    states = iter(f'"{number}"' for number in range(99))
    web.state = lambda _: next(states)
    file = RemoteFile(f"{web.url}/datasets/me/pets/resolve/{commit}/x.tar")
    assert file.stamp == (len(CONTENT), commit)
    assert file.read(5, 5) == CONTENT[5:10]
    with pytest.raises(ValueError, match="was changed"):
        RemoteFile(f"{web.url}/resolve/main/x.tar").read(5, 5)


def test_a_proxy_is_told_the_whole_address(web: Webserver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", web.url)
    monkeypatch.setenv("no_proxy", "")
    web.files["/x.tar"] = CONTENT
    assert RemoteFile("http://nowhere.invalid/x.tar").read(5, 5) == CONTENT[5:10]


def test_a_size_that_is_not_told(web: Webserver, url: str) -> None:
    web.ranges, web.faults = False, ["endless"]
    with pytest.raises(ValueError, match="its server does not tell its size"):
        RemoteFile(url)


@pytest.mark.parametrize("side, most, requests", [(3_000, 1.1, 8), (200_000, 0.1, 22)])
def test_small_parts_are_read_through_and_large_ones_passed_over(
    web: Webserver, side: int, most: float, requests: int
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for i in range(20 if side > 100_000 else 300):
            entry = tarfile.TarInfo(f"{i}.png")
            entry.size = side
            archive.addfile(entry, io.BytesIO(bytes(side)))
    web.files["/x.tar"] = stream.getvalue()
    file = RemoteFile(f"{web.url}/x.tar")
    web.requests.clear()
    with Window(file) as window, tarfile.open(fileobj=window, mode="r:") as archive:
        found = [(entry.name, entry.offset_data, entry.size) for entry in archive]
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        assert found == [(entry.name, entry.offset_data, entry.size) for entry in archive]
    assert web.sent() < most * len(stream.getvalue())
    assert len(web.requests) <= requests


def test_a_window_reads_as_a_file_does(web: Webserver, url: str) -> None:
    ours, theirs = Window(RemoteFile(url)), io.BytesIO(CONTENT)
    rng = np.random.default_rng(2)
    for _ in range(100):
        whence = int(rng.integers(3))
        offset = int(rng.integers(0, 110_000)) if whence == 0 else -int(rng.integers(0, min(theirs.tell(), 5000) + 1))
        size = int(rng.integers(-1, 9000))
        assert ours.seek(offset, whence) == theirs.seek(offset, whence) == ours.tell()
        assert ours.read(size) == theirs.read(size)


def test_a_part_of_any_size_is_not_read_at_once(url: str) -> None:
    file = RemoteFile(url)
    file.stamp = 10**15, file.stamp[1]  # as a server may say
    with pytest.raises(ValueError, match=r"x.tar has a part of 1,000,000,000,000 bytes, more than the 536,870,912"):
        Window(file).read(10**12)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_over_tls_and_through_a_tunnel(web: Webserver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    web.files["/x.tar"] = CONTENT
    url = web.secured(context) + "/x.tar"
    with pytest.raises(ValueError, match=r"can't be read \(.*CERTIFICATE_VERIFY_FAILED.*; 1 attempt\)"):
        RemoteFile(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    file = RemoteFile(url)
    assert file.read(1, 3) == CONTENT[1:4]
    assert len({request.connection for request in web.requests}) == 1
    http.close_idle()
    told: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=tunnel, args=(proxy, told), daemon=True).start()
        monkeypatch.setenv("https_proxy", f"http://me:pass@127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "")
        assert file.read(5, 3) == CONTENT[5:8]
        http.close_idle()
    assert told[0].startswith(f"CONNECT {urlsplit(url).netloc} ".encode())
    assert b"Proxy-Authorization: Basic bWU6cGFzcw==" in told[0]


def tunnel(proxy: socket.socket, told: list[bytes]) -> None:
    """Let one connection through to where it asks for."""
    client, _ = proxy.accept()
    told.append(client.recv(4096))
    host, _, port = told[0].split()[1].decode().rpartition(":")
    with client, socket.create_connection((host, int(port))) as server:
        client.sendall(b"HTTP/1.1 200 ready\r\n\r\n")
        sides = {client: server, server: client}
        while True:
            for side in select.select(list(sides), [], [])[0]:
                if not (content := side.recv(1 << 16)):
                    return
                sides[side].sendall(content)
