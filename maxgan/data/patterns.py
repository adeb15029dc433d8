"""Names that stand for several files: `train-{000..012}.tar`, `train-*.tar`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from glob import glob

from maxgan.data.files import StoreError


def is_pattern(path: str) -> bool:
    """Whether a path stands for several files."""
    return any(mark in path for mark in "*?[{") and not os.path.exists(path)


def find_files(pattern: str) -> list[str]:
    """The files that a pattern stands for: `{000..012}` and `{a,b}` name files that must all be there, `*` any.

    Raises StoreError naming a file that is missing; behind `*`, numbers such as `00003-of-00010` tell.
    """
    found: list[str] = []
    for path in braces(pattern):
        files = sorted(glob(path)) if any(mark in path for mark in "*?[") else [path]
        if not files or not os.path.exists(files[0]):
            raise StoreError(f"{path} is missing: put it back, or correct data.source {pattern}")
        found += files
    if any(mark in pattern for mark in "*?["):
        _check_complete(found)
    return found


def braces(pattern: str) -> Iterator[str]:
    """What `{000..012}` and `{a,b}` in a name stand for, in their order."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    first, last, choices = found.groups()
    texts: Iterable[str]
    if choices is None:
        texts = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    else:
        texts = choices.split(",")
    for text in texts:
        yield from braces(pattern[: found.start()] + text + pattern[found.end() :])


def _check_complete(files: list[str]) -> None:
    """Raise StoreError where names such as `train-00003-of-00010.tar` tell that others are missing."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for file in files:
        if match := re.fullmatch(r"(.*-)(\d+)-of-(\d+)(\.\w+)", file):
            before, number, count, after = match.groups()
            found.setdefault((before, count, after), set()).add(number)
    for (before, count, after), present in found.items():
        if len(present) < int(count):
            width = len(min(present))
            missing = next(name for i in range(int(count)) if (name := f"{i:0{width}}") not in present)
            raise StoreError(
                f"{before}{missing}-of-{count}{after} is missing: put it back, or name the shards that you want, as in "
                f"{{000..002}}"
            )
