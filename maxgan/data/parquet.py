"""Rows of parquet files at an address, such as those of the Hugging Face Hub, read where they are.

The least that can be read of such a file is one column of a row group, which holds a hundred images or more, and most
files on the Hub compress it as a whole. To fetch that for every image would transfer each image a hundred times in a
pass. So the images of a row group are kept on disk when the first of them is needed: a training begins at once, asks
for each group once, and has the same stream of indices as from any other source.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from filelock import FileLock
from huggingface_hub import hf_hub_url
from tqdm import tqdm

from maxgan.data.download import downloads, place
from maxgan.data.files import MAX_FILE_BYTES, StoreError, suffix
from maxgan.data.huggingface import HINT, Rows, library, parts_of, plain_problems
from maxgan.data.index_cache import keep, load
from maxgan.data.remote import AT_ONCE, RemoteFile, Window
from maxgan.files import atomic_path

_BAR_AFTER_SECONDS = 2
# Of all processes that read a data set: each holds a row group in memory, often 100 MB.
_FETCHED_AT_ONCE = 8
_MAX_GROUP_BYTES = 1 << 31
_CONVERTED = "refs/convert/parquet"
_DAMAGED = "copy or make it anew"


class StreamedRows(Rows):
    """The rows of parquet files, of which only the row groups that are needed are fetched, and kept.

    Args:
        name: what to call them.
        urls: their addresses, in their order.
        labels: use labels where there are any, which reads that column of all files now.
        skip: fetch all images now, and leave out those that can't be read.
        cache: see `downloads`.
        features: the types of the columns; None takes what the first file says.

    Raises ValueError where the library `datasets` is missing, and StoreError where the files can't be used.
    """

    streamed = True
    looked_at = 1  # each would be a row group

    def __init__(
        self,
        name: str,
        urls: list[str],
        labels: bool = True,
        skip: bool = False,
        cache: str | None = None,
        features: Any = None,
    ) -> None:
        self.name = name
        datasets = library(name)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(_Table, urls, [cache] * len(urls))
            self._tables = list(tqdm(found, "index", len(urls), unit="file", delay=_BAR_AFTER_SECONDS, leave=False))
            rows = [count for table in self._tables for count in table.rows]
            if not sum(rows):
                raise StoreError(f"{name} has no rows: give a dataset that does")
            if features is None:
                features = datasets.Features.from_arrow_schema(self._tables[0].footer.schema.to_arrow_schema())

            def values_of(column: str) -> np.ndarray:
                parts = pool.map(lambda table: table.numbers(column), self._tables)
                bar = tqdm(parts, "labels", len(urls), unit="file", delay=_BAR_AFTER_SECONDS, leave=False)
                return np.concatenate(list(bar))

            self._set_columns(features, labels, values_of)
        groups = [(t, g) for t, table in enumerate(self._tables) for g in range(len(table.rows))]
        self._groups = np.array(groups, dtype=np.int64).reshape(-1, 2)
        self._ends = np.cumsum(rows)
        sizes = [size for table in self._tables for size in table.sizes(self._column)]
        self.note = (
            f"read in row groups of {np.mean(sizes) / 1e6:.1f} MB, which are kept in {downloads(cache)} "
            f"({sum(sizes) / 1e9:.1f} GB when all have been read)"
        )
        if skip:
            self._leave_out()

    def _count(self) -> int:
        return int(self._ends[-1])

    def _stored(self, row: int) -> bytes | None:
        group = int(np.searchsorted(self._ends, row, side="right"))
        table, number = (int(value) for value in self._groups[group])
        before = int(self._ends[group - 1]) if group else 0
        return self._tables[table].value(self._column, number, row - before)

    def stamps(self) -> list[str]:
        return [table.state for table in self._tables]

    def _content(self) -> Iterator[bytes]:
        """What the servers call the states of the files, and the column that is read of them."""
        yield from (f"{self._column} of {table.state}".encode() for table in self._tables)
        yield from (name.encode() for name in self.skipped)


class _Table:
    """A parquet file at an address; its footer is read now, or taken from what was kept."""

    def __init__(self, url: str, cache: str | None) -> None:
        import pyarrow.parquet as pq

        self._file = RemoteFile(url)
        size, told = self._file.stamp
        if not told:
            raise StoreError(
                f"{self._file.path} can't be read where it is, as its server does not tell when it changes: set "
                f"data.streaming false, which keeps a copy"
            )
        self.state = f"{self._file.path} {size} {told}"
        digest = hashlib.sha256(self.state.encode()).hexdigest()[:12]
        path = place(url, cache)
        self._folder = path.with_name(f"{path.stem}-{digest}")
        kept = load(self._file.path, self._file.stamp) or {}
        self.footer = _unpack(kept.get("footer"))
        if self.footer is None:
            with plain_problems(self._file.path, _DAMAGED):
                self.footer = pq.read_metadata(Window(self._file))
            keep(self._file.path, self._file.stamp, {"footer": _pack(self.footer)})
        groups = (self.footer.row_group(number) for number in range(self.footer.num_row_groups))
        self.rows = [group.num_rows for group in groups]
        if sum(self.rows) > size:  # which would unpack to any amount of memory
            raise StoreError(f"{self._file.path} says that {size:,} bytes hold {sum(self.rows):,} images: {_DAMAGED}")
        numbers = kept.get("numbers")
        self._numbers = numbers if isinstance(numbers, dict) else {}

    def _leaf(self, column: str) -> int:
        """The number of the column that holds the files of the images: it is one itself, or has a field `bytes`."""
        paths = [self.footer.schema.column(number).path for number in range(self.footer.num_columns)]
        found = [number for number, path in enumerate(paths) if path in (column, f"{column}.bytes")]
        if not found:
            raise StoreError(f"{self._file.path} has no images in a column {column}: give files of one kind")
        return found[0]

    def sizes(self, column: str) -> list[int]:
        """What each row group takes to be read."""
        leaf = self._leaf(column)
        groups = (self.footer.row_group(number) for number in range(self.footer.num_row_groups))
        return [group.column(leaf).total_compressed_size for group in groups]

    def numbers(self, column: str) -> np.ndarray:
        """A column of whole numbers, -1 where there are none; it and the footer are kept for the next start."""
        with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
            known = np.array(self._numbers[column], dtype=np.int64)
            if known.shape == (sum(self.rows),):
                return known
        with plain_problems(self._file.path, _DAMAGED):
            table = self._open().read(columns=[column], use_threads=False)
            numbers = table[column].fill_null(-1).to_pylist()
        kept = {"footer": _pack(self.footer), "numbers": {column: numbers}}
        keep(self._file.path, self._file.stamp, kept)
        return np.array(numbers, dtype=np.int64)

    def value(self, column: str, group: int, row: int) -> bytes | None:
        """What a row holds, None if it holds nothing; its group is fetched if it isn't there."""
        # Not by the column's name, which the file may have chosen to lead elsewhere.
        path = self._folder / f"{self._leaf(column)}-{group:05}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.parent.with_name(f".lock-{group % _FETCHED_AT_ONCE}")):
                if not path.exists():
                    self._fetch(column, group, path)
        with path.open("rb") as stream:
            stream.seek(8 * row)
            ends = np.frombuffer(stream.read(16).ljust(16, b"\xff"), dtype="<i8").tolist()
            if 0 <= ends[0] <= ends[1] <= ends[0] + MAX_FILE_BYTES:
                stream.seek(ends[0])
                content = stream.read(ends[1] - ends[0])
                if len(content) == ends[1] - ends[0]:
                    return content or None
        raise StoreError(f"{path} is damaged: remove it and start again")

    def _fetch(self, column: str, group: int, path: Path) -> None:
        """Keep the values of a row group: where each begins and the last ends in the file, int64, and then they."""
        leaf = self.footer.row_group(group).column(self._leaf(column))
        if max(leaf.total_compressed_size, leaf.total_uncompressed_size) > _MAX_GROUP_BYTES:
            raise StoreError(
                f"{self._file.path} has row groups of {leaf.total_uncompressed_size:,} bytes, more than the "
                f"{_MAX_GROUP_BYTES:,} that are held in memory: set data.streaming false, or write it with smaller ones"
            )
        with plain_problems(self._file.path, _DAMAGED):
            table = self._open().read_row_group(group, columns=[leaf.path_in_schema], use_threads=False)
            values = [value.get("bytes") if isinstance(value, dict) else value for value in table[column].to_pylist()]
            contents = [value or b"" for value in values]
        if len(contents) != self.rows[group]:
            raise StoreError(f"{self._file.path} has {len(contents)} rows in a group of {self.rows[group]}: {_DAMAGED}")
        ends = np.cumsum([8 * (len(contents) + 1), *map(len, contents)])
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            stream.write(ends.astype("<i8").tobytes())
            stream.writelines(contents)

    def _open(self) -> Any:
        import pyarrow.parquet as pq

        return pq.ParquetFile(Window(self._file), metadata=self.footer)


def _pack(footer: Any) -> str:
    stream = io.BytesIO()
    footer.write_metadata_file(stream)
    return base64.b64encode(stream.getvalue()).decode()


def _unpack(text: Any) -> Any:
    """A footer that was kept; None if there is none that is sound."""
    import pyarrow.parquet as pq

    with contextlib.suppress(Exception):  # whatever damaged bytes make the library raise
        return pq.read_metadata(io.BytesIO(base64.b64decode(text)))
    return None


def hub_files(name: str) -> tuple[list[str], Any]:
    """The addresses of the files of a split on the Hugging Face Hub, and the types of its columns if it tells them.

    Where they are neither parquet files nor shards, those of the Hub's own conversion to parquet.

    Raises ValueError where the library `datasets` is missing, and StoreError where there are none.
    """
    datasets = library(name)
    repository, config, split = parts_of(name)
    with plain_problems(name, HINT):
        for revision in (None, _CONVERTED):
            builder = datasets.load_dataset_builder(repository, config, revision=revision)
            splits = builder.config.data_files or {}
            if split not in splits:
                raise ValueError(f"it has no split {split}, but {', '.join(map(str, splits)) or 'none'}")
            found = [re.fullmatch(r"hf://datasets/([^@]+)@([^/]+)/(.+)", file) for file in splits[split]]
            files = [match.groups() for match in found if match]
            kinds = {suffix(path) for _, _, path in files}
            if len(files) == len(found) and kinds in ({".parquet"}, {".tar"}):
                break
        else:
            raise ValueError("it has neither parquet files nor shards")
    urls = [
        hf_hub_url(repository, path, repo_type="dataset", revision=unquote(revision))
        for repository, revision, path in files
    ]
    return urls, builder.info.features
