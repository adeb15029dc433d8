"""What the labels of image files are: from `dataset.json`, class folders, or the table of ImageNet's validation images;
and how classes are called."""

from __future__ import annotations

import itertools
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from maxgan.data.files import METADATA, Folder, Store, StoreError

MAX_CLASSES = 100_000
NAME_FILES = ("class_names.txt", "LOC_synset_mapping.txt", "synset_words.txt")
"""Files that tell what class folders are called, a line each: `n01440764 tench, Tinca tinca`."""
SOLUTION = "LOC_val_solution.csv"
"""The classes of ImageNet's validation images, which lie in one folder: `ILSVRC2012_val_00000001,n01751748 111 ...`."""
KAGGLE = ("ILSVRC", "Data", "CLS-LOC")
"""Folders between ImageNet's images and its tables, as Kaggle's archive unpacks."""


class Labels(NamedTuple):
    """The class of each image: `values` int64 `(N,)` or None, one name a class, and where they were found."""

    values: np.ndarray | None
    class_names: tuple[str, ...]
    origin: str


class Metadata(NamedTuple):
    """The content of `dataset.json`, the folder in which it lies (empty, or ending in /), and what to call it."""

    content: dict[str, Any]
    root: str
    where: str


def find_metadata(store: Store, files: list[str], images: list[str]) -> Metadata | None:
    """The outermost `dataset.json` on the way to the images, if there is one; its paths are relative to where it lies.

    Raises ValueError where it is no JSON object.
    """
    shared, present = _shared_folders(images), set(files)
    for depth in range(len(shared) + 1):
        root = "".join(f"{part}/" for part in shared[:depth])
        if root + METADATA in present:
            return Metadata(_read_object(store, root + METADATA), root, f"{store.path}/{root}{METADATA}")
    return None


def _read_object(store: Store, name: str) -> dict[str, Any]:
    where = f"{store.path}/{name}"
    try:
        with store.open(name) as stream:
            content = json.load(stream)
    except StoreError:
        raise
    except (ValueError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{where} can't be read as JSON ({error}): repair or remove it") from error
    if not isinstance(content, dict):
        raise ValueError(f'{where} must hold an object such as {{"labels": [["a.png", 0], ...]}}')
    return content


def find_labels(store: Store, files: list[str], images: list[str], metadata: Metadata | None) -> Labels:
    """Labels from `dataset.json` if there is one (`{"labels": null}` means none), from class folders, or from SOLUTION.

    Folders that all images share are left out of account, as archives often wrap their content in one. Class folders
    are the first level below, where every image stands in one. They are called as one of NAME_FILES says, if it lies
    beside them, in the folder around a plain folder, or where Kaggle's ImageNet has it; SOLUTION is sought there too.

    Args:
        store: where class names are read.
        files: the names of all files.
        images: the names of the images among them.
        metadata: from `find_metadata`.

    Raises ValueError where `dataset.json` or SOLUTION and the images, or class names and folders, don't match.
    """
    if metadata is not None:
        return _from_metadata(metadata, set(files), images)
    shared = _shared_folders(images)
    folders = [name.split("/")[len(shared) : -1][:1] for name in images]
    if not all(folders):
        return _from_solution(store, set(files), shared, images)
    names = [folder[0] for folder in folders]
    class_folders = _sort_classes(set(names))
    number = {name: i for i, name in enumerate(class_folders)}
    class_names = _called(store, set(files), shared, class_folders)
    return Labels(np.array([number[name] for name in names], dtype=np.int64), class_names, "class folders")


def _called(store: Store, present: set[str], shared: list[str], folders: tuple[str, ...]) -> tuple[str, ...]:
    """What one of NAME_FILES says of the class folders, in their order; their own names where there is no such file."""
    found = _table(store, present, shared, NAME_FILES)
    if found is None:
        return folders
    where, lines = found
    called = {folder: text.strip() for folder, _, text in (line.strip().partition(" ") for line in lines)}
    missing = [folder for folder in folders if not called.get(folder)]
    if missing:
        raise ValueError(
            f"{where} has no line for {len(missing)} of {len(folders)} class folders, the first being "
            f"{missing[0]}: add `{missing[0]} its name`, or remove the file"
        )
    # ImageNet has two cranes.
    count = Counter(called[folder] for folder in folders)
    return tuple(called[folder] if count[called[folder]] == 1 else f"{called[folder]} ({folder})" for folder in folders)


def _table(store: Store, present: set[str], shared: list[str], names: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """What to call the first of some files that lies on the way to the images or around them, and its lines."""
    roots = ["".join(f"{part}/" for part in shared[:depth]) for depth in range(len(shared) + 1)]
    found: list[tuple[Store, str]] = [
        (store, root + name) for root in roots for name in names if root + name in present
    ]
    if not found and isinstance(store, Folder):
        around = Path(store.path).resolve().parent
        places = [around, around.parents[2]] if around.parts[-3:] == KAGGLE else [around]
        found = [(Folder(str(place)), name) for place in places for name in names if (place / name).is_file()]
    if not found:
        return None
    place, name = found[0]
    with place.open(name) as stream:
        return f"{place.path}/{name}", stream.read().decode("utf-8", errors="replace").splitlines()


def _from_solution(store: Store, present: set[str], shared: list[str], images: list[str]) -> Labels:
    """The classes that SOLUTION gives, numbered as the class folders of the training images are; none without it."""
    table = _table(store, present, shared, (SOLUTION,))
    if table is None:
        return Labels(None, (), "")
    where, lines = table
    rows = (re.match(r"([^,]+),(n\d{8})\b", line) for line in lines)
    class_of = {row[1]: row[2] for row in rows if row}
    found = [class_of.get(PurePosixPath(name).stem) for name in images]
    classes = tuple(sorted(set(class_of.values())))
    number = {name: i for i, name in enumerate(classes)}
    values = np.array([-1 if name is None else number[name] for name in found], dtype=np.int64)
    labels = check_numbers(values, where, lambda i: images[i])
    if labels is None:
        return Labels(None, (), "")
    return Labels(labels, _called(store, present, shared, classes), SOLUTION)


def _shared_folders(names: list[str]) -> list[str]:
    """The folders that lead to every one of the files."""
    first, last = (name.split("/")[:-1] for name in (min(names), max(names)))
    return [a for a, b in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]


def _sort_classes(names: set[str]) -> tuple[str, ...]:
    """By value if all are numbers (so that 10 comes after 9), by name otherwise."""
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _from_metadata(metadata: Metadata, present: set[str], images: list[str]) -> Labels:
    content, root, where = metadata
    pairs = content.get("labels")
    if pairs is None:
        return Labels(None, (), METADATA)
    label_of: dict[str, int] = {}
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        match pair:
            case [str(name), int(label)] if not isinstance(label, bool) and 0 <= label < MAX_CLASSES:
                name = root + name.replace("\\", "/")
            case _:
                text = json.dumps(pair)[:80]
                raise ValueError(
                    f"{where}: each of labels must be [path, class number from 0 to {MAX_CLASSES - 1}], unlike {text}"
                )
        if name not in present:
            raise ValueError(f"{where} names {name}, which is not there: make the labels match the files")
        if label_of.setdefault(name, label) != label:
            raise ValueError(f"{where} gives {name} two labels, {label_of[name]} and {label}: keep one")
    missing = [name for name in images if name not in label_of]
    if missing:
        raise _unlabelled(where, len(missing), len(images), missing[0])
    values = np.array([label_of[name] for name in images], dtype=np.int64)
    own_names = class_names(metadata, int(values.max()) + 1)
    return Labels(values, own_names or _folder_names(values, [name[len(root) :] for name in images]), METADATA)


def class_names(metadata: Metadata, least: int) -> tuple[str, ...]:
    """The class names that `dataset.json` gives, empty if it gives none.

    Raises ValueError where they are fewer than `least`, or no names.
    """
    names = metadata.content.get("class_names")
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{metadata.where}: class_names must be a list of names")
    if not least <= len(names) <= MAX_CLASSES:
        raise ValueError(f"{metadata.where} has {len(names)} class_names for {least} classes: give one a class")
    return tuple(names)


def _folder_names(values: np.ndarray, images: list[str]) -> tuple[str, ...]:
    """The names of the first folders, where they and the labels are the same partition; the numbers otherwise."""
    plain = numbers(values)
    pairs = {(int(label), name.split("/")[0]) for label, name in zip(values, images, strict=True) if "/" in name}
    one_to_one = len(pairs) == len({label for label, _ in pairs}) == len({folder for _, folder in pairs})
    if one_to_one and len(pairs) == len(plain) and all("/" in name for name in images):
        return tuple(folder for _, folder in sorted(pairs))
    return plain


def check_numbers(values: np.ndarray, where: str, name_of: Callable[[int], str]) -> np.ndarray | None:
    """Class numbers int64 `(N,)`, or None if all are -1, as sets without labels have them.

    Args:
        values: whole numbers `(N,)`.
        where: what to call the set in a message.
        name_of: what to call an image in it.

    Raises ValueError for numbers out of range, and where only some are -1.
    """
    if (values == -1).all():
        return None
    if len(absent := np.flatnonzero(values == -1)):
        raise _unlabelled(where, len(absent), len(values), name_of(int(absent[0])))
    if len(odd := np.flatnonzero((values < 0) | (values >= MAX_CLASSES))):
        raise ValueError(
            f"{where} gives {name_of(int(odd[0]))} the class {values[odd[0]]}: classes are numbers from 0 to "
            f"{MAX_CLASSES - 1}"
        )
    return values.astype(np.int64)


def numbers(values: np.ndarray) -> tuple[str, ...]:
    """Names for classes that have none."""
    return tuple(str(i) for i in range(int(values.max()) + 1))


def same_numbers(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return, for each class of one set, the number that the class of the same name has in another set.

    Two sets number their class folders apart, and where one lacks a class, all that follow have other numbers.

    Args:
        names: the classes of the one set.
        known: those of the other.

    Returns:
        None where the numbers themselves are all there is to go by: a set has no names but numbers from 0 on, or none.

    Raises:
        ValueError: for a name that the other set doesn't have.
    """
    if not known or names == tuple(map(str, range(len(names)))):
        return None
    number_of = {name: number for number, name in enumerate(known)}
    missing = [name for name in names if name not in number_of]
    if not missing:
        return tuple(number_of[name] for name in names)
    if known == tuple(map(str, range(len(known)))):
        return None
    raise ValueError(f"{missing[0]!r} is none of the classes {', '.join(known[:5])}{', ...' if known[5:] else ''}")


def _unlabelled(where: str, missing: int, count: int, first: str) -> ValueError:
    return ValueError(
        f"{where} has no label for {missing} of {count} images, the first being {first}: add them, or train without "
        f"classes by data.labels=false"
    )
