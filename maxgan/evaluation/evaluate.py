"""From a generator or a set of images, and a reference, to scores; over any number of processes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from maxgan.checkpoint import together
from maxgan.config import DataConfig, ImageFacts, ScoreConfig
from maxgan.data.labels import same_numbers
from maxgan.data.loader import ImageDataset, evaluation_batches
from maxgan.evaluation.catalogue import packaged_extractors
from maxgan.evaluation.comparison import OfReals, Scores, check_reference, compare
from maxgan.evaluation.extractors import Extractor
from maxgan.evaluation.features import Collector, FeatureSet, Kept
from maxgan.evaluation.protocols import PROTOCOLS, TRAINING, Protocol, choose_protocol, customised, with_images
from maxgan.evaluation.published import weights_digest
from maxgan.evaluation.reference import (
    cache_folder,
    content_of,
    is_statistics,
    load_reference,
    reference_key,
    save_reference,
)
from maxgan.files import atomic_path
from maxgan.runtime import own_cores, share_of
from maxgan.sampling import Generator, generate
from maxgan.truncation import told

MAX_IMAGES = 50_000
BATCH_SIZE = 128


class Scorer:
    """Scores any number of sets of images against one reference, which is extracted once.

    Every process must make one and call the same methods; all get the same scores.

    Args:
        protocol: how images are compared.
        extractor: the protocol's.
        reference: the images to compare with, cut as the fakes are; or in `source` an npz of their statistics.
        accelerator: of this process.
        labels: classes of a generator's samples: as often as the `reference` shows them, or `uniform`.
        cache: folder of kept statistics; None keeps none.
        refresh: compute the reference's statistics anew.
        batch_size: of one process.

    Attributes:
        compiled: let generators run as compiled code; pays where one process scores tens of thousands of samples.
    """

    compiled = False

    def __init__(
        self,
        protocol: Protocol,
        extractor: Extractor,
        reference: DataConfig,
        accelerator: Accelerator,
        *,
        labels: str = "reference",
        cache: Path | None = None,
        refresh: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        if accelerator.device.type != "cpu":
            # A single thread's decoding would leave a GPU idle for most of the time.
            reference = dataclasses.replace(reference, workers=max(reference.workers, own_cores(accelerator)))
        self.protocol = protocol
        self.extractor = extractor
        self.reference = reference
        self.accelerator = accelerator
        self.labels = labels
        self.cache = cache
        self.refresh = refresh
        self.batch_size = batch_size
        self._bar: tqdm | None = None
        # Whatever is wrong with the reference is said before anything is drawn or extracted.
        self.dataset: ImageDataset | None = None
        self._real: FeatureSet | None = None
        self._of_reals = OfReals()
        if is_statistics(reference.source):
            self._real = load_reference(reference.source, extractor)
        else:
            self.dataset = open_images(reference, "reference")

    @property
    def real(self) -> FeatureSet:
        """The reference, extracted, or read from what was kept, when it is first asked for."""
        if self._real is None:
            assert self.dataset is not None
            self._real = self._kept_reference(self.dataset)
        return self._real

    @contextmanager
    def showing(self, name: str | None = None) -> Iterator[None]:
        """Show the images that are extracted within, fakes and reference together, and the time left, on one bar."""
        with tqdm(desc=name, unit=" images", leave=False, disable=not self.accelerator.is_main_process) as self._bar:
            try:
                yield
            finally:
                self._bar = None

    def _expect(self, images: int) -> None:
        """Let the bar count up to so many more."""
        if self._bar is not None:
            self._bar.total = (self._bar.total or 0) + images
            self._bar.refresh()

    def _advance(self, images: int) -> None:
        """Move the bar by a batch of this process; the main one's progress stands for that of all."""
        if self._bar is not None:
            self._bar.update(images * self.accelerator.num_processes)

    def count(self, wanted: int | None = None) -> int:
        """Return the number of samples: as wanted, or the protocol's, or the reference's up to 50,000."""
        if wanted is not None:
            return wanted
        known = self.protocol.num_images
        if known is None:
            known = len(self.dataset) if self.dataset is not None else self.real.count
        return min(known or MAX_IMAGES, MAX_IMAGES)

    def classes(self, generator: Generator, count: int) -> list[int] | None:
        """Return the classes of `count` samples as often as the reference shows them; None to draw them uniformly."""
        if self.labels != "reference" or not generator.num_classes:
            return None
        labels = self.dataset.labels if self.dataset is not None else None
        if self.dataset is None and self.real.labels is not None:
            labels = self.real.labels.numpy()
        if labels is None or labels.max() >= generator.num_classes:
            return None
        return matched_labels(labels, count, generator.num_classes)

    def score_generator(
        self,
        generator: Generator,
        name: str,
        count: int | None = None,
        seed: int = 0,
        truncation: float | None = None,
    ) -> Scores:
        """Score the images of seeds `seed` to seed + count - 1; they never touch the disk.

        Args:
            generator: in eval mode, on the accelerator's device.
            name: of the generator, for messages.
            count: number of samples, see `count`.
            seed: the first.
            truncation: see `maxgan.sampling.generate`.
        """
        count = self.count(count)
        classes = self.classes(generator, count)
        share = share_of(count, self.accelerator)
        seeds = range(seed + share.start, seed + share.stop)
        batches = generate(
            generator,
            seeds,
            self.batch_size,
            self.accelerator.device,
            # `generate` gives seed s the class classes[s % len(classes)].
            None if classes is None else list(np.roll(classes, seed % count)),
            truncation=truncation,
            quantise=self.protocol.quantisation == "uint8",
            compiled=self.compiled,
        )
        self._expect(count)
        collector = self.collector(name, count)
        with together():
            for batch in batches:
                collector.add(batch.images, batch.labels)
        content = weights_digest(generator) if isinstance(generator, nn.Module) else None
        drawn = "uniform" if classes is None else "as the reference"
        drawn_at = told(generator, truncation)
        sampling = {"seed": seed, "truncation": drawn_at, "labels": drawn if generator.num_classes else None}
        return self.score(collector, content, sampling)

    def score_images(self, source: str) -> Scores:
        """Score the images of a data source, cut to the same resolution as the reference, but not cropped."""
        fakes = dataclasses.replace(self.reference, source=source, crop_fraction=1.0, crop="center")
        dataset = open_images(fakes, "fakes")
        renumber = self._renumbering(dataset)
        self._expect(len(dataset))
        self._prepare()
        fake = self._extract(dataset, self.protocol.kept_of_fakes)
        labels = fake.labels if fake.labels is None or renumber is None else torch.tensor(renumber)[fake.labels]
        return self._compare(dataclasses.replace(fake, content=self._content(dataset), labels=labels), None)

    def _renumbering(self, dataset: ImageDataset) -> tuple[int, ...] | None:
        """Return the reference's number of each class of the fakes; None where both have the same, or none is known."""
        known = () if self.dataset is None else self.dataset.source.class_names
        try:
            return same_numbers(dataset.source.class_names, known)
        except ValueError as error:
            if "class_frechet" not in self.protocol.metrics:
                return None
            raise ValueError(
                f"the classes of {dataset.config.source} and {self.reference.source} can't be compared, {error}: call "
                "them alike, or leave class_frechet out of metrics"
            ) from error

    def collector(self, name: str, count: int) -> Collector:
        """Return what takes this process's share of `count` fakes, the images in the order of `share_of`."""
        self._prepare()
        return Collector(
            self.extractor,
            self.accelerator.device,
            source=name,
            indices=share_of(count, self.accelerator),
            total=count,
            kept=self.protocol.kept_of_fakes,
            progress=self._advance,
        )

    def score(
        self, collector: Collector, content: str | None, sampling: dict[str, int | float | str | None] | None
    ) -> Scores:
        """Score what the collectors of all processes have taken.

        Args:
            collector: of this process.
            content: SHA-256 of what the images were made from.
            sampling: how they were drawn.
        """
        with together():
            share = collector.finish()
        fake = dataclasses.replace(share.gather(self.accelerator), content=content)
        return self._compare(fake, sampling)

    def _prepare(self) -> None:
        """Extract the reference first: what is wrong with it is said before the fakes take their time."""
        real = self.real
        try:
            check_reference(real, self.protocol)
        except ValueError as error:
            raise ValueError(f"reference {self.reference.source} is not enough: {error}") from error

    def _compare(self, fake: FeatureSet, sampling: dict[str, int | float | str | None] | None) -> Scores:
        """Compare on the main process, and tell all."""
        real = self.real
        assert fake.count is not None
        protocol = with_images(self.protocol, fake.count)
        found: list[Scores | None] = [None]
        with together():
            if self.accelerator.is_main_process:
                found[0] = compare(real, fake, protocol, sampling, self.accelerator.device, self._of_reals)
        scores = broadcast_object_list(found)[0]
        assert scores is not None
        return scores

    def _kept_reference(self, dataset: ImageDataset) -> FeatureSet:
        """Return the reference's features, from what was kept of the very same images, protocol and code if it can."""
        content, kept = self._content(dataset), self.protocol.kept_of_reals
        if self.cache is None:
            self._expect(len(dataset))
            return dataclasses.replace(self._extract(dataset, kept), content=content)
        key = reference_key(content, self.extractor, kept, self.accelerator.device.type)
        path = self.cache / f"{key}.npz"
        # Machines that share no folder may not all have it: then all extract, and none waits for another.
        if all(gather_object([path.is_file()])) and not self.refresh:
            try:
                with together():
                    found = load_reference(path, self.extractor)
            except ValueError as error:
                raise ValueError(f"{error}; or set refresh") from error
            return dataclasses.replace(found, source=dataset.config.source)
        self._expect(len(dataset))
        features = dataclasses.replace(self._extract(dataset, kept), content=content)
        with together():
            if self.accelerator.is_main_process:
                self._keep(path, features)
        return features

    def _keep(self, path: Path, features: FeatureSet) -> None:
        try:
            save_reference(path, features, self.extractor.resize)
        except OSError as error:
            # What may have taken hours to extract is worth more than its copy.
            warnings.warn(
                f"the statistics of {features.source} are not kept ({error}): set cache to another folder, or to off",
                stacklevel=2,
            )

    def _extract(self, dataset: ImageDataset, kept: Kept) -> FeatureSet:
        share = share_of(len(dataset), self.accelerator)
        collector = Collector(
            self.extractor,
            self.accelerator.device,
            source=dataset.config.source,
            indices=share,
            total=len(dataset),
            kept=kept,
            where=dataset.source.where,
            progress=self._advance,
        )
        with together():
            part = collector.run(_labelled(dataset, self.batch_size, share))
        return part.gather(self.accelerator)

    def _content(self, dataset: ImageDataset) -> str:
        found: list[str | None] = [None]
        with together():
            if self.accelerator.is_main_process:
                found[0] = content_of(dataset)
        content = broadcast_object_list(found)[0]
        assert content is not None
        return content


def _labelled(dataset: ImageDataset, batch_size: int, share: range) -> Iterator[tuple[Tensor, Tensor | None]]:
    for images, labels in evaluation_batches(dataset, batch_size, share):
        yield images, labels if dataset.labels is not None else None


def make_scorer(
    settings: ScoreConfig,
    source: str,
    accelerator: Accelerator,
    fakes: Generator | ImageFacts | str,
    *,
    data: DataConfig | None = None,
    batch_size: int = BATCH_SIZE,
) -> Scorer:
    """Return what scores by `settings`.

    Args:
        settings: protocol, reference and options.
        source: what the fakes were trained on, which the defaults hang on.
        accelerator: of this process.
        fakes: what is going to be scored, a generator, or its facts, or a data source: the reference is cut alike.
        data: further settings of the reference, such as a number of workers.
        batch_size: see `Scorer`.

    Raises:
        ValueError: if neither a protocol nor an extractor is named and none fits the source, and for whatever is wrong
            with what is named.
    """
    name = settings.extractor or (default_extractor(source) if settings.protocol is None else None)
    published = PROTOCOLS.get(settings.protocol or "")
    if settings.reference is None and published is not None and (published.reference != TRAINING or not source):
        raise ValueError(f"protocol {published.name} compares with {published.reference}: name them in reference")
    reference = settings.reference or default_reference(source)
    if name is None and settings.protocol is None:
        raise ValueError(
            f"there is no embedded extractor for {source or 'unknown images'}: set extractor "
            f"({', '.join(sorted(packaged_extractors()))}, or the file of a classifier of yours) or protocol "
            f"({', '.join(PROTOCOLS)})" + ("" if reference else ", and in reference the images to compare with")
        )
    if not reference:
        raise ValueError(f"scores by {settings.protocol or name} need images to compare with: set reference")
    protocol, extractor = choose_protocol(settings.protocol, name, settings.weights, settings.trust_weights)
    protocol = customised(protocol, settings.metrics, settings.resamples, settings.extrapolation_points)
    if isinstance(fakes, str):
        # Where the extractor says how images are cut, sets of mixed sizes can be compared.
        side = extractor.resolution if protocol.cut == "extractor" else None
        found = open_images(DataConfig(source=fakes, resolution=side, channels=extractor.channels), "fakes")
        resolution, channels = found.facts.resolution, extractor.channels
    else:
        resolution, channels = fakes.resolution, fakes.channels
    data = dataclasses.replace(
        DataConfig() if data is None else data,
        source=reference,
        resolution=resolution,
        channels=channels,
        crop_fraction=protocol.reference_crop if protocol.reference_crop != 1 or data is None else data.crop_fraction,
    )
    return Scorer(
        protocol,
        extractor,
        data,
        accelerator,
        labels=settings.labels,
        cache=cache_folder(settings.cache),
        refresh=settings.refresh,
        batch_size=batch_size,
    )


def open_images(config: DataConfig, setting: str) -> ImageDataset:
    """Return the images of a source; raise ValueError, which names the setting, where it can't be used."""
    try:
        return ImageDataset(config)
    except ValueError as error:
        raise ValueError(f"{setting} can't be used: {error}") from error


def report(scores: Scores, output: str | Path | None, accelerator: Accelerator) -> None:
    """Print the table, and write the scores as JSON; every process must call this."""
    accelerator.print(scores.table())
    if output is not None:
        with together():
            if accelerator.is_main_process:
                with atomic_path(output) as path:
                    path.write_text(scores.to_json())


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
