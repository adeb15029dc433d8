"""One pass over images to all that scores need of them, on one process or shared among several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maxgan.evaluation.extractors import Extractor
from maxgan.evaluation.statistics import GaussianStatistics, InceptionStatistics, exact_device, inception_splits

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Kept:
    """What a pass keeps beside mean and covariance; the less, the less memory."""

    features: bool = True
    """The features themselves, float32."""
    inception_splits: int = 0
    """Splits of an Inception Score; 0 for none."""
    inception_seed: int | None = None
    """Of the shuffle before they are split; None: not shuffled."""
    spatial: bool = False
    """Mean and covariance of the spatial features."""


@dataclass(frozen=True)
class FeatureSet:
    """All that is known of a whole set of images: bounded in memory, and enough for every score."""

    source: str
    """Where the images came from."""
    extractor: str
    digest: str
    """Of the extractor."""
    count: int | None
    """Number of images; None for statistics from elsewhere that don't tell it."""
    mean: Tensor
    """float64 `(D,)`, on the CPU as all others."""
    covariance: Tensor
    """float64 `(D, D)`, divisor N - 1."""
    features: Tensor | None = None
    """float32 `(N, D)`, in the order of the images, if they were kept."""
    spatial: tuple[Tensor, Tensor] | None = None
    """Mean `(S,)` and covariance `(S, S)` of the spatial features, float64, if they were asked for."""
    predictions: Tensor | None = None
    """int64 `(N,)`: most likely class of each image, if the extractor classifies."""
    labels: Tensor | None = None
    """int64 `(N,)`, if the images carry labels."""
    inception_score: tuple[float, float] | None = None
    """Mean and deviation over splits, if it was asked for."""
    content: str | None = None
    """SHA-256 of what the images were made or read from."""
    seconds: float = 0.0
    """Time it took to make and extract them."""

    @property
    def dim(self) -> int:
        """Number of features D."""
        return len(self.mean)


@dataclass(frozen=True)
class Share:
    """What one process saw of a set of images; `gather` makes the whole of the shares."""

    source: str
    extractor: str
    digest: str
    indices: Tensor
    """int64 `(N,)`: place of each image in the whole set."""
    statistics: GaussianStatistics | None
    """None for an empty share."""
    spatial: GaussianStatistics | None
    """Of the spatial features; None for an empty share, too."""
    features: Tensor | None
    predictions: Tensor | None
    labels: Tensor | None
    inception: InceptionStatistics | None
    kept: Kept
    seconds: float

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, accelerator: Any) -> FeatureSet:
        """Return the whole set on every process, the same bit for bit as from one; the Inception Score to 1e-14.

        Shares may be uneven or empty. Every process must call this.

        Args:
            accelerator: an `accelerate.Accelerator`, or anything with its `device` and its `gather(tensor)`.

        Raises:
            ValueError: on every process, if the shares don't make up a whole set or don't fit together.
        """
        device = accelerator.device
        milliseconds = round(self.seconds * 1000)
        dim, spatial_dim = (0 if part is None else part.dim for part in (self.statistics, self.spatial))
        classes = 0 if self.inception is None else self.inception.sums.shape[1] - 2
        labelled = (self.predictions is not None, self.labels is not None)
        facts = [len(self), dim, spatial_dim, classes, *labelled, milliseconds]
        heads = accelerator.gather(torch.tensor([facts], dtype=torch.int64, device=device)).cpu()
        counts: list[int] = heads[:, 0].tolist()
        kinds = {tuple(head[1:6]) for head in heads.tolist() if head[0]}
        if len(kinds) != 1:
            raise ValueError(f"the processes' shares of {self.source} must hold images, all with or all without labels")
        dim, spatial_dim, classes, has_predictions, has_labels = kinds.pop()

        def gathered(share: Tensor) -> list[Tensor]:
            # float64 stays where it was summed: with one process there is nothing to send, and not every device has it.
            if len(counts) == 1:
                return [share]
            lengths = accelerator.gather(torch.tensor([len(share)], device=device)).tolist()
            if not any(lengths):
                return [share for _ in lengths]
            # Collectives want equal shapes, so shares are padded to the longest and cut again.
            padded = share.new_zeros(max(lengths), *share.shape[1:])
            padded[: len(share)] = share
            parts = accelerator.gather(padded.to(device)).split(max(lengths))
            return [part[:length] for part, length in zip(parts, lengths, strict=True)]

        def whole(share: Tensor | None, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.int64) -> Tensor:
            share = torch.zeros(len(self), *shape, dtype=dtype) if share is None else share
            return torch.cat([part.cpu() for part in gathered(share)])

        def merged(share: GaussianStatistics | None, dim: int) -> GaussianStatistics:
            own = GaussianStatistics(dim, exact_device(device)) if share is None else share
            return own if len(counts) == 1 else own.gathered(gathered)

        indices = whole(self.indices)
        order = indices.argsort(stable=True)
        if not torch.equal(indices[order], torch.arange(len(indices))):
            raise ValueError(
                f"the {len(indices)} images of {self.source} are not a whole set: their indices must be 0 to N - 1, "
                "each once; gather the shares of all processes, each with its own indices"
            )
        statistics = merged(self.statistics, dim)
        spatial = merged(self.spatial, spatial_dim) if spatial_dim else None
        score = None
        if classes:
            inception = InceptionStatistics(classes, self.kept.inception_splits)
            sums_of_share = inception.sums if self.inception is None else self.inception.sums
            inception.sums = torch.stack([sums.cpu() for sums in gathered(sums_of_share)]).sum(0)
            score = inception.score()
        features = whole(self.features, (dim,), torch.float32)[order] if self.kept.features else None
        if statistics.count < 2:
            raise ValueError(f"{self.source} has {statistics.count} image: scores need at least 2")
        return FeatureSet(
            source=self.source,
            extractor=self.extractor,
            digest=self.digest,
            count=statistics.count,
            mean=statistics.mean.cpu(),
            covariance=statistics.covariance.cpu(),
            features=features,
            spatial=None if spatial is None else (spatial.mean.cpu(), spatial.covariance.cpu()),
            predictions=whole(self.predictions)[order] if has_predictions else None,
            labels=whole(self.labels)[order] if has_labels else None,
            inception_score=score,
            seconds=heads[:, 6].max().item() / 1000,
        )


class Collector:
    """Takes the images of one process as they come, extracts their features, and keeps what scores need.

    Args:
        extractor: is moved to `device`.
        device: where the features are computed, and summed unless it has no float64.
        source: where the images come from, for messages and scores.
        indices: place of each image in the whole set, in the order they come.
        total: number of images of the whole set.
        kept: what is kept.
        where: names an image by its place, for messages.
        progress: called after every batch with its number of images.
    """

    def __init__(
        self,
        extractor: Extractor,
        device: torch.device | str,
        *,
        source: str,
        indices: Sequence[int],
        total: int,
        kept: Kept | None = None,
        where: Callable[[int], str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.extractor = extractor.to(device)
        self.exact = exact_device(device)
        self.source = source
        self.indices = indices
        self.kept = Kept() if kept is None else kept
        self.where = where or (lambda index: f"image {index} of {source}")
        self.progress = progress
        self.started = time.perf_counter()
        self._splits: Tensor | None = None
        if self.kept.inception_splits:
            if not extractor.num_classes:
                raise ValueError(
                    f"extractor {extractor.name} gives no logits, which an Inception Score is made from: "
                    "leave inception_score out of metrics"
                )
            self._splits = inception_splits(total, self.kept.inception_splits, self.kept.inception_seed)
        self._statistics: GaussianStatistics | None = None
        self._spatial: GaussianStatistics | None = None
        self._inception: InceptionStatistics | None = None
        self._features: list[Tensor] = []
        self._predictions: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._count = 0

    def add(self, images: Tensor, labels: Tensor | None) -> None:
        """Take images `(N, C, H, W)`, as the extractor wants them, with their labels `(N,)` if they have any.

        Raises:
            ValueError: for features that are NaN or infinite, and more images than indices.
        """
        count = self._count + len(images)
        if count > len(self.indices):
            raise ValueError(f"{self.source} gave more images than the {len(self.indices)} that were expected")
        places = torch.as_tensor(self.indices[self._count : count], dtype=torch.int64)
        result = self.extractor(images)
        finite = result.features.isfinite().all(1).cpu()
        if not finite.all():
            name = self.where(int(places[int(finite.logical_not().nonzero()[0])]))
            raise ValueError(f"extractor {self.extractor.name} gave NaN or infinite features for {name}")
        features = result.features.float()
        if self._statistics is None:
            self._statistics = GaussianStatistics(features.shape[1], self.exact)
        self._statistics.update(features, places)
        if self.kept.spatial:
            if result.spatial is None:
                raise ValueError(
                    f"extractor {self.extractor.name} gives no spatial features, as inception-2015 does: leave "
                    "spatial_frechet out of metrics"
                )
            if self._spatial is None:
                self._spatial = GaussianStatistics(result.spatial.shape[1], self.exact)
            self._spatial.update(result.spatial, places)
        if self.kept.features:
            self._features.append(features.cpu())
        if result.logits is not None:
            self._predictions.append(result.logits.argmax(1).cpu())
            if self._splits is not None:
                if self._inception is None:
                    classes = result.logits.shape[1]
                    self._inception = InceptionStatistics(classes, self.kept.inception_splits, self.exact)
                self._inception.update(result.logits, self._splits[places])
        if labels is not None:
            self._labels.append(labels.long().cpu())
        self._count = count
        if self.progress is not None:
            self.progress(len(images))

    def finish(self) -> Share:
        """Return what was seen.

        Raises:
            ValueError: for labels on some images only, or fewer images than indices.
        """
        if self._labels and sum(map(len, self._labels)) != self._count:
            labelled = sum(map(len, self._labels))
            raise ValueError(
                f"{labelled} of the {self._count} images of {self.source} have labels: label all of them or none"
            )
        if self._count != len(self.indices):
            raise ValueError(f"{self.source} gave {self._count} images where {len(self.indices)} were expected")
        return Share(
            source=self.source,
            extractor=self.extractor.name,
            digest=self.extractor.digest,
            indices=torch.as_tensor(self.indices, dtype=torch.int64),
            statistics=self._statistics,
            spatial=self._spatial,
            features=torch.cat(self._features) if self._features else None,
            predictions=torch.cat(self._predictions) if self._predictions else None,
            labels=torch.cat(self._labels) if self._labels else None,
            inception=self._inception,
            kept=self.kept,
            seconds=time.perf_counter() - self.started,
        )

    def run(self, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Share:
        """Take all batches and return what was seen."""
        for images, labels in batches:
            self.add(images, labels)
        return self.finish()
