"""Hugging Face datasets: parquet files at hand, or by name from the Hub, by the optional library `datasets`.

The library keeps the rows as Arrow files in its cache (HF_HOME) and maps them into memory, so that any row is one read
and the stream of indices is the same as from any other source. Its streaming mode is not used: it mixes rows in a
buffer, and going on from image N would need all rows before N again. What reads rows where they are is `parquet.py`.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maxgan.data.base import SKIPPING, ImageSource, decode, picture_size, readable_ones
from maxgan.data.files import StoreError, Unchanged
from maxgan.data.labels import check_numbers, numbers

PREFIX = "hf:"
HINT = "give hf:OWNER/NAME[@CONFIG][:SPLIT], and see the network"
_OLDEST = 4
"""Major version of `datasets` from which on a dataset can't bring code of its own."""
_IMAGE_COLUMNS = ("image", "img", "images", "jpg", "png")
_LABEL_COLUMNS = ("label", "labels", "cls", "class")


class Rows(ImageSource):
    """The rows of a table, their images in one column and, if there are classes, their numbers in another.

    Images are in the column of type Image (`image` if there are several) or of bytes that is called so; classes in the
    first column of type ClassLabel (`label` if it is one), which also names them, or of integers that is called so.
    """

    _kept: np.ndarray | None = None
    """The rows whose images can be read, if others are left out."""

    @abstractmethod
    def _count(self) -> int:
        """The number of rows."""

    def __len__(self) -> int:
        return self._count() if self._kept is None else len(self._kept)

    def _row(self, index: int) -> int:
        return index if self._kept is None else int(self._kept[index])

    def _leave_out(self) -> None:
        """Decode all images, and leave out those that can't be read."""
        readable = np.array(readable_ones(self.read, len(self)))
        self.skipped = tuple(self.where(row) for row in np.flatnonzero(~readable).tolist())
        if not readable.any():
            raise ValueError(
                f"{self.name} contains no image that can be read, first {self.skipped[0]}: repair the files"
            )
        self.labels = None if self.labels is None else self.labels[readable]
        self._kept = np.flatnonzero(readable)

    def _set_columns(self, features: Any, labels: bool, values_of: Callable[[str], np.ndarray]) -> None:
        """Find the columns; `values_of` reads the numbers in one, -1 where there are none."""
        self._column = _image_column(self.name, features)
        column = label_column(features) if labels else None
        if column is None:
            return
        values = values_of(column)
        self.labels = check_numbers(values, self.name, lambda i: f"row {i}")
        if self.labels is None:
            return
        names = getattr(features[column], "names", None) or ()
        if names and len(names) <= self.labels.max():
            raise StoreError(f"{self.name} has {len(names)} class names, but a class {self.labels.max()}: mend it")
        self.class_names = tuple(names) or numbers(self.labels)
        self.origin = f"column {column}"

    @abstractmethod
    def _stored(self, row: int) -> bytes | None:
        """The file of one image, None if the row has none."""

    def _bytes(self, index: int) -> bytes:
        content = self._stored(self._row(index))
        if content is None:
            raise ValueError(
                f"{self.where(index)} holds no image, at most a path, which is not followed: embed the images; "
                f"{SKIPPING}"
            )
        return content

    def _content(self) -> Iterator[bytes]:
        return map(self._bytes, range(len(self)))

    def read(self, index: int) -> Image.Image:
        return decode(self._bytes(index), self.where(index))

    def size(self, index: int) -> tuple[int, int]:
        return picture_size(io.BytesIO(self._bytes(index)), self.where(index))

    def where(self, index: int) -> str:
        return f"{self.name}[{self._row(index)}]"


class HuggingFace(Rows):
    """The rows of a dataset, kept by the library.

    Args:
        name: what to call it; `hf:OWNER/NAME[@CONFIG][:SPLIT]` (the split being `train` if left out) unless `files`.
        files: parquet files.
        labels: use labels where there are any.
        skip: read all images now, and leave out those that can't be.

    Raises ValueError where the library is missing, and StoreError where the dataset can't be used.
    """

    def __init__(self, name: str, files: list[str] | None = None, labels: bool = True, skip: bool = False) -> None:
        self.name = name
        self._stamps = [Unchanged(file).text for file in files or ()]
        rows = _load(name, files)
        if not len(rows):
            raise StoreError(f"{name} has no rows: give a dataset that does")
        arrow = rows.with_format("arrow")
        self._set_columns(rows.features, labels, lambda column: np.asarray(arrow[column][:].fill_null(-1)))
        from datasets import Image as ImageFeature

        self._rows = rows.select_columns([self._column]).cast_column(self._column, ImageFeature(decode=False))
        if skip:
            self._leave_out()

    def stamps(self) -> list[str]:
        return self._stamps

    def _count(self) -> int:
        return len(self._rows)

    def _stored(self, row: int) -> bytes | None:
        return (self._rows[row][self._column] or {}).get("bytes")


def _load(name: str, files: list[str] | None) -> Any:
    """The rows, on disk; raises ValueError in one sentence for whatever goes wrong."""
    datasets = library(name)
    with plain_problems(name, "check the files" if files is not None else HINT):
        if files is not None:
            return datasets.load_dataset("parquet", data_files=files, split="train")
        repository, config, split = parts_of(name)
        return datasets.load_dataset(repository, config, split=split)


def parts_of(name: str) -> tuple[str, str | None, str]:
    """Repository, configuration and split that `hf:OWNER/NAME[@CONFIG][:SPLIT]` names."""
    rest, _, split = name.removeprefix(PREFIX).partition(":")
    repository, _, config = rest.partition("@")
    return repository, config or None, split or "train"


def library(name: str) -> Any:
    """The library `datasets`, for a source; raises ValueError where it is missing or too old."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"data.source {name} needs the library datasets: pip install 'datasets>=4'") from error
    if int(datasets.__version__.split(".")[0]) < _OLDEST:
        raise ValueError(
            f"data.source {name} needs datasets {_OLDEST} or newer, not {datasets.__version__}, which would run code "
            f"that comes with a dataset: pip install -U datasets"
        )
    return datasets


@contextmanager
def plain_problems(name: str, hint: str) -> Iterator[None]:
    """Say in one sentence what goes wrong: the library raises errors of its own, of pyarrow and of the network."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        problem = " ".join(str(error).split())[:300]
        raise StoreError(f"data.source {name} can't be opened ({type(error).__name__}: {problem}): {hint}") from error


def label_column(features: Any) -> str | None:
    """The column of the classes, if there is one."""
    from datasets import ClassLabel

    typed = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    plain = [column for column in _LABEL_COLUMNS if "int" in str(getattr(features.get(column), "dtype", ""))]
    return next((column for column in _LABEL_COLUMNS if column in typed), next(iter(typed + plain), None))


def _image_column(name: str, features: Any) -> str:
    from datasets import Image as ImageFeature

    typed = [column for column, feature in features.items() if isinstance(feature, ImageFeature)]
    if len(typed) == 1:
        return typed[0]
    # Files from other writers have bytes without a type.
    found = [column for column in _IMAGE_COLUMNS if column in (typed or features)]
    if not found:
        text = ", ".join(list(features)[:8])
        raise StoreError(f"{name} has no single column of images among {text}: name it {_IMAGE_COLUMNS[0]}")
    feature = features[found[0]]
    if not typed and "binary" not in str(getattr(feature, "dtype", feature)) and "bytes" not in str(feature):
        raise StoreError(f"{name}: column {found[0]} holds {feature}, and not the bytes of image files: convert it")
    return found[0]


def one_split(files: list[str], where: str) -> list[str]:
    """The parquet files of a folder; raises StoreError where their names tell that they are of several splits."""
    splits = sorted({Path(file).name.split(".")[0].split("-")[0] for file in files})
    if len(splits) > 1:
        raise StoreError(f"{where} holds {', '.join(splits[:4])}: name one by a pattern such as {where}/{splits[0]}*")
    return files
