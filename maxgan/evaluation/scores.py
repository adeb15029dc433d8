"""Scores of fake features against real ones: pure mathematics in float64, no models."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maxgan.evaluation.statistics import ArrayLike, GaussianStatistics, check_features, pair

# Kernel values held at a time, 64 MiB in float64: bounds the memory for sets of any size.
BLOCK_VALUES = 2**23


def frechet_distance(mean1: ArrayLike, cov1: ArrayLike, mean2: ArrayLike, cov2: ArrayLike) -> float:
    """Return the Fréchet distance of two Gaussians, |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), at least 0.

    tr (S1 S2)^(1/2) is the sum of the roots of the eigenvalues of L^T S2 L, which is symmetric, with S1 = L L^T: real
    and never negative, where the root of the product S1 S2 (Heusel et al., arXiv 1706.08500) may turn complex. For
    singular covariances see `_trace_of_root`.

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
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * _trace_of_root(cov1, cov2)
    return max(float(distance), 0.0)


def _trace_of_root(cov1: Tensor, cov2: Tensor) -> Tensor:
    """Return tr (S1 S2)^(1/2), at least 0.

    Where an eigenvalue of the product is zero, its root would turn rounding of 1e-16 into 1e-8 for each dimension. Then
    it is taken, in four times the time, as the sum of the singular values of R1^T R2, with S = R R^T: no root of noise.
    """
    factor, failed = torch.linalg.cholesky_ex(cov1)
    if not failed:
        values = torch.linalg.eigvalsh(factor.T @ cov2 @ factor)
        if values[0] > values[-1] * len(values) * torch.finfo(values.dtype).eps:
            return values.sqrt().sum()
    return torch.linalg.svdvals(_root(cov1).T @ _root(cov2)).sum()


def _root(cov: Tensor) -> Tensor:
    """Return R `(D, r)` with R R^T = S, r the numerical rank."""
    values, vectors = torch.linalg.eigh(cov)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance_of_features(one: ArrayLike, two: ArrayLike) -> float:
    """Return the Fréchet distance of the Gaussians of two sets of features held in memory, at least 0.

    Equal to that of their statistics. With fewer images than features the roots of the covariances are the centred
    features themselves, so that no matrix is larger than the number of images: a class of 50 images takes milliseconds.

    Args:
        one: `(N, D)`, N at least 2.
        two: `(M, D)`, M at least 2.
    """
    one, two = pair(one, two, ("the first", "the second"))
    if min(len(one), len(two)) < 2:
        raise ValueError(f"a covariance needs at least 2 images, and there are {len(one)} and {len(two)}")
    if max(len(one), len(two)) > one.shape[1]:
        first, second = GaussianStatistics.of(one), GaussianStatistics.of(two)
        return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
    means = one.mean(0), two.mean(0)
    roots = [(x - mean) / (len(x) - 1) ** 0.5 for x, mean in zip((one, two), means, strict=True)]
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    traces = sum(root.square().sum() for root in roots)
    return max(float((means[0] - means[1]).square().sum() + traces - 2 * cross), 0.0)


def kernel_distance(
    real: ArrayLike, fake: ArrayLike, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return mean and standard deviation over random subsets of the unbiased MMD^2 with the kernel (x.y / D + 1)^3.

    KID (Bińkowski et al., arXiv 1801.01401) when the features are Inception's. Around 0, and so at times negative, for
    equal distributions. Subsets are drawn as torch-fidelity draws them with `rng_seed=seed`, the fakes as its first
    input. The estimator is the unbiased one: the diagonals of both kernels within a set are left out.

    Args:
        real: `(N, D)`.
        fake: `(M, D)`.
        subsets: number of subsets, at least 1.
        subset_size: images of each subset and side; at most all that the smaller set has.
        seed: of the subsets.

    Raises:
        ValueError: for NaN or infinite features, different D, or fewer than 2 images a subset.
    """
    real, fake = pair(real, fake)
    size = min(subset_size, len(real), len(fake))
    if size < 2 or subsets < 1:
        raise ValueError(f"a kernel distance needs at least 1 subset of 2 images, not {subsets} of {size}")
    rng = np.random.RandomState(seed)
    chosen = [[torch.from_numpy(rng.choice(len(x), size, replace=False)) for x in (fake, real)] for _ in range(subsets)]
    if max(len(real), len(fake)) ** 2 <= subsets * size**2:
        # The kernel of all images once, and the sums of every subset from it, take fewer products.
        in_fake, in_real = (torch.zeros(subsets, len(x), dtype=torch.float64) for x in (fake, real))
        for i, (x, y) in enumerate(chosen):
            in_fake[i, x], in_real[i, y] = 1, 1
        distances = _mmd2_of_subsets(fake, real, in_fake.to(fake.device), in_real.to(real.device))
    else:
        whole = torch.ones(1, size, dtype=torch.float64, device=fake.device)
        distances = torch.cat([_mmd2_of_subsets(fake[x], real[y], whole, whole) for x, y in chosen])
    return float(distances.mean()), float(distances.std(correction=0))


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
        distances.append(frechet_distance_of_features(features[order[:half]], features[order[half : 2 * half]]))
    return float(np.mean(distances)), float(np.std(distances))


def resampled_distance(
    mean: ArrayLike, cov: ArrayLike, fake: ArrayLike, resamples: int, seed: int = 0
) -> tuple[float, float]:
    """Return mean and standard deviation of the Fréchet distance over resamplings of the fakes (the bootstrap).

    Each draws as many fakes as there are, with repetition. The deviation tells how far the distance would move with
    other fakes of the same generator; the mean lies above the distance, which is biased by the number of images.

    Args:
        mean: of the reals, `(D,)`.
        cov: of the reals, `(D, D)`.
        fake: `(M, D)`.
        resamples: number of resamplings, at least 2.
        seed: of the drawings.
    """
    fake = check_features(fake)
    if resamples < 2:
        raise ValueError(f"a deviation needs at least 2 resamplings, not {resamples}")
    rng = np.random.default_rng(seed)
    draws = [torch.from_numpy(rng.integers(len(fake), size=len(fake))) for _ in range(resamples)]
    distances = [_distance_to(mean, cov, fake[rows]) for rows in draws]
    return float(np.mean(distances)), float(np.std(distances))


def extrapolated_distance(mean: ArrayLike, cov: ArrayLike, fake: ArrayLike, points: int = 15, seed: int = 0) -> float:
    """Return the Fréchet distance for infinitely many fakes (FID-infinity, Chong and Forsyth, arXiv 1911.07023).

    Its bias is linear in 1 / M. So a line is fitted through the distances of random subsets of M/10 to M fakes, their
    sizes evenly spaced, and read off at 0, as in the official code. The bias of the reference stays. May be below 0
    where the true distance is about 0.

    Args:
        mean: of the reals, `(D,)`.
        cov: of the reals, `(D, D)`.
        fake: `(M, D)`, M at least 20.
        points: number of sizes, at least 2.
        seed: of the subsets.
    """
    fake = check_features(fake)
    if points < 2 or len(fake) < 20:
        raise ValueError(f"an extrapolation needs at least 2 points and 20 fakes, not {points} and {len(fake)}")
    rng = np.random.default_rng(seed)
    sizes = np.linspace(len(fake) // 10, len(fake), points).astype(int)
    distances = []
    for size in sizes:
        rows = torch.from_numpy(rng.choice(len(fake), size, replace=False))
        distances.append(_distance_to(mean, cov, fake[rows]))
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def _distance_to(mean: ArrayLike, cov: ArrayLike, features: Tensor) -> float:
    fake = GaussianStatistics.of(features)
    return frechet_distance(mean, cov, fake.mean, fake.covariance)


def class_distances(real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor) -> dict[int, float]:
    """Return the Fréchet distance within each class that has at least 2 reals and 2 fakes, by class.

    Args:
        real: features `(N, D)`.
        real_labels: int64 `(N,)`.
        fake: features `(M, D)`.
        fake_labels: int64 `(M,)`.
    """
    counted = [labels.unique(return_counts=True) for labels in (real_labels, fake_labels)]
    classes = [set(values[counts > 1].tolist()) for values, counts in counted]
    return {
        label: frechet_distance_of_features(real[real_labels == label], fake[fake_labels == label])
        for label in sorted(classes[0] & classes[1])
    }


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


def _mmd2_of_subsets(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """Return the unbiased MMD^2 `(S,)` of subsets (Gretton et al. 2012, lemma 6, with m = n).

    Args:
        x: `(N, D)`.
        y: `(M, D)`.
        in_x: `(S, N)`, 1 for the m images of each subset and 0 for the others.
        in_y: `(S, M)`.
    """
    m = in_x[0].sum()
    within = _kernel_sums(x, x, in_x, in_x) + _kernel_sums(y, y, in_y, in_y)
    diagonal = sum((member @ _kernel(z.square().sum(1), z.shape[1])) for z, member in ((x, in_x), (y, in_y)))
    return (within - diagonal) / (m * (m - 1)) - 2 * _kernel_sums(x, y, in_x, in_y) / m**2


def _kernel_sums(x: Tensor, y: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """Return, for each subset, the sum of the kernel over its images of x and y, `(S,)`."""
    sums = torch.zeros(len(in_x), dtype=torch.float64, device=x.device)
    rows = max(1, BLOCK_VALUES // len(y))
    for block, members in zip(x.split(rows), in_x.split(rows, 1), strict=True):
        sums += ((members @ _kernel(block @ y.T, x.shape[1])) * in_y).sum(1)
    return sums


def _kernel(products: Tensor, dim: int) -> Tensor:
    return (products / dim + 1).pow(3)
