"""What lies where in tar shards, kept from one start to the next: to read the headers of ImageNet takes minutes.

That of a file is kept under its size and time, that of an address under its size and what its server calls its state.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from maxgan.data.remote import is_address
from maxgan.files import atomic_path

VERSION = 1
# A file that was written to so lately might be again without its time telling.
RESTED_SECONDS = 2


class Member(NamedTuple):
    """A file in a shard: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


Index = tuple[list[Member], dict[str, int]]
"""The files of a shard, and the class of each key that has one."""
Stamp = tuple[int, int | str]
"""Size of a shard in bytes, and the time of its last change in nanoseconds, or what its server calls its state."""


def user_cache() -> Path:
    """Return the folder for what is worth keeping of this user's data sets."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "maxgan"


def cache_file(shard: str) -> Path:
    """Return the file that the index of a shard is kept in, below maxgan in the user's cache folder."""
    name = shard if is_address(shard) else os.path.abspath(shard)
    return user_cache() / "shards" / f"{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:32]}.json"


@contextlib.contextmanager
def one_at_a_time(shard: str) -> Iterator[None]:
    """Let one process make an index while others wait for it; no one waits where nothing can be kept."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = cache_file(shard)
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(file.with_suffix(".lock")))
        yield


def load(file: str, stamp: Stamp) -> dict[str, Any] | None:
    """Return what was kept of a file with this stamp; None if there is nothing that is sound."""
    try:
        kept = json.loads(cache_file(file).read_text())
        return kept if kept["version"] == VERSION and kept["stamp"] == list(stamp) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(file: str, stamp: Stamp, content: dict[str, Any]) -> None:
    """Keep something of a file that had this stamp before it was read; nothing happens where it can't be."""
    state = stamp[1]
    if not state or (isinstance(state, int) and time.time() - state / 1e9 < RESTED_SECONDS):
        return
    text = json.dumps({"version": VERSION, "shard": file, "stamp": stamp, **content})
    with contextlib.suppress(OSError), atomic_path(cache_file(file)) as temporary:
        temporary.write_text(text)


def load_index(shard: str, stamp: Stamp) -> Index | None:
    """Return the kept index of a shard with this stamp; None if there is none that is sound."""
    kept = load(shard, stamp)
    if kept is None:
        return None
    try:
        members = [Member(str(name), int(offset), int(size)) for name, offset, size in kept["members"]]
        classes = {str(key): int(label) for key, label in kept["classes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    sound = all(0 <= member.offset <= member.offset + member.size <= stamp[0] for member in members)
    return (members, classes) if sound else None


def keep_index(shard: str, stamp: Stamp, index: Index) -> None:
    """Keep the index of a shard that had this stamp before it was read; nothing happens where it can't be."""
    keep(shard, stamp, {"members": index[0], "classes": index[1]})
