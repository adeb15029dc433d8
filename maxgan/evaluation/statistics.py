"""Statistics of features and logits, streamed in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

ArrayLike = Tensor | np.ndarray

# Neighbours in the whole set of images whose statistics are computed at once.
CHUNK_IMAGES = 256
# Rows of a scatter that are computed and added at a time: they stay in the cache.
BLOCK_ROWS = 128


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


def exact_device(device: torch.device | str) -> torch.device:
    """Return where to compute in float64: on the device, or on the CPU beside Apple's GPUs, which don't know it."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


class GaussianStatistics:
    """Count, mean and covariance of features, bit for bit the same in whatever parts and order they come.

    A sum of floating-point numbers hangs on its order, and of a last bit, 1e-16, a Fréchet distance of all but singular
    covariances makes 1e-9. So image i belongs to chunk i // 256. When a chunk is complete it gives its mean m and its
    scatter sum (x - m)(x - m)^T, which hang on nothing but its images. The scatters are summed to twice the digits of
    float64 (Knuth's two-sum), where the order changes nothing that a float64 shows. The means are kept, 8 D bytes for
    256 images, and the scatter between chunks is added at the end in their order (Chan, Golub and LeVeque 1983). It is
    never the small difference of two large sums: features far from zero lose no digits.

    Args:
        dim: number of features D.
        device: where they are summed; it must know float64.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        if dim < 1:
            raise ValueError(f"statistics need at least 1 feature dimension, not {dim}")
        self.dim = dim
        self.count = 0
        # Of complete chunks: the sum of scatters in two parts, high and low, blocks on and above the diagonal alone.
        self._scatter = torch.zeros(2, dim, dim, dtype=torch.float64, device=device)
        self._means: dict[int, Tensor] = {}
        # Of the others: their rows, and which of them have come.
        self._open: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, features: ArrayLike) -> GaussianStatistics:
        """Return the statistics of features `(N, D)` held in memory."""
        features = check_features(features)
        statistics = cls(features.shape[1])
        statistics.update(features)
        return statistics

    def update(self, features: ArrayLike, places: Tensor | None = None) -> None:
        """Add features `(N, D)`.

        Args:
            features: of images that were not there before.
            places: int64 `(N,)`, on the CPU: place of each image in the whole set; None: they follow the last ones.

        Raises:
            ValueError: for another D, or NaN or infinite values; then nothing is added.
        """
        features = check_features(features)
        if features.shape[1] != self.dim:
            raise ValueError(
                f"statistics of {self.dim} features can't take {features.shape[1]} features: use one extractor for both"
            )
        if places is None:
            places = torch.arange(self.count, self.count + len(features))
        chunks, slots = places // CHUNK_IMAGES, places % CHUNK_IMAGES
        for chunk in chunks.unique().tolist():
            own = (chunks == chunk).nonzero()[:, 0]
            self._fill(chunk, features[own.to(features.device)], slots[own])
        self.count += len(features)

    def _fill(self, chunk: int, features: Tensor, slots: Tensor) -> None:
        """Put features in their slots of a chunk, and sum up the chunk if it is complete."""
        if chunk in self._open:
            rows, present = self._open.pop(chunk)
        else:
            rows = self._scatter.new_empty(CHUNK_IMAGES, self.dim)
            present = torch.zeros(CHUNK_IMAGES, dtype=torch.bool)
        rows[slots.to(rows.device)] = features.to(rows.device, rows.dtype)
        present[slots] = True
        if present.all():
            self._means[chunk] = rows.mean(0)
            rows -= self._means[chunk]
            # So few rows are never divided among threads, whose number changes no bit of the products.
            for left, right in _blocks(self.dim):
                _add(self._scatter[:, left, right], rows[:, left].T @ rows[:, right])
        else:
            self._open[chunk] = rows, present

    def gathered(self, gather: Callable[[Tensor], Sequence[Tensor]]) -> GaussianStatistics:
        """Return the statistics of all processes' images; every process must call this.

        Args:
            gather: returns the tensors `(n, ...)` of all processes, the same n or not, on any device.
        """
        device = self._scatter.device
        whole = GaussianStatistics(self.dim, device)
        # A block of all processes at a time: of 2,048 features their whole scatters would take 67 MB each.
        for rows, columns in _blocks(self.dim):
            for high, low in gather(self._scatter[:, rows, columns]):
                _add(whole._scatter[:, rows, columns], high.to(device))
                whole._scatter[1, rows, columns] += low.to(device)
        no_places, no_rows = torch.empty(0, dtype=torch.int64), self._scatter.new_empty(0, self.dim)
        chunks = gather(torch.tensor(list(self._means), dtype=torch.int64))
        means = gather(torch.cat([no_rows, *(mean[None] for mean in self._means.values())]))
        for own, part in zip(chunks, means, strict=True):
            whole._means |= dict(zip(own.tolist(), part.to(device), strict=True))
        whole.count = CHUNK_IMAGES * len(whole._means)
        # Chunks that lie in the shares of several processes are complete only now.
        kept = [(chunk * CHUNK_IMAGES + present.nonzero()[:, 0]) for chunk, (_, present) in self._open.items()]
        places = gather(torch.cat([no_places, *kept]))
        features = gather(torch.cat([no_rows, *map(self._rows, self._open)]))
        for own, part in zip(places, features, strict=True):
            whole.update(part, own.cpu())
        return whole

    @property
    def mean(self) -> Tensor:
        """Mean `(D,)`, float64; raises ValueError before the first feature."""
        if not self.count:
            raise ValueError("the mean needs at least 1 image, and there is none")
        counts, means = self._chunk_means()
        return (counts * means).sum(0) / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance `(D, D)` (divisor N - 1, as `np.cov`), float64; raises ValueError below two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, and there are {self.count}")
        counts, means = self._chunk_means()
        between = counts.sqrt() * (means - self.mean)
        within = [self._rows(chunk) for chunk in sorted(self._open)]
        scatter = self._scatter[0] + self._scatter[1]
        for rows in (*(rows - rows.mean(0) for rows in within), *between.split(CHUNK_IMAGES)):
            for left, right in _blocks(self.dim):
                scatter[left, right].addmm_(rows[:, left].T, rows[:, right])
        for left, right in _blocks(self.dim):
            scatter[right, left] = scatter[left, right].clone().T
        return scatter.div_(self.count - 1)

    def _rows(self, chunk: int) -> Tensor:
        """Return the features `(n, D)` of a chunk that is not complete, in the order of their images."""
        rows, present = self._open[chunk]
        return rows[present.to(rows.device)]

    def _chunk_means(self) -> tuple[Tensor, Tensor]:
        """Return the number of images `(K, 1)`, float64, and the mean `(K, D)` of every chunk, in their order."""
        means = self._means | {chunk: self._rows(chunk).mean(0) for chunk in self._open}
        counts = [len(self._rows(chunk)) if chunk in self._open else CHUNK_IMAGES for chunk in sorted(means)]
        return self._scatter.new_tensor(counts)[:, None], torch.stack([means[chunk] for chunk in sorted(means)])


def _blocks(dim: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of blocks that make up a matrix `(dim, dim)` on and above its diagonal."""
    for start in range(0, dim, BLOCK_ROWS):
        yield slice(start, start + BLOCK_ROWS), slice(start, dim)


def _add(total: Tensor, values: Tensor) -> None:
    """Add values to a sum in two parts `(2, ...)`: what rounding takes from the high one goes to the low one."""
    high, low = total
    added = high + values
    part = added - high
    low += (high - (added - part)) + (values - part)
    high.copy_(added)


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
