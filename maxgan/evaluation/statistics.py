"""Mean and covariance of features, streamed in float64."""

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


class GaussianStatistics:
    """Count, mean and covariance of features that arrive in parts of any size and in any order.

    Kept are the count n, the mean m and the scatter S = sum (x - m)(x - m)^T, in float64. They hold the same as the
    sums of x and of x x^T, and merge as exactly (Chan, Golub and LeVeque 1983), but S is never the small difference of
    two large sums: features far from zero lose no digits.

    Args:
        dim: number of features D.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"statistics need at least 1 feature dimension, not {dim}")
        self.dim = dim
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

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
        batch = features.to("cpu", torch.float64)
        mean = batch.mean(0)
        centred = batch - mean
        self._add(len(batch), mean, centred.T @ centred)

    def merge(self, other: GaussianStatistics) -> None:
        """Add all that `other` has seen; `other` stays as it is."""
        self._check_dim(other.dim)
        if other.count:
            self._add(other.count, other._mean, other._scatter)

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

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        step = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(step, step) * (self.count * count / total)
        self._mean = self._mean + step * (count / total)
        self.count = total

    def _check_dim(self, dim: int) -> None:
        if dim != self.dim:
            raise ValueError(f"statistics of {self.dim} features can't take {dim} features: use one extractor for both")
