"""Decode, cut and resize a set of images once, into a zip or tar shards.

The work is cut into parts of so many images of the source. A part appears whole or not at all, first its images, then
its report, so that a killed pack goes on with the parts that have no report. A tar shard is a part; a zip is joined of
them at the end. Every byte depends on the source and the settings alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from maxgan.cli import available_cores
from maxgan.config import PackConfig, differences
from maxgan.data.base import ImageSource
from maxgan.data.content import combine, image_digest
from maxgan.data.files import METADATA, StoreError
from maxgan.data.loader import handed_over, keep, naming_lost_workers, start_worker
from maxgan.data.shards import CLASS_SUFFIX
from maxgan.data.sources import OnError, open_source
from maxgan.data.transforms import cut, set_channels, to_array
from maxgan.files import atomic_path, naming_full_disk, remove_leftovers, replace_folder

_FREE = ("source", "dest", "on_error", "workers", "cache")  # may differ when a pack goes on
_SETTINGS = "settings.json"
_NAMED = 10


@dataclass(frozen=True)
class Packed:
    """What a pack has made: the number of images, their content hash, and (file, problem) of each that was skipped."""

    images: int
    content_sha256: str
    skipped: tuple[tuple[str, str], ...]

    def describe(self, dest: str) -> str:
        """A line for the result, and one for each of the first files that were left out."""
        lines = [f"{dest}: {self.images:,} images, content {self.content_sha256[:16]}, {len(self.skipped):,} skipped"]
        lines += [f"  skipped {problem}" for _, problem in self.skipped[:_NAMED]]
        if len(self.skipped) > _NAMED:
            lines.append(f"  and {len(self.skipped) - _NAMED:,} more: all are listed in its {METADATA}")
        return "\n".join(lines)


def pack(config: PackConfig) -> Packed:
    """Make config.dest; go on where a killed pack of the same settings was stopped; do nothing if it is there.

    Until it is whole, the parts lie in a folder `<dest>.parts` beside it. `dataset.json`, in the zip or beside the
    shards, holds the labels (which shards have as `.cls` files), class names, settings, content hash, and what was
    skipped.

    Raises:
        ValueError: if config.dest is something else, or was begun with other settings; for an image that can't be read
            unless config.on_error is `skip`; and where nothing is left to write.
        OSError: if the disk is full, or a decoding process was killed.
    """
    dest = Path(config.dest).expanduser().absolute()
    zipped = dest.suffix.lower() == ".zip"
    if dest.suffix and not zipped:
        raise ValueError(f"dest {config.dest} must end in .zip, or be a folder for shards, whose name has no ending")
    if Path(config.source).expanduser().absolute() in dest.parents:
        raise ValueError(f"dest {config.dest} lies in the source {config.source}: name a place outside")
    on_error: OnError = "raise" if config.on_error == "raise" else "later"
    source = open_source(config.source, config.labels, on_error, config.streaming, config.cache)
    channels = _channels(source, config) if config.channels is None else config.channels
    settings = _settings(source, config, channels)
    work = dest.with_name(f"{dest.name}.parts")
    if (done := _finished(config, dest, zipped, settings)) is not None:
        shutil.rmtree(work, ignore_errors=True)  # its maker was killed before that
        return done
    with _work_folder(work, settings, config):
        parts = _Parts(source, config, channels, work, zipped)
        _make(parts, config)
        return _finish(parts, dest, settings)


def _settings(source: ImageSource, config: PackConfig, channels: int) -> dict[str, Any]:
    """What the output depends on, and a digest that tells whether the source is another or has changed."""
    digest = hashlib.sha256(b"" if source.labels is None else source.labels.tobytes())
    for index in range(len(source)):
        digest.update(source.where(index).removeprefix(config.source).encode(errors="surrogateescape"))
    for stamp in source.stamps():
        digest.update(stamp.encode())
    kept = {key: value for key, value in asdict(config).items() if key not in _FREE}
    return {**kept, "channels": channels, "source_images": len(source), "source_state": digest.hexdigest()}


def _channels(source: ImageSource, config: PackConfig) -> int:
    """The number of channels of the first image that can be read."""
    for index in range(len(source)):
        try:
            return len(source.read(index).getbands())
        except StoreError:
            raise
        except ValueError:
            if config.on_error == "raise":
                raise
    raise ValueError(f"source {config.source} contains no image that can be read: repair the files")


def _finished(config: PackConfig, dest: Path, zipped: bool, settings: dict[str, Any]) -> Packed | None:
    """What the pack at `dest` holds, None if nothing is there; raises ValueError for anything but this very pack."""
    if not dest.exists() or (dest.is_dir() and not zipped and not any(dest.iterdir())):
        return None
    try:
        if zipped:
            with zipfile.ZipFile(dest) as archive:
                metadata = json.loads(archive.read(METADATA))
        else:
            metadata = json.loads((dest / METADATA).read_bytes())
        changes = differences(metadata["packed"], settings)
        done = Packed(metadata["images"], metadata["content_sha256"], tuple(map(tuple, metadata["skipped"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"dest {config.dest} exists and is no pack: name another") from error
    if changes:
        raise ValueError(f"dest {config.dest} is a pack {_of_another(changes)}: remove it or name another")
    return done


def _of_another(changes: list[str]) -> str:
    """What sets a pack apart from the one that is asked for, of which `differences` told."""
    settings = [change for change in changes if not change.startswith("source_state")]
    return f"with other settings ({settings[0]})" if settings else "of other images, or of these before they changed"


@contextmanager
def _work_folder(work: Path, settings: dict[str, Any], config: PackConfig) -> Iterator[None]:
    """Hold the folder of parts, made with these settings, and remove it when the block ends well."""
    with naming_full_disk(work):
        (work / "shards").mkdir(parents=True, exist_ok=True)
        (work / "reports").mkdir(exist_ok=True)
    with (work / ".lock").open("a") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is packing to {config.dest}: wait for it, or stop it") from None
        except (ImportError, OSError):  # no such locks here: two packs to one place are then the user's to avoid
            pass
        remove_leftovers(work, work / "shards", work / "reports")
        file = work / _SETTINGS
        if file.exists():
            if changes := differences(json.loads(file.read_bytes()), settings):
                raise ValueError(f"{work} is of a pack {_of_another(changes)}: remove it, or name another dest")
        else:
            _write_json(file, settings)
        yield
    shutil.rmtree(work, ignore_errors=True)


class _Parts(Dataset[Exception | None]):
    """Part `number` of the work, done when it is asked for; its item is what went wrong, or None."""

    def __init__(self, source: ImageSource, config: PackConfig, channels: int, work: Path, zipped: bool) -> None:
        self.source, self.config, self.channels, self.zipped = source, config, channels, zipped
        self._work = work
        self.count = -(-len(source) // config.shard_images)

    def file(self, number: int) -> Path:
        ending = "zip" if self.zipped else "tar"
        return self._work / "shards" / f"shard-{number:05}-of-{self.count:05}.{ending}"

    def report(self, number: int) -> Path:
        return self._work / "reports" / f"{number:05}.json"

    def is_done(self, number: int) -> bool:
        return self.report(number).exists() and self.file(number).exists()

    def indices(self, number: int) -> range:
        """The images of the source in a part."""
        start = number * self.config.shard_images
        return range(start, min(start + self.config.shard_images, len(self.source)))

    def __getitem__(self, number: int) -> Exception | None:
        try:
            images, skipped = [], []
            with atomic_path(self.file(number)) as path, (_adding_zip if self.zipped else _adding_tar)(path) as add:
                for index in self.indices(number):
                    try:
                        pixels, png = self._convert(index)
                    except StoreError:
                        raise
                    except ValueError as error:
                        if self.config.on_error == "raise":
                            raise
                        skipped.append((self.source.where(index), str(error)))
                        continue
                    label = None if self.source.labels is None else int(self.source.labels[index])
                    images.append((add(index, png, label), label, image_digest(pixels).hex()))
            _write_json(self.report(number), {"images": images, "skipped": skipped})
        except (ValueError, OSError) as error:
            return handed_over(error)
        return None

    def _convert(self, index: int) -> tuple[Any, bytes]:
        """One image as pixels `(C, H, W)` and as a PNG."""
        picture = set_channels(self.source.read(index), self.channels)
        picture = cut(picture, self.config.resolution, self.config.crop, self.config.crop_fraction)
        stream = io.BytesIO()
        picture.save(stream, "PNG", compress_level=self.config.compression)
        return to_array(picture), stream.getvalue()


_Add = Callable[[int, bytes, int | None], str]


@contextmanager
def _adding_zip(path: Path) -> Iterator[_Add]:
    """Yield a function that adds an image by its number and gives its name in the zip."""
    with zipfile.ZipFile(path, "w") as archive:

        def add(number: int, png: bytes, label: int | None) -> str:
            name = f"{number // 1000:05}/img{number:08}.png"
            archive.writestr(zipfile.ZipInfo(name), png)
            return name

        yield add


@contextmanager
def _adding_tar(path: Path) -> Iterator[_Add]:
    """Yield a function that adds an image and its class by its number, and gives its name in the tar."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:

        def add(number: int, png: bytes, label: int | None) -> str:
            key = f"{number:08}"
            files = {f"{key}.png": png}
            if label is not None:
                files[f"{key}{CLASS_SUFFIX}"] = b"%d" % label
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            return f"{key}.png"

        yield add


def _make(parts: _Parts, config: PackConfig) -> None:
    """Make the parts that have no report yet, with a progress bar."""
    missing = [number for number in range(parts.count) if not parts.is_done(number)]
    workers = min(available_cores() if config.workers is None else config.workers, len(missing))
    results = DataLoader(
        parts, batch_size=None, sampler=missing, num_workers=workers if workers > 1 else 0, collate_fn=keep,
        worker_init_fn=start_worker,
    )  # fmt: skip
    to_do = sum(len(parts.indices(number)) for number in missing)
    bar = tqdm(total=len(parts.source), initial=len(parts.source) - to_do, unit="img", desc="pack")
    with bar, naming_lost_workers():
        for number, problem in zip(missing, results, strict=True):
            if problem is not None:
                raise problem
            bar.update(len(parts.indices(number)))


def _finish(parts: _Parts, dest: Path, settings: dict[str, Any]) -> Packed:
    """Make `dest` of the parts."""
    reports = [json.loads(parts.report(number).read_bytes()) for number in range(parts.count)]
    images = [image for report in reports for image in report["images"]]
    skipped = [entry for report in reports for entry in report["skipped"]]
    skipped += [(name, f"{name} can't be read as an image") for name in parts.source.skipped]
    if not images:
        raise ValueError(f"source {parts.source.name} contains no image that can be read, first {skipped[0][0]}")
    packed = Packed(len(images), combine(bytes.fromhex(image[2]) for image in images), tuple(map(tuple, skipped)))
    metadata = {
        "made_by": "maxgan",
        "images": packed.images,
        "content_sha256": packed.content_sha256,
        "class_names": list(parts.source.class_names) or None,
        "packed": settings,
        "skipped": packed.skipped,
    }
    if not parts.zipped:
        shards = parts.file(0).parent
        _write_json(shards / METADATA, metadata)
        with naming_full_disk(dest):
            replace_folder(shards, dest)
        return packed
    metadata["labels"] = [image[:2] for image in images] if parts.source.labels is not None else None
    with atomic_path(dest) as path, zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(METADATA), json.dumps(metadata))
        for number in range(parts.count):
            with zipfile.ZipFile(parts.file(number)) as part:
                for entry in part.infolist():
                    archive.writestr(entry, part.read(entry))
    return packed


def _write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))
