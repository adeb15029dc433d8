"""Copies of files at an address, made once and kept, so that training needs no network afterwards."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from filelock import FileLock
from tqdm import tqdm

from maxgan.data.files import METADATA, StoreError
from maxgan.data.index_cache import user_cache
from maxgan.data.remote import AT_ONCE, AbsentError, RemoteFile, plain
from maxgan.files import TEMPORARY_PREFIX, naming_full_disk

_KEPT_FREE_BYTES = 1 << 28


def downloads(cache: str | None) -> Path:
    """Return the folder of copies: as set, or maxgan/downloads in the user's cache folder."""
    return user_cache() / "downloads" if cache is None else Path(cache).expanduser().absolute()


def keep_copies(urls: list[str], cache: str | None = None) -> list[str]:
    """Return the paths of copies of files, after downloading those that aren't there yet, several at once.

    A file comes under a temporary name, which it loses when it is whole; a download that was stopped goes on where it
    was, unless the file has changed since. Of several processes one downloads and the others wait. A copy that is there
    is taken as it is, without a request: a run goes on with the images that it began with. `dataset.json` beside the
    files comes along.

    Raises StoreError where one can't be had, or where the disk has no room for them.
    """
    paths = [place(url, cache) for url in urls]
    if len(set(paths)) < len(paths):
        raise StoreError(
            f"data.source names {plain(next(url for url in urls if urls.count(url) > 1))} twice: name it once"
        )
    if all(path.exists() for path in paths):
        return [str(path) for path in paths]
    with ExitStack() as locks:
        for folder in sorted({path.parent for path in paths}):
            folder.mkdir(parents=True, exist_ok=True)
            locks.enter_context(FileLock(folder / ".lock"))
        missing = [(url, path) for url, path in zip(urls, paths, strict=True) if not path.exists()]
        if missing:
            _download_all(missing)
    return [str(path) for path in paths]


def place(url: str, cache: str | None) -> Path:
    """Return where the copy of a file lies: with those of the same folder of its server, under its own name."""
    parts = urlsplit(url)
    name = quote(unquote(parts.path.rpartition("/")[2]), safe="")
    folder = f"{parts.scheme}://{parts.netloc}{parts.path.rpartition('/')[0]}?{parts.query}"
    host = re.sub(r"[^\w.-]", "_", parts.hostname or "")
    return downloads(cache) / f"{host}-{hashlib.sha256(folder.encode()).hexdigest()[:12]}" / name


def _download_all(missing: list[tuple[str, Path]]) -> None:
    stop = threading.Event()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        files = list(pool.map(lambda pair: RemoteFile(pair[0]), missing))
    url, path = missing[0]
    wanted = [(file, path) for file, (_, path) in zip(files, missing, strict=True)]
    if not (beside := path.with_name(METADATA)).exists():
        with suppress(AbsentError):
            wanted.insert(0, (RemoteFile(urljoin(url, METADATA)), beside))
    total = sum(file.stamp[0] for file, _ in wanted)
    there = sum(part.stat().st_size for file, path in wanted if (part := _part(file, path)).exists())
    free = shutil.disk_usage(path.parent).free
    if total - there + _KEPT_FREE_BYTES > free:
        raise StoreError(
            f"{plain(url)} and the files with it take {total:,} bytes, and {path.parent} has {free:,} free: name "
            f"a folder on a larger disk in data.cache, or read them where they are by data.streaming true"
        )
    bar = tqdm(total=total, initial=there, unit="B", unit_scale=True, desc="download")
    with bar, ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for _ in pool.map(lambda pair: _download(pair[0], pair[1], bar, stop), wanted):
                pass
        finally:
            stop.set()


def _part(file: RemoteFile, path: Path) -> Path:
    """The unfinished copy of a file in this state; one of another state is of no use."""
    state = hashlib.sha256(repr(file.stamp).encode()).hexdigest()[:12]
    return path.with_name(f"{TEMPORARY_PREFIX}{state}-{path.name}")


def _download(file: RemoteFile, path: Path, bar: tqdm, stop: threading.Event) -> None:
    part, size = _part(file, path), file.stamp[0]
    for other in path.parent.glob(f"{TEMPORARY_PREFIX}????????????-{path.name}"):
        if other != part or not file.ranges or not file.stamp[1]:
            other.unlink()
    with naming_full_disk(path), part.open("ab") as stream:
        start = stream.tell()
        if start > size:
            stream.truncate(start := 0)
        for piece in file.pieces(start):
            if stop.is_set():
                return
            stream.write(piece)
            bar.update(len(piece))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, path)
