"""From a generator or a set of images, and a reference, to scores; over any number of processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from maxgan.config import DataConfig
from maxgan.data.loader import ImageDataset, evaluation_batches
from maxgan.evaluation.extractors import Extractor
from maxgan.evaluation.protocols import FeatureSet, Scores, compare, extract, feature_protocol
from maxgan.runtime import share_of
from maxgan.sampling import Generator, generate

MAX_IMAGES = 50_000
BATCH_SIZE = 128

Progress = Callable[[int], object]


def matched_labels(labels: np.ndarray, count: int, num_classes: int, seed: int = 0) -> list[int]:
    """Return `count` labels distributed as `labels` are, in random order.

    Every class gets its share of `count`, rounded by largest remainders, so that the frequency of classes adds no noise
    to a comparison with those labels.
    """
    share = np.bincount(labels, minlength=num_classes) / len(labels) * count
    counts = np.floor(share).astype(int)
    rest = np.argsort(counts - share, kind="stable")[: count - counts.sum()]
    counts[rest] += 1
    result = np.repeat(np.arange(num_classes), counts)
    np.random.default_rng(seed).shuffle(result)
    return result.tolist()


def features_of_images(
    dataset: ImageDataset,
    extractor: Extractor,
    accelerator: Accelerator,
    progress: Progress | None = None,
    batch_size: int = BATCH_SIZE,
) -> FeatureSet:
    """Return the features of all images of a data set; every process must call this and gets the whole set."""
    share = share_of(len(dataset), accelerator)
    batches = (
        (images, labels if dataset.labels is not None else None)
        for images, labels in evaluation_batches(dataset, batch_size, share)
    )
    features = extract(
        batches, extractor, accelerator.device, source=dataset.config.source, indices=share, progress=progress
    )
    return features.gather(accelerator)


def features_of_generator(
    generator: Generator,
    name: str,
    count: int,
    labels: list[int] | None,
    extractor: Extractor,
    accelerator: Accelerator,
    seed: int = 0,
    progress: Progress | None = None,
    batch_size: int = BATCH_SIZE,
    truncation: float | None = None,
) -> FeatureSet:
    """Return the features of the images of seeds `seed` to seed + count - 1; they never touch the disk.

    Args:
        generator: in eval mode, on the accelerator's device.
        name: of the generator, for messages.
        count: number of images.
        labels: `count` classes, for a generator with classes; None: drawn uniformly from each seed.
        extractor: gives the features.
        accelerator: every process must call this, and gets the whole set.
        seed: the first.
        progress: called with the number of images of every batch.
        batch_size: of one process.
        truncation: see `maxgan.sampling.latents_of`.
    """
    share = share_of(count, accelerator)
    seeds = range(seed + share.start, seed + share.stop)
    classes = None
    if labels is not None:
        # `generate` gives seed s the class classes[s % len(classes)].
        classes = list(np.roll(labels, seed % count))
    batches = (
        (batch.images, batch.labels)
        for batch in generate(generator, seeds, batch_size, accelerator.device, classes, truncation=truncation)
    )
    features = extract(batches, extractor, accelerator.device, source=name, indices=share, progress=progress)
    return features.gather(accelerator)


def score_generator(
    generator: Generator,
    name: str,
    reference: DataConfig,
    extractor: Extractor,
    accelerator: Accelerator,
    count: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    truncation: float | None = None,
) -> Scores:
    """Score a generator against reference images, its classes drawn as often as the reference shows them.

    Args:
        generator: in eval mode, on the accelerator's device.
        name: of the generator.
        reference: the images to compare with.
        extractor: gives the features and names the protocol.
        accelerator: every process must call this, and gets the scores.
        count: number of samples; None: as many as the reference has, at most 50,000.
        seed: first seed of the samples.
        progress: called with the number of images of every batch, samples and reference together.
        truncation: see `maxgan.sampling.latents_of`.
    """
    dataset = ImageDataset(reference)
    count = count if count is not None else min(len(dataset), MAX_IMAGES)
    real = features_of_images(dataset, extractor, accelerator, progress)
    labels = None
    if generator.num_classes and dataset.labels is not None and dataset.facts.num_classes == generator.num_classes:
        labels = matched_labels(dataset.labels, count, generator.num_classes)
    fake = features_of_generator(
        generator, name, count, labels, extractor, accelerator, seed, progress, truncation=truncation
    )
    return compare(real, fake, feature_protocol(extractor, count))


def score_images(
    images: DataConfig,
    reference: DataConfig,
    extractor: Extractor,
    accelerator: Accelerator,
    progress: Progress | None = None,
) -> Scores:
    """Score a folder or zip of images against reference images."""
    reals, fakes = ImageDataset(reference), ImageDataset(images)
    real = features_of_images(reals, extractor, accelerator, progress)
    fake = features_of_images(fakes, extractor, accelerator, progress)
    return compare(real, fake, feature_protocol(extractor, len(fake)))


def default_extractor(source: str) -> str | None:
    """Return the embedded extractor that fits a data source, if there is one."""
    return "digits" if source.startswith("digits") and not Path(source).exists() else None


def default_reference(source: str) -> str:
    """Return what samples of a training on `source` are compared with: all digits for the digits, else the source
    itself."""
    return "digits" if default_extractor(source) else source


def is_generator(path: Path) -> bool:
    """Return whether a path names a model rather than images."""
    return path.suffix == ".safetensors" or (path.is_dir() and any(path.glob("*.safetensors")))
