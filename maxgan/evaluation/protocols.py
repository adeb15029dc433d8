"""Protocols: what a score's name stands for, one pass over images to their features, and the comparison of two sets."""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any, Literal

import torch
from torch import Tensor

from maxgan.evaluation import scores
from maxgan.evaluation.extractors import Extractor
from maxgan.evaluation.neighbours import neighbour_scores
from maxgan.evaluation.statistics import GaussianStatistics

Metric = Literal["frechet", "half_split", "kernel", "precision_recall", "accuracy"]


@dataclass(frozen=True)
class Protocol:
    """All that must be equal for two scores to be comparable; a score is never told without it."""

    name: str
    """`fd-NAME`."""
    extractor: str
    """Name of the extractor."""
    frechet: str
    """What its Fréchet distance is called; `FID` is for Inception features only."""
    kernel: str
    """What its kernel distance is called; `KID` is for Inception features only."""
    resize: str
    """How images are brought to the extractor's resolution."""
    quantisation: Literal["uint8"] = "uint8"
    """Form of the images before they are resized."""
    num_images: int | None = None
    """Number of fakes; unset: as many as there are reals."""
    metrics: tuple[Metric, ...] = ("frechet", "half_split", "kernel", "precision_recall", "accuracy")
    """What is computed; `half_split` gives the noise floor of `frechet`, `accuracy` needs labelled fakes."""
    half_splits: int = 10
    """Random splits of the reals."""
    kernel_subsets: int = 100
    """Random subsets of the kernel distance."""
    kernel_subset_size: int = 1000
    """Images of each, at most all."""
    neighbours: int = 3
    """The k of precision and recall."""


def feature_protocol(extractor: Extractor, num_images: int | None = None) -> Protocol:
    """Return the protocol `fd-NAME` of an extractor that is not Inception: its scores are FD-NAME and KD-NAME."""
    name = extractor.name
    return Protocol(f"fd-{name}", name, f"FD-{name}", f"KD-{name}", extractor.resize, num_images=num_images)


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images, or of one process's share of them, on the CPU."""

    source: str
    """Where the images came from."""
    extractor: str
    digest: str
    features: Tensor
    """float32 `(N, D)`; `(0, 0)` for an empty share."""
    indices: Tensor
    """int64 `(N,)`: place of each image in the whole set."""
    predictions: Tensor | None
    """int64 `(N,)`: most likely class of each image, if the extractor classifies."""
    labels: Tensor | None
    """int64 `(N,)`, if the images carry labels."""
    seconds: float
    """Time it took to make and extract them."""

    def __len__(self) -> int:
        return len(self.indices)

    def ordered(self) -> FeatureSet:
        """Return the set in the order of its indices; raise ValueError unless they are 0 to N - 1, each once."""
        order = self.indices.argsort(stable=True)
        indices = self.indices[order]
        if not len(indices) or not torch.equal(indices, torch.arange(len(indices))):
            raise ValueError(
                f"the {len(indices)} images of {self.source} are not a whole set: their indices must be 0 to N - 1, "
                "each once; gather the shares of all processes, each with its own indices"
            )
        predictions, labels = (None if x is None else x[order] for x in (self.predictions, self.labels))
        return replace(self, features=self.features[order], indices=indices, predictions=predictions, labels=labels)

    def gather(self, accelerator: Any) -> FeatureSet:
        """Return the whole set on every process, bit-identical and in the same order for any number of processes.

        Shares may be uneven or empty. Every process must call this.

        Args:
            accelerator: an `accelerate.Accelerator`, or anything with its `device` and its `gather(tensor)`.

        Raises:
            ValueError: on every process, if the shares don't make up a whole set or don't fit together.
        """
        milliseconds = round(self.seconds * 1000)
        facts = [*self.features.shape, self.predictions is not None, self.labels is not None, milliseconds]
        heads = accelerator.gather(torch.tensor([facts], dtype=torch.int64, device=accelerator.device)).cpu()
        counts: list[int] = heads[:, 0].tolist()
        kinds = {tuple(head[1:4]) for head in heads.tolist() if head[0]}
        if len(kinds) != 1:
            raise ValueError(f"the processes' shares of {self.source} must hold images, all with or all without labels")
        dim, has_predictions, has_labels = kinds.pop()

        def whole(share: Tensor) -> Tensor:
            # Collectives want equal shapes, so shares are padded to the largest and cut again.
            padded = share.new_zeros(max(counts), *share.shape[1:])
            padded[: len(share)] = share
            parts = accelerator.gather(padded.to(accelerator.device)).cpu().split(max(counts))
            return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

        features = whole(self.features.reshape(len(self), dim))
        indices = whole(self.indices)
        absent = torch.zeros_like(self.indices)
        predictions = whole(absent if self.predictions is None else self.predictions) if has_predictions else None
        labels = whole(absent if self.labels is None else self.labels) if has_labels else None
        gathered = replace(self, features=features, indices=indices, predictions=predictions, labels=labels)
        return replace(gathered, seconds=heads[:, 4].max().item() / 1000).ordered()


def extract(
    batches: Iterable[tuple[Tensor, Tensor | None]],
    extractor: Extractor,
    device: torch.device | str = "cpu",
    *,
    source: str,
    indices: Sequence[int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> FeatureSet:
    """Return the features of images in one pass; with several processes, of this one's share.

    Args:
        batches: uint8 images `(N, C, H, W)` with their labels `(N,)`, or None for images without.
        extractor: is moved to `device`.
        device: where the features are computed.
        source: where the images come from, for messages and scores.
        indices: place of each image in the whole set, in the order they come; unset: 0, 1, 2, ...
        progress: called after every batch with its number of images.

    Raises:
        ValueError: for features that are NaN or infinite, labels on some images only, or a number of indices other
            than that of images.
    """
    start = time.perf_counter()
    extractor = extractor.to(device)
    features: list[Tensor] = []
    predictions: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    for images, batch_labels in batches:
        result = extractor(images)
        finite = result.features.isfinite().all(1).cpu()
        if not finite.all():
            at = count + int(finite.logical_not().nonzero()[0])
            at = at if indices is None or at >= len(indices) else indices[at]
            raise ValueError(f"extractor {extractor.name} gave NaN or infinite features for image {at} of {source}")
        features.append(result.features.float().cpu())
        if result.logits is not None:
            predictions.append(result.logits.argmax(1).cpu())
        if batch_labels is not None:
            labels.append(batch_labels.long().cpu())
        count += len(images)
        if progress is not None:
            progress(len(images))
    if labels and sum(map(len, labels)) != count:
        labelled = sum(map(len, labels))
        raise ValueError(f"{labelled} of the {count} images of {source} have labels: label all of them or none")
    if indices is not None and len(indices) != count:
        raise ValueError(f"{source} gave {count} images where {len(indices)} were expected")
    return FeatureSet(
        source=source,
        extractor=extractor.name,
        digest=extractor.digest,
        features=torch.cat(features) if features else torch.zeros(0, 0),
        indices=torch.arange(count) if indices is None else torch.as_tensor(indices, dtype=torch.int64),
        predictions=torch.cat(predictions) if predictions else None,
        labels=torch.cat(labels) if labels else None,
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True)
class Scores:
    """Scores with all that is needed to get them again."""

    protocol: Protocol
    metrics: Mapping[str, float]
    """`fd`, `fd_half_split_mean`, `fd_half_split_std`, `fd_ratio` (of the two), `kd_mean`, `kd_std`, `precision`,
    `recall`, `accuracy` (of the fakes); those that the protocol names."""
    real_source: str
    fake_source: str
    num_reals: int
    num_fakes: int
    feature_dim: int
    extractor_digest: str
    seed: int
    """Of the random splits and subsets."""
    seconds: float
    """Extraction of both sets and comparison."""
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """Return everything as a JSON object."""
        return json.dumps(asdict(self), indent=2, allow_nan=False, ensure_ascii=False)

    def table(self) -> str:
        """Return the scores as aligned text, a line each, under a line that says what was compared."""
        p, m = self.protocol, self.metrics
        rows: list[tuple[str, str, str | None]] = [
            (p.frechet, "fd", None),
            (f"{p.frechet} of {p.half_splits} real half-splits", "fd_half_split_mean", "fd_half_split_std"),
            ("ratio of the two", "fd_ratio", None),
            (p.kernel, "kd_mean", "kd_std"),
            ("precision", "precision", None),
            ("recall", "recall", None),
            ("class accuracy", "accuracy", None),
        ]
        rows = [row for row in rows if row[1] in m]
        width = max((len(label) for label, _, _ in rows), default=0)
        fakes, reals = f"{self.num_fakes} images of {self.fake_source}", f"{self.num_reals} of {self.real_source}"
        lines = [f"{p.name}: {fakes} against {reals}"]
        for label, key, deviation in rows:
            spread = f" ± {m[deviation]:.4g}" if deviation is not None else ""
            lines.append(f"  {label:<{width}}  {m[key]:>10.5g}{spread}")
        return "\n".join(lines)


def compare(real: FeatureSet, fake: FeatureSet, protocol: Protocol, seed: int = 0) -> Scores:
    """Return the scores of fakes against reals.

    Warns when a set has no more images than features, since its covariance is then singular. Accuracy is left out
    unless the fakes are labelled and the extractor classifies.

    Args:
        real: a whole set.
        fake: a whole set.
        protocol: names the metrics and their settings.
        seed: of random splits and subsets.

    Raises:
        ValueError: for sets that are incomplete, too small, or from another extractor than the protocol's.
    """
    start = time.perf_counter()
    real, fake = real.ordered(), fake.ordered()
    for part in (real, fake):
        if part.extractor != protocol.extractor or part.digest != real.digest:
            raise ValueError(
                f"{part.source} was seen by extractor {part.extractor} ({part.digest[:12]}), and {protocol.name} "
                f"against {real.source} needs {protocol.extractor} ({real.digest[:12]}): extract both with the same one"
            )
        if len(part) <= part.features.shape[1]:
            warnings.warn(
                f"{part.source} has {len(part)} images for {part.features.shape[1]} features, so its covariance is "
                f"singular and {protocol.frechet} strongly biased: use more images",
                stacklevel=2,
            )
    metrics: dict[str, float] = {}
    if "frechet" in protocol.metrics:
        one, two = GaussianStatistics.of(real.features), GaussianStatistics.of(fake.features)
        metrics["fd"] = scores.frechet_distance(one.mean, one.covariance, two.mean, two.covariance)
    if "half_split" in protocol.metrics:
        mean, std = scores.half_split_distance(real.features, protocol.half_splits, seed)
        metrics |= {"fd_half_split_mean": mean, "fd_half_split_std": std}
        if "fd" in metrics:
            if mean == 0:
                raise ValueError(f"all images of {real.source} have the same features: check them and the extractor")
            metrics["fd_ratio"] = metrics["fd"] / mean
    if "kernel" in protocol.metrics:
        sizes = (protocol.kernel_subsets, protocol.kernel_subset_size)
        metrics["kd_mean"], metrics["kd_std"] = scores.kernel_distance(real.features, fake.features, *sizes, seed)
    if "precision_recall" in protocol.metrics:
        metrics |= neighbour_scores(real.features, fake.features, protocol.neighbours, density_k=None)
    if "accuracy" in protocol.metrics and fake.predictions is not None and fake.labels is not None:
        metrics["accuracy"] = scores.accuracy(fake.predictions, fake.labels)
    return Scores(
        protocol=protocol,
        metrics=metrics,
        real_source=real.source,
        fake_source=fake.source,
        num_reals=len(real),
        num_fakes=len(fake),
        feature_dim=real.features.shape[1],
        extractor_digest=real.digest,
        seed=seed,
        seconds=real.seconds + fake.seconds + time.perf_counter() - start,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    """Return the versions that can change a score."""
    versions = {"python": platform.python_version()}
    for package in ("maxgan", "torch", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
