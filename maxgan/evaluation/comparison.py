"""Two sets of images to scores, and what scores are told with."""

from __future__ import annotations

import json
import platform
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata

import torch
from torch import Tensor

from maxgan.evaluation import scores
from maxgan.evaluation.features import FeatureSet
from maxgan.evaluation.neighbours import neighbour_scores
from maxgan.evaluation.protocols import Protocol
from maxgan.evaluation.statistics import exact_device


@dataclass(frozen=True)
class Scores:
    """Scores with all that is needed to get them again."""

    protocol: Protocol
    metrics: Mapping[str, float]
    """`fd`, `sfd` (of spatial features), `fd_half_split_mean`, `fd_half_split_std`, `fd_ratio` (`fd` to that mean),
    `fd_resampled_mean`, `fd_resampled_std`, `fd_infinity`, `inception_score_mean`, `inception_score_std`, `kd_mean`,
    `kd_std`, `precision`, `recall`, `density`, `coverage`, `class_fd` (mean over classes), `accuracy` (of the fakes);
    those that the protocol names."""
    real_source: str
    fake_source: str
    num_reals: int | None
    num_fakes: int
    feature_dim: int
    extractor_digest: str
    reference_digest: str | None
    """SHA-256 of the reference's files and labels, or of its file of statistics."""
    fake_digest: str | None
    """SHA-256 of the generator's weights, or of the images' files and labels."""
    seconds: float
    """Extraction of both sets and comparison."""
    versions: Mapping[str, str]
    class_fd: Mapping[int, float] = field(default_factory=dict)
    """Fréchet distance within each class."""
    sampling: Mapping[str, int | float | str | None] = field(default_factory=dict)
    """How a generator was drawn from: first seed, truncation, labels."""
    device: str = ""
    """Kind of device that looked at the images, such as `cpu`: another rounds float32 otherwise."""

    def to_json(self) -> str:
        """Return everything as a JSON object."""
        return json.dumps(asdict(self), indent=2, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Scores:
        """Return the scores that `to_json` wrote."""
        values = json.loads(text)
        protocol = values["protocol"]
        protocol["metrics"] = tuple(protocol["metrics"])
        class_fd = {int(label): value for label, value in values["class_fd"].items()}
        return cls(**{**values, "protocol": Protocol(**protocol), "class_fd": class_fd})

    def rows(self) -> list[tuple[str, float, float | None]]:
        """Return name, value and, where there is one, deviation of each score."""
        p, m = self.protocol, self.metrics
        rows: list[tuple[str, str, str | None]] = [
            (p.frechet, "fd", None),
            (f"s{p.frechet}", "sfd", None),
            (f"{p.frechet} of {p.half_splits} real half-splits", "fd_half_split_mean", "fd_half_split_std"),
            ("ratio of the two", "fd_ratio", None),
            (f"{p.frechet} of {p.resamples} resamplings", "fd_resampled_mean", "fd_resampled_std"),
            (f"{p.frechet} of infinitely many", "fd_infinity", None),
            (p.inception, "inception_score_mean", "inception_score_std"),
            (p.kernel, "kd_mean", "kd_std"),
            ("precision", "precision", None),
            ("recall", "recall", None),
            ("density", "density", None),
            ("coverage", "coverage", None),
            (f"{p.frechet} within a class", "class_fd", None),
            ("class accuracy", "accuracy", None),
        ]
        return [(label, m[key], None if spread is None else m[spread]) for label, key, spread in rows if key in m]

    def title(self) -> str:
        """Return what was compared, in one line."""
        fakes = f"{self.num_fakes} images of {self.fake_source}"
        reals = f"{self.num_reals if self.num_reals is not None else 'an unknown number'} of {self.real_source}"
        return f"{self.protocol.name}: {fakes} against {reals}"

    def table(self) -> str:
        """Return the scores as aligned text, a line each, under a line that says what was compared."""
        rows = self.rows()
        width = max((len(label) for label, _, _ in rows), default=0)
        lines = [self.title()]
        for label, value, deviation in rows:
            spread = f" ± {deviation:.4g}" if deviation is not None else ""
            lines.append(f"  {label:<{width}}  {value:>10.5g}{spread}")
        return "\n".join(lines)


@dataclass
class OfReals:
    """What scores take from the reals alone, kept from one comparison to the next with the same reals and protocol."""

    half_split: tuple[float, float] | None = None
    """Mean and deviation of the Fréchet distance between halves."""
    radii: list[Tensor] = field(default_factory=list)
    """See `neighbour_scores`."""


def check_reference(real: FeatureSet, protocol: Protocol) -> None:
    """Raise ValueError where a reference lacks what the scores of a protocol need."""
    if protocol.kept_of_reals.features:
        _features(real, protocol)
    if protocol.kept_of_reals.spatial:
        _spatial(real)


def compare(
    real: FeatureSet,
    fake: FeatureSet,
    protocol: Protocol,
    sampling: Mapping[str, int | float | str | None] | None = None,
    device: torch.device | str = "cpu",
    known: OfReals | None = None,
) -> Scores:
    """Return the scores of fakes against reals.

    Warns when a set has no more images than features, since its covariance is then singular. Accuracy and the distance
    within classes, the latter with a warning, are left out unless there are labels and, for accuracy, the extractor
    classifies.

    Args:
        real: the reference.
        fake: what is scored.
        protocol: names the metrics and their settings.
        sampling: how the fakes were drawn.
        device: where the features come from, and kernels and neighbours are computed, in float64.
        known: filled with what is found of the reals, and not looked for again where it is there.

    Raises:
        ValueError: for sets that are too small, lack features, or come from another extractor than the protocol's, and
            where no metric is left.
    """
    start = time.perf_counter()
    known = OfReals() if known is None else known
    for part in (real, fake):
        if part.extractor != protocol.extractor or part.digest != real.digest:
            raise ValueError(
                f"{part.source} was seen by extractor {part.extractor} ({part.digest[:12]}), and {protocol.name} "
                f"against {real.source} needs {protocol.extractor} ({real.digest[:12]}): extract both with the same one"
            )
        if part.count is not None and part.count <= part.dim:
            warnings.warn(
                f"{part.source} has {part.count} images for {part.dim} features, so its covariance is "
                f"singular and {protocol.frechet} strongly biased: use more images",
                stacklevel=2,
            )
    assert fake.count is not None
    metrics: dict[str, float] = {}
    if "frechet" in protocol.metrics:
        metrics["fd"] = _frechet(real, fake)
    if "spatial_frechet" in protocol.metrics:
        metrics["sfd"] = scores.frechet_distance(*_spatial(real), *_spatial(fake))
    if "half_split" in protocol.metrics:
        if known.half_split is None:
            reals = _features(real, protocol)
            known.half_split = scores.half_split_distance(reals, protocol.half_splits, protocol.seed)
        mean, std = known.half_split
        metrics |= {"fd_half_split_mean": mean, "fd_half_split_std": std}
        if "fd" in metrics:
            if mean == 0:
                raise ValueError(f"all images of {real.source} have the same features: check them and the extractor")
            metrics["fd_ratio"] = metrics["fd"] / mean
    metrics |= _uncertainty(real, fake, protocol)
    if "inception_score" in protocol.metrics:
        if fake.inception_score is None:
            raise ValueError(f"{fake.source} was extracted without logits' statistics: leave inception_score out")
        metrics["inception_score_mean"], metrics["inception_score_std"] = fake.inception_score
    metrics |= _between_images(real, fake, protocol, exact_device(device), known)
    class_fd: dict[int, float] = {}
    if "class_frechet" in protocol.metrics and real.labels is not None and fake.labels is not None:
        features = _features(real, protocol), _features(fake, protocol)
        class_fd = scores.class_distances(features[0], real.labels, features[1], fake.labels)
    if class_fd:
        metrics["class_fd"] = sum(class_fd.values()) / len(class_fd)
    elif "class_frechet" in protocol.metrics:
        warnings.warn(
            f"class_frechet is left out: {real.source} and {fake.source} need labels, and a class with 2 images in "
            "both",
            stacklevel=2,
        )
    if "accuracy" in protocol.metrics and fake.predictions is not None and fake.labels is not None:
        metrics["accuracy"] = scores.accuracy(fake.predictions, fake.labels)
    if not metrics:
        raise ValueError(
            f"nothing is left of {', '.join(protocol.metrics)}, since {fake.source} has no labels or "
            f"{fake.extractor} no classes: name others in metrics"
        )
    return Scores(
        protocol=protocol,
        metrics=metrics,
        real_source=real.source,
        fake_source=fake.source,
        num_reals=real.count,
        num_fakes=fake.count,
        feature_dim=real.dim,
        extractor_digest=real.digest,
        reference_digest=real.content,
        fake_digest=fake.content,
        seconds=real.seconds + fake.seconds + time.perf_counter() - start,
        versions=versions(),
        class_fd=class_fd,
        sampling={} if sampling is None else sampling,
        device=torch.device(device).type,
    )


def _uncertainty(real: FeatureSet, fake: FeatureSet, protocol: Protocol) -> dict[str, float]:
    """Return the options that tell how far the Fréchet distance hangs on the fakes and on their number."""
    metrics: dict[str, float] = {}
    if protocol.resamples:
        mean, std = scores.resampled_distance(
            real.mean, real.covariance, _features(fake, protocol), protocol.resamples, protocol.seed
        )
        metrics |= {"fd_resampled_mean": mean, "fd_resampled_std": std}
    if protocol.extrapolation_points:
        metrics["fd_infinity"] = scores.extrapolated_distance(
            real.mean, real.covariance, _features(fake, protocol), protocol.extrapolation_points, protocol.seed
        )
    return metrics


def _frechet(real: FeatureSet, fake: FeatureSet) -> float:
    one, two = real.features, fake.features
    if one is not None and two is not None and max(len(one), len(two)) <= real.dim:
        # The same, from matrices no larger than the number of images, and without roots of singular covariances.
        return scores.frechet_distance_of_features(one, two)
    return scores.frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance)


def _between_images(
    real: FeatureSet, fake: FeatureSet, protocol: Protocol, device: torch.device, known: OfReals
) -> dict[str, float]:
    """Return the scores that look at pairs of images."""
    wanted = {"kernel", "precision_recall", "density_coverage"} & set(protocol.metrics)
    if not wanted:
        return {}
    reals, fakes = (_features(part, protocol).to(device) for part in (real, fake))
    metrics: dict[str, float] = {}
    if "kernel" in wanted:
        sizes = (protocol.kernel_subsets, protocol.kernel_subset_size)
        metrics["kd_mean"], metrics["kd_std"] = scores.kernel_distance(reals, fakes, *sizes, protocol.seed)
    if wanted & {"precision_recall", "density_coverage"}:
        k = protocol.neighbours if "precision_recall" in wanted else None
        density_k = protocol.density_neighbours if "density_coverage" in wanted else None
        metrics |= neighbour_scores(reals, fakes, k, density_k, known.radii)
    return metrics


def _features(part: FeatureSet, protocol: Protocol) -> Tensor:
    if part.features is None:
        raise ValueError(
            f"{part.source} holds no features, only their mean and covariance, which give frechet and inception_score "
            f"but not all of {', '.join(protocol.metrics)}: set metrics, or name the images themselves"
        )
    return part.features


def _spatial(part: FeatureSet) -> tuple[Tensor, Tensor]:
    if part.spatial is None:
        raise ValueError(
            f"{part.source} holds no statistics of spatial features (mu_s, sigma_s): leave spatial_frechet out of "
            "metrics, or name the images themselves"
        )
    return part.spatial


def versions() -> dict[str, str]:
    """Return the versions that can change a score."""
    found = {"python": platform.python_version()}
    for package in ("maxgan", "torch", "numpy", "pillow"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
