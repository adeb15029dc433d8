"""Scores of fake features against real ones: pure mathematics in float64, no models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from maxgan.evaluation.statistics import ArrayLike, GaussianStatistics, check_features

# Distances held at a time, 64 MiB in float64: bounds the memory of the neighbour searches for sets of any size.
BLOCK_DISTANCES = 2**23


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Return the Fréchet distance of two Gaussians, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), at least 0.

    tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric: real and
    safe also for singular covariances, where the root of the product S1 S2 (Heusel et al., arXiv 1706.08500) turns
    complex.

    Args:
        mean1: `(D,)`.
        cov1: `(D, D)`, symmetric and positive semi-definite.
        mean2: `(D,)`.
        cov2: `(D, D)`.

    Raises:
        ValueError: for shapes that don't fit or values that are not finite.
    """
    mean1, cov1, mean2, cov2 = (torch.as_tensor(x).to("cpu", torch.float64) for x in (mean1, cov1, mean2, cov2))
    dim = mean1.numel()
    if mean1.shape != (dim,) or mean2.shape != (dim,) or cov1.shape != (dim, dim) or cov2.shape != (dim, dim):
        shapes = ", ".join(str(tuple(x.shape)) for x in (mean1, cov1, mean2, cov2))
        raise ValueError(f"a Fréchet distance takes shapes (D,), (D, D), (D,), (D, D), not {shapes}")
    if not all(x.isfinite().all() for x in (mean1, cov1, mean2, cov2)):
        raise ValueError("means and covariances hold NaN or infinite values: check the features they were made from")
    values, vectors = torch.linalg.eigh(cov1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp_min(0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(float(distance), 0.0)


def kernel_distance(
    real: ArrayLike, fake: ArrayLike, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return mean and standard deviation over random subsets of the unbiased MMD^2 with the kernel (x.y / D + 1)^3.

    KID (Bińkowski et al., arXiv 1801.01401) when the features are Inception's. Around 0, and so at times negative, for
    equal distributions. Subsets are drawn as torch-fidelity draws them with `rng_seed=seed`, the fakes as its first
    input.

    Args:
        real: `(N, D)`.
        fake: `(M, D)`.
        subsets: number of subsets, at least 1.
        subset_size: images of each subset and side; at most all that the smaller set has.
        seed: of the subsets.

    Raises:
        ValueError: for NaN or infinite features, different D, or fewer than 2 images a subset.
    """
    real, fake = _pair(real, fake)
    size = min(subset_size, len(real), len(fake))
    if size < 2 or subsets < 1:
        raise ValueError(f"a kernel distance needs at least 1 subset of 2 images, not {subsets} of {size}")
    rng = np.random.RandomState(seed)
    distances = []
    for _ in range(subsets):
        x = fake[torch.from_numpy(rng.choice(len(fake), size, replace=False))]
        y = real[torch.from_numpy(rng.choice(len(real), size, replace=False))]
        distances.append(_mmd2(x, y))
    return float(np.mean(distances)), float(np.std(distances))


def precision_recall(real: ArrayLike, fake: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Return improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991), each in [0, 1].

    Every image spans a ball out to its k-th nearest neighbour in its own set. Precision is the share of fakes inside a
    ball of a real image, recall the share of reals inside a ball of a fake.

    Args:
        real: `(N, D)`.
        fake: `(M, D)`.
        k: neighbours, itself not counted; below N and M.

    Raises:
        ValueError: for NaN or infinite features, different D, or k out of range.
    """
    real, fake = _pair(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f"precision and recall need 1 <= k < number of images: "
            f"k is {k}, with {len(real)} reals and {len(fake)} fakes"
        )
    return _share_inside(fake, real, k), _share_inside(real, fake, k)


def nearest_distances(queries: ArrayLike, references: ArrayLike) -> Tensor:
    """Return the Euclidean distance of every query `(N, D)` to the nearest of the references `(M, D)`: `(N,)`, float64.

    Small distances of samples to training images are a sign of memorising. An exact copy has distance 0.
    """
    references, queries = _pair(references, queries, names=("references", "queries"))
    if not len(references):
        raise ValueError("nearest distances need at least 1 reference, and there is none")
    nearest = [block.argmin(1) for block in _squared_distances(queries, references)]
    # The search goes by matrix products, which round; the distance to what it found is taken directly.
    return torch.linalg.vector_norm(queries - references[torch.cat(nearest)], dim=1)


def half_split_distance(features: ArrayLike, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Return mean and standard deviation, over random splits, of the Fréchet distance between two halves of one set.

    The noise floor of a score: what real images of half the number score against each other. With an odd number one
    image sits out of each split.

    Args:
        features: `(N, D)`, N at least 4.
        splits: number of random splits, at least 1.
        seed: of the splits.
    """
    features = check_features(features)
    half = len(features) // 2
    if half < 2 or splits < 1:
        raise ValueError(f"half-splits need at least 4 images and 1 split, not {len(features)} and {splits}")
    rng = np.random.default_rng(seed)
    distances = []
    for _ in range(splits):
        order = torch.from_numpy(rng.permutation(len(features)))
        one, two = (GaussianStatistics.of(features[part]) for part in (order[:half], order[half : 2 * half]))
        distances.append(frechet_distance(one.mean, one.covariance, two.mean, two.covariance))
    return float(np.mean(distances)), float(np.std(distances))


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the share of right predictions, in [0, 1].

    Args:
        predictions: logits `(N, K)`, or classes `(N,)`.
        labels: `(N,)`.

    Raises:
        ValueError: without any, or for different numbers of both.
    """
    classes = predictions.argmax(1) if predictions.ndim == 2 else predictions
    if classes.shape != labels.shape or not len(labels):
        raise ValueError(f"accuracy needs one label for every prediction, not {len(labels)} for {len(classes)}")
    return float((classes == labels).double().mean())


def _pair(one: ArrayLike, two: ArrayLike, names: tuple[str, str] = ("real", "fake")) -> tuple[Tensor, Tensor]:
    """Check two sets of features against each other; return them in float64."""
    first, second = (check_features(x, f"{name} features").double() for x, name in zip((one, two), names, strict=True))
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of features, "
            f"not {first.shape[1]} and {second.shape[1]}: use one extractor for both"
        )
    return first, second


def _mmd2(x: Tensor, y: Tensor) -> float:
    """Return the unbiased MMD^2 of two sets `(m, D)` (Gretton et al. 2012, lemma 6, with m = n)."""
    m, dim = x.shape
    xx, yy, xy = ((a @ b.T / dim + 1).pow(3) for a, b in ((x, x), (y, y), (x, y)))
    return float((xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (m * (m - 1)) - 2 * xy.mean())


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    """Return the share of points `(N, D)` in a ball of a centre `(M, D)`, out to its k-th nearest centre."""
    radii: list[Tensor] = []
    start = 0
    for block in _squared_distances(centres, centres):
        # Not a neighbour of itself, also where copies of it make the order of equal distances arbitrary.
        block.diagonal(start).fill_(torch.inf)
        radii.append(block.topk(k, dim=1, largest=False).values[:, -1])
        start += len(block)
    radius = torch.cat(radii)
    inside = [(block <= radius).any(1) for block in _squared_distances(points, centres)]
    return float(torch.cat(inside).double().mean())


def _squared_distances(queries: Tensor, references: Tensor) -> Iterator[Tensor]:
    """Yield squared distances `(rows, M)` from queries `(N, D)` to references `(M, D)`, in blocks of queries."""
    centre = references.mean(0)
    references = references - centre
    reference_norms = references.square().sum(1)
    for block in queries.split(max(1, BLOCK_DISTANCES // len(references))):
        block = block - centre
        norms = block.square().sum(1, keepdim=True) + reference_norms
        squared = torch.addmm(norms, block, references.T, alpha=-2)
        # |x|^2 + |y|^2 - 2 x.y of equal points is noise; as 0 it puts copies inside each other's balls of radius 0.
        yield squared.masked_fill_(squared < 1e-13 * norms, 0)
