"""Statistics of features and logits, streamed in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ArrayLike = Tensor | np.ndarray

# Rows turned to float64 at a time, so that a large set of float32 features is never doubled in memory.
BLOCK_ROWS = 8192


def check_features(features: ArrayLike, what: str = "features") -> Tensor:
    """Return features `(N, D)` as a tensor; raise ValueError unless they are finite and of that shape."""
    features = torch.as_tensor(features).detach()
    if features.ndim != 2:
        raise ValueError(f"{what} must have the shape (N, D), not {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError(f"{what} hold NaN or infinite values: check the images and the extractor that made them")
    return features


def pair(one: ArrayLike, two: ArrayLike, names: tuple[str, str] = ("real", "fake")) -> tuple[Tensor, Tensor]:
    """Check two sets of features against each other; return them in float64."""
    first, second = (check_features(x, f"{name} features").double() for x, name in zip((one, two), names, strict=True))
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of features, "
            f"not {first.shape[1]} and {second.shape[1]}: use one extractor for both"
        )
    return first, second


class GaussianStatistics:
    """Count, mean and covariance of features that arrive in parts of any size and in any order.

    Kept are the count n, the mean m and the scatter S = sum (x - m)(x - m)^T, in float64. They hold the same as the
    sums of x and of x x^T, and merge as exactly (Chan, Golub and LeVeque 1983), but S is never the small difference of
    two large sums: features far from zero lose no digits.

    Args:
        dim: number of features D.
        device: where they are summed; it must know float64.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        if dim < 1:
            raise ValueError(f"statistics need at least 1 feature dimension, not {dim}")
        self.dim = dim
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features: ArrayLike) -> GaussianStatistics:
        """Return the statistics of features `(N, D)` held in memory."""
        features = check_features(features)
        statistics = cls(features.shape[1])
        for block in features.split(BLOCK_ROWS):
            statistics.update(block)
        return statistics

    def update(self, features: ArrayLike) -> None:
        """Add features `(N, D)`; raise ValueError, and add nothing, for another D or for NaN or infinite values."""
        features = check_features(features)
        self._check_dim(features.shape[1])
        if not len(features):
            return
        batch = features.to(self._mean.device, torch.float64)
        mean = batch.mean(0)
        centred = batch - mean
        self._scatter.addmm_(centred.T, centred)
        self._shift(len(batch), mean)

    def merge(self, other: GaussianStatistics) -> None:
        """Add all that `other` has seen; `other` stays as it is."""
        self._check_dim(other.dim)
        if other.count:
            self._scatter += other._scatter.to(self._scatter.device)
            self._shift(other.count, other._mean.to(self._mean.device))

    def sums(self) -> Tensor:
        """Return count, mean and scatter as one vector `(1 + D + D * D,)`, float64, to be sent to other processes."""
        count = self._mean.new_tensor([self.count])
        return torch.cat([count, self._mean, self._scatter.flatten()])

    @classmethod
    def from_sums(cls, sums: Tensor, dim: int) -> GaussianStatistics:
        """Return the statistics that `sums` gave, on its device."""
        statistics = cls(dim, sums.device)
        statistics.count = int(sums[0])
        statistics._mean, statistics._scatter = sums[1 : dim + 1].clone(), sums[dim + 1 :].view(dim, dim).clone()
        return statistics

    @property
    def mean(self) -> Tensor:
        """Mean `(D,)`, float64; raises ValueError before the first feature."""
        if not self.count:
            raise ValueError("the mean needs at least 1 image, and there is none")
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance `(D, D)` (divisor N - 1, as `np.cov`), float64; raises ValueError below two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, and there are {self.count}")
        return self._scatter / (self.count - 1)

    def _shift(self, count: int, mean: Tensor) -> None:
        """Move mean and count to hold `count` more features of this mean, whose own scatter is added already."""
        total = self.count + count
        step = mean - self._mean
        # In place: a copy of the scatter for every batch would take longer than the batch's product.
        self._scatter.addr_(step, step, alpha=self.count * count / total)
        self._mean += step * (count / total)
        self.count = total

    def _check_dim(self, dim: int) -> None:
        if dim != self.dim:
            raise ValueError(f"statistics of {self.dim} features can't take {dim} features: use one extractor for both")


class InceptionStatistics:
    """What the Inception Score needs of logits that arrive in parts of any size, for each of its splits, in float64.

    IS = exp(mean over images of KL(p(y|x) || p(y))) (Salimans et al., arXiv 1606.03498), and that mean is the mean of
    sum p log p less the same of the mean p. So for every split the count, the sum of p and the sum of p log p suffice.

    Args:
        classes: number of logits K.
        splits: number of splits, at least 1.
        device: where they are summed; it must know float64.
    """

    def __init__(self, classes: int, splits: int, device: torch.device | str = "cpu") -> None:
        if classes < 2 or splits < 1:
            raise ValueError(f"an Inception Score needs at least 2 classes and 1 split, not {classes} and {splits}")
        # A row a split: count, sum of p log p, sum of p.
        self.sums = torch.zeros(splits, 2 + classes, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, splits: Tensor) -> None:
        """Add logits `(N, K)` of images that belong to `splits`, int64 `(N,)`; the logits must be finite."""
        if logits.ndim != 2 or logits.shape[1] + 2 != self.sums.shape[1] or not logits.isfinite().all():
            raise ValueError(
                f"logits must be finite and (N, {self.sums.shape[1] - 2}), not {tuple(logits.shape)}: check the images "
                "and the extractor that made them"
            )
        log_p = logits.to(self.sums.device, torch.float64).log_softmax(1)
        p = log_p.exp()
        rows = torch.cat([torch.ones_like(p[:, :1]), (p * log_p).sum(1, keepdim=True), p], dim=1)
        self.sums.index_add_(0, splits.to(self.sums.device), rows)

    def score(self) -> tuple[float, float]:
        """Return mean and standard deviation over the splits, each split's score in [1, K].

        Raises:
            ValueError: for a split without images.
        """
        counts = self.sums[:, :1]
        if (counts < 1).any():
            images, splits = int(counts.sum()), len(counts)
            raise ValueError(f"an Inception Score of {splits} splits needs at least {splits} images, not {images}")
        negative_entropy, mean = (self.sums[:, 1:] / counts).split([1, self.sums.shape[1] - 2], dim=1)
        scores = (negative_entropy[:, 0] - torch.special.xlogy(mean, mean).sum(1)).exp().cpu().numpy()
        return float(scores.mean()), float(scores.std())


def inception_splits(count: int, splits: int, seed: int | None) -> Tensor:
    """Return the split of each of `count` images, int64 `(count,)`: contiguous parts of all but equal size.

    Args:
        seed: of the shuffle before, as torch-fidelity does it with `rng_seed=seed`; None: not shuffled, as in the
            original code.
    """
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    edges = [i * count // splits for i in range(1, splits)]
    found = np.empty(count, dtype=np.int64)
    found[order] = np.searchsorted(edges, np.arange(count), side="right")
    return torch.from_numpy(found)
