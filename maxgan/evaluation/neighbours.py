"""Scores from nearest neighbours in the space of features: precision, recall, density, coverage; in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from maxgan.evaluation.statistics import ArrayLike, check_features, pair

# Distances held at a time, 64 MiB in float64: bounds the memory of the searches for sets of any size.
BLOCK_DISTANCES = 2**23
# References that are searched at a time, in float64.
BLOCK_REFERENCES = 1024
# Balls are closed. A copy's distance is computed once more, and must not fall out of the ball by its last bits.
BORDER = 1 + 1e-9
PRECISION, DENSITY = "precision and recall", "density and coverage"


def real_radii(real: ArrayLike, precision_k: int | None = 3, density_k: int | None = 5) -> list[Tensor]:
    """Return the squared radii `(N,)` of the reals' balls, for each k that isn't None; see `neighbour_scores`.

    Raises:
        ValueError: for NaN or infinite features, or k out of range.
    """
    real = check_features(real, "real features").double()
    for k, names in ((precision_k, PRECISION), (density_k, DENSITY)):
        if k is not None:
            _check_k(k, names, len(real))
    return _squared_radii(real, [k for k in (precision_k, density_k) if k is not None])


def neighbour_scores(
    real: ArrayLike,
    fake: ArrayLike,
    precision_k: int | None = 3,
    density_k: int | None = 5,
    radii: list[Tensor] | None = None,
) -> dict[str, float]:
    """Return `precision`, `recall`, `density` and `coverage`, from one look at every distance.

    Every image spans a closed ball out to its k-th nearest neighbour in its own set. Precision is the share of fakes
    inside a ball of a real, recall the share of reals inside a ball of a fake (Kynkäänniemi et al., arXiv 1904.06991),
    each in [0, 1]. Density is the mean number of real balls that a fake is inside of, divided by k, from 0 and around 1
    for equal distributions; coverage the share of reals whose ball holds a fake, in [0, 1] (Naeem et al., arXiv
    2002.09797).

    Args:
        real: `(N, D)`.
        fake: `(M, D)`.
        precision_k: neighbours of precision and recall, itself not counted; None leaves both out.
        density_k: neighbours of density and coverage; None leaves both out.
        radii: `real_radii` of the same reals and k, half of the work or more: filled where it is empty, for the next
            fakes.

    Raises:
        ValueError: for NaN or infinite features, different D, or k out of range.
    """
    real, fake = pair(real, fake)
    assert precision_k is not None or density_k is not None
    if precision_k is not None:
        _check_k(precision_k, PRECISION, len(fake))
    radii = [] if radii is None else radii
    if not radii:
        radii += real_radii(real, precision_k, density_k)
    precision_radius, density_radius = radii[0], radii[-1]
    fake_radius = _squared_radii(fake, [precision_k])[0] if precision_k is not None else None
    precise, balls, start = 0, 0, 0
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    for block in _squared_distances(fake, real):
        if fake_radius is not None:
            precise += int((block <= precision_radius).any(1).sum())
            recalled |= (block <= fake_radius[start : start + len(block), None]).any(0)
        if density_k is not None:
            inside = block <= density_radius
            balls += int(inside.sum())
            covered |= inside.any(0)
        start += len(block)
    scores: dict[str, float] = {}
    if precision_k is not None:
        scores |= {"precision": precise / len(fake), "recall": float(recalled.double().mean())}
    if density_k is not None:
        scores |= {"density": balls / (density_k * len(fake)), "coverage": float(covered.double().mean())}
    return scores


def nearest(queries: ArrayLike, references: Iterable[ArrayLike], k: int) -> tuple[Tensor, Tensor]:
    """Return distances `(N, k)`, ascending, float64, and indices int64 `(N, k)` of the k references nearest to each
    query.

    Args:
        queries: `(N, D)`.
        references: parts `(M, D)` of any sizes; few are held at a time, so that they may be more than memory takes.
        k: at least 1, at most the number of references.

    Raises:
        ValueError: for NaN or infinite features, different D, or fewer references than k.
    """
    assert k >= 1
    queries = check_features(queries, "queries features").double()
    distances = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    count = 0
    for part in _joined(references):
        part, _ = pair(part, queries, names=("references", "queries"))
        near, which = _nearest_of(queries, part, min(k, len(part)))
        distances, order = torch.cat([distances, near], 1).sort(stable=True, dim=1)
        indices = torch.cat([indices, which + count], 1).gather(1, order)[:, :k]
        distances = distances[:, :k]
        count += len(part)
    if count < k:
        raise ValueError(f"{k} nearest need at least {k} references, and there are {count}")
    return distances, indices


def _joined(parts: Iterable[ArrayLike]) -> Iterator[Tensor]:
    """Yield the rows of small parts together, at least so many that their number outweighs what each search costs."""
    waiting: list[Tensor] = []
    for part in parts:
        waiting.append(torch.as_tensor(part))
        if sum(map(len, waiting)) >= BLOCK_REFERENCES:
            yield torch.cat(waiting)
            waiting.clear()
    if any(map(len, waiting)):
        yield torch.cat(waiting)


def _nearest_of(queries: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return distances and indices `(N, k)` of the references `(M, D)` nearest to each query, in any order."""
    blocks = [block.topk(k, dim=1, largest=False).indices for block in _squared_distances(queries, references)]
    found = torch.cat(blocks) if blocks else torch.empty(0, k, dtype=torch.int64, device=queries.device)
    # The search goes by matrix products, which round; the distances to what it found are taken directly.
    distances = [torch.linalg.vector_norm(queries - references[column], dim=1) for column in found.T]
    return torch.stack(distances, 1), found


def nearest_distances(queries: ArrayLike, references: ArrayLike) -> Tensor:
    """Return the Euclidean distance of every query `(N, D)` to the nearest of the references `(M, D)`: `(N,)`, float64.

    Small distances of samples to training images are a sign of memorising. An exact copy has distance 0.
    """
    return nearest(queries, torch.as_tensor(references).split(BLOCK_REFERENCES), 1)[0][:, 0]


def _check_k(k: int, names: str, count: int) -> None:
    if not 1 <= k < count:
        raise ValueError(f"{names} need 1 <= k < number of images: k is {k}, and the set has {count} images")


def _squared_radii(centres: Tensor, ks: Sequence[int]) -> list[Tensor]:
    """Return for each k the squared distance `(N,)` of every image to its k-th nearest in the same set."""
    radii: list[list[Tensor]] = [[] for _ in ks]
    start = 0
    for block in _squared_distances(centres, centres):
        # Not a neighbour of itself, also where copies of it make the order of equal distances arbitrary.
        block.diagonal(start).fill_(torch.inf)
        nearest = block.topk(max(ks), dim=1, largest=False).values
        for radius, k in zip(radii, ks, strict=True):
            radius.append(nearest[:, k - 1] * BORDER)
        start += len(block)
    return [torch.cat(radius) for radius in radii]


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
