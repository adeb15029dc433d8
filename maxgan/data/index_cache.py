"""What lies where in tar shards, kept from one start to the next: to read the headers of ImageNet takes minutes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

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


def cache_file(shard: str) -> Path:
    """Return the file that the index of a shard is kept in, below maxgan in the user's cache folder."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "maxgan" / "shards"
    return folder / f"{hashlib.sha256(os.path.abspath(shard).encode(errors='surrogateescape')).hexdigest()[:32]}.json"


def load_index(shard: str, stamp: tuple[int, int]) -> Index | None:
    """Return the kept index of a shard with this size and time in nanoseconds; None if there is none that is sound."""
    try:
        kept = json.loads(cache_file(shard).read_text())
        if kept["version"] != VERSION or kept["stamp"] != list(stamp):
            return None
        members = [Member(str(name), int(offset), int(size)) for name, offset, size in kept["members"]]
        classes = {str(key): int(label) for key, label in kept["classes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    sound = all(0 <= member.offset <= member.offset + member.size <= stamp[0] for member in members)
    return (members, classes) if sound else None


def keep_index(shard: str, stamp: tuple[int, int], index: Index) -> None:
    """Keep the index of a shard that had this size and time before it was read; nothing happens where it can't be."""
    if time.time() - stamp[1] / 1e9 < RESTED_SECONDS:
        return
    text = json.dumps({"version": VERSION, "shard": shard, "stamp": stamp, "members": index[0], "classes": index[1]})
    with contextlib.suppress(OSError), atomic_path(cache_file(shard)) as temporary:
        temporary.write_text(text)
