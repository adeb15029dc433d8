"""Speed of the sources of images beside torchvision's ImageFolder: images a second, in turn in one run.

    python benchmarks/data.py photos.zip --resolution 128 --workers 0 --output data.json
    python benchmarks/data.py cifar10-train.zip --resolution 32 --recipe digits --rounds 5

The images of SOURCE (a folder or a zip with class folders) are written in every form that maxgan reads, as they are
(folder, zip, tar shards, parquet where `datasets` is there) and packed at the resolution (zip, tar shards, npz), and
then read as training reads them: at random, decoded, cut to the central square, in batches. Beside them stand
torchvision's ImageFolder with its DataLoader, shuffled, with the same cut, on the files as they are and on packed ones,
and a plain loop over the packed zip, image by image. `ratio` is the median over the rounds of the speed to that of
ImageFolder on the files as they are. `pack` is timed once. Files are in the system's cache, so no disk is measured.

With `--recipe`, a config of a GAN, its updates are measured in the same way on images that lie in memory, which its
`ratio` is to, and on those that are read from files as they are and packed: what the loader leaves of the speed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from timing import Contestant, environment, measure, write_report
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from maxgan.cli import parse as parse_config
from maxgan.config import DataConfig, GanConfig, PackConfig
from maxgan.data.files import METADATA, Folder, Zip
from maxgan.data.loader import ImageDataset, training_batches
from maxgan.data.pack import pack
from maxgan.data.sources import open_source
from maxgan.runtime import start
from maxgan.training.gan import GanTrainer

CONFIGS = Path(__file__).parents[1] / "configs"
REFERENCE = "ImageFolder"
IMAGES_IN_A_SHARD = 2000


def write_forms(source: str, root: Path, resolution: int, workers: int) -> tuple[dict[str, str], float]:
    """Write the images in every form below `root`; return the path of each, and the images a second of packing."""
    store = Zip(source) if zipfile.is_zipfile(source) else Folder(source)
    names = [name for name in store.names() if name != METADATA]
    labels = open_source(source).labels
    if labels is None or len(labels) != len(names):
        raise SystemExit(f"{source} must hold nothing but images in class folders: name another")
    folder = root / "folder"
    with zipfile.ZipFile(root / "plain.zip", "w") as archive:
        for name in names:
            with store.open(name) as stream:
                content = stream.read()
            archive.writestr(name, content)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    (root / "shards").mkdir()
    for first in range(0, len(names), IMAGES_IN_A_SHARD):
        with tarfile.open(root / "shards" / f"{first:08}.tar", "w") as shard:
            for i in range(first, min(first + IMAGES_IN_A_SHARD, len(names))):
                shard.add(folder / names[i], f"{i:08}{Path(names[i]).suffix}")
                entry = tarfile.TarInfo(f"{i:08}.cls")
                text = str(labels[i]).encode()
                entry.size = len(text)
                shard.addfile(entry, io.BytesIO(text))
    forms = {"folder": str(folder), "zip": f"{root}/plain.zip", "tar shards": f"{root}/shards"}
    forms |= write_parquet(folder, names, labels, root)
    begin = time.perf_counter()
    for dest in ("packed.zip", "packed"):
        packed = pack(PackConfig(source, f"{root}/{dest}", resolution, workers=workers, on_error="skip"))
    speed = 2 * packed.images / (time.perf_counter() - begin)
    forms |= {"packed zip": f"{root}/packed.zip", "packed tar shards": f"{root}/packed"}
    small = ImageDataset(DataConfig(source=forms["packed zip"], channels=3))
    pixels = np.stack([small.read(i).transpose(1, 2, 0) for i in range(len(small))])
    assert small.labels is not None
    np.savez(root / "packed.npz", pixels, small.labels)
    forms["packed npz"] = f"{root}/packed.npz"
    for i, label in enumerate(small.labels):
        path = root / "packed folder" / str(label) / f"{i:08}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(path, compress_level=0)
    return forms, speed


def write_parquet(folder: Path, names: list[str], labels: np.ndarray, root: Path) -> dict[str, str]:
    """Write the files as one parquet file, where the library for it is there."""
    try:
        import datasets
    except ImportError:
        return {}
    datasets.config.HF_DATASETS_CACHE = str(root / "cache")
    rows = {"image": [{"bytes": (folder / name).read_bytes(), "path": None} for name in names], "label": labels}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "plain.parquet")
    return {"parquet": f"{root}/plain.parquet"}


def ours(path: str, arguments: argparse.Namespace, memory: int = 0) -> Iterator[Any]:
    """Return the endless training batches of a source, of which memory keeps none unless asked to."""
    config = DataConfig(source=path, resolution=arguments.resolution, channels=3, workers=arguments.workers)
    dataset = ImageDataset(config, memory)
    if dataset.in_memory:
        dataset.preload(threads=1)  # decoded once, which is not measured
    return training_batches(dataset, arguments.batch, 0, workers=arguments.workers)


def image_folder(path: Path, arguments: argparse.Namespace) -> Iterator[Any]:
    """Return the endless batches of torchvision's ImageFolder."""
    # Cut before it is resized, as ours: to resize the whole would cost more.
    transform = v2.Compose(
        [lambda image: v2.functional.center_crop(image, [min(image.size)] * 2),
         v2.Resize((arguments.resolution,) * 2, v2.InterpolationMode.BICUBIC),
         v2.PILToTensor()]
    )  # fmt: skip
    loader = DataLoader(
        torchvision.datasets.ImageFolder(str(path), transform),
        arguments.batch,
        shuffle=True,
        drop_last=True,
        num_workers=arguments.workers,
        persistent_workers=arguments.workers > 0,
        prefetch_factor=4 if arguments.workers else None,
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def one_by_one(path: str) -> Iterator[Any]:
    """Return the pictures of a zip, read in order with the standard library and PIL alone."""
    with zipfile.ZipFile(path) as archive:
        while True:
            for name in archive.namelist():
                if name != METADATA:
                    yield np.asarray(Image.open(io.BytesIO(archive.read(name))))


def contestants(forms: dict[str, str], root: Path, arguments: argparse.Namespace) -> list[Contestant]:
    """Return every way of reading, a run of which takes one batch."""

    def contestant(name: str, batches: Iterator[Any], count: int = 1) -> Contestant:
        run: Callable[[], object] = lambda: [next(batches) for _ in range(count)]  # noqa: E731
        return Contestant(name, run, arguments.batch)

    return [
        contestant(REFERENCE, image_folder(root / "folder", arguments)),
        contestant(f"{REFERENCE}, packed PNGs", image_folder(root / "packed folder", arguments)),
        contestant("packed zip, image by image", one_by_one(forms["packed zip"]), arguments.batch),
        *(contestant(f"maxgan, {name}", ours(path, arguments)) for name, path in forms.items()),
        contestant("maxgan, in memory", ours(forms["packed npz"], arguments, memory=1 << 40)),
    ]


def trainings(forms: dict[str, str], arguments: argparse.Namespace) -> list[Contestant]:
    """Return an update of the recipe on images in memory, which comes first, and from files."""
    config, _ = parse_config(GanConfig, [f"--config={CONFIGS / arguments.recipe}.yaml"])
    config = replace(config, training=replace(config.training, batch_size=arguments.batch))
    accelerator = start(arguments.threads, "no", cpu=True)

    def contestant(name: str, path: str, memory: int = 0) -> Contestant:
        # Each has networks of its own: they learn, and none must meet others' numbers.
        dataset = ImageDataset(DataConfig(source=path, resolution=arguments.resolution, channels=3))
        trainer = GanTrainer(config, dataset.facts, accelerator)
        batches = ours(path, arguments, memory)
        return Contestant(f"training, {name}", lambda: trainer.step(batches), arguments.batch)

    files = {name: forms[name] for name in ("folder", "zip", "packed zip", "packed tar shards")}
    return [contestant("in memory", forms["packed npz"], 1 << 40), *(contestant(*form) for form in files.items())]


def rows_of(ways: list[Contestant]) -> list[dict[str, Any]]:
    """Print and return the speed of every way, and its ratio to the first."""
    rows = []
    for way in ways:
        ratio = statistics.median(a / b for a, b in zip(way.rates, ways[0].rates, strict=True))
        rows.append({"name": way.name, "images_per_second": way.rates, "ratio": ratio})
        print(f"{way.name:<32} {statistics.median(way.rates):>9,.1f} img/s {ratio:>7.3f}")
    return rows


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a folder or a zip of images in class folders")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="decoding processes, for packing too")
    parser.add_argument("--recipe", help="name of a config, such as digits: measure its updates too")
    parser.add_argument("--threads", type=int, help="of those updates; unset: the cores at hand")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="shortest time of one measurement")
    parser.add_argument("--output", help="JSON file for the figures of every round; unset: printed")
    return parser.parse_args()


def main() -> None:
    """Measure all of them."""
    arguments = parse()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        forms, pack_speed = write_forms(arguments.source, Path(folder), arguments.resolution, arguments.workers)
        ways = contestants(forms, Path(folder), arguments)
        measure(ways, arguments.rounds, arguments.seconds, cpu)
        rows = rows_of(ways)
        if arguments.recipe:
            updates = trainings(forms, arguments)
            measure(updates, arguments.rounds, arguments.seconds, cpu)
            rows += rows_of(updates)
    print(f"{'pack (once)':<32} {pack_speed:>9,.0f} img/s")
    report = {
        "environment": {
            **environment(cpu),
            "torchvision": torchvision.__version__,
            "python": sys.version.split()[0],
        },
        "settings": vars(arguments),
        "pack_images_per_second": pack_speed,
        "rows": rows,
    }
    write_report(report, arguments.output)


if __name__ == "__main__":
    main()
