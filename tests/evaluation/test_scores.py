"""Scores against scipy, mpmath, scikit-learn, torch-fidelity and loops written from the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics import accuracy_score
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from maxgan.evaluation import scores

Gaussian = tuple[np.ndarray, np.ndarray]


def sample(count: int, dim: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim)) / math.sqrt(dim) + shift


def gaussian(x: np.ndarray) -> Gaussian:
    return x.mean(0), np.cov(x, rowvar=False)


# Fréchet distance


@pytest.mark.parametrize("dim", [2, 16, 64])
def test_frechet_distance_equals_scipy_and_torch_fidelity_at_full_rank(dim: int) -> None:
    (m1, s1), (m2, s2) = gaussian(sample(500, dim, 0)), gaussian(sample(400, dim, 1, 0.3))
    root = scipy.linalg.sqrtm(s1 @ s2)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * root.real)
    found = scores.frechet_distance(m1, s1, m2, s2)
    assert found == pytest.approx(expected, rel=1e-10)
    official = fid_statistics_to_metric({"mu": m1, "sigma": s1}, {"mu": m2, "sigma": s2}, False)
    assert found == pytest.approx(official["frechet_inception_distance"], rel=1e-10)
    assert found == pytest.approx(scores.frechet_distance(m2, s2, m1, s1), rel=1e-10)


def test_frechet_distance_equals_fifty_digits() -> None:
    (m1, s1), (m2, s2) = gaussian(sample(30, 3, 0)), gaussian(sample(30, 3, 1))
    with mpmath.workdps(50):
        eigenvalues = mpmath.eig(mpmath.matrix(s1.tolist()) * mpmath.matrix(s2.tolist()), left=False, right=False)
        cross = mpmath.fsum(mpmath.sqrt(mpmath.re(value)) for value in eigenvalues)
        shift = mpmath.fsum((mpmath.mpf(a) - mpmath.mpf(b)) ** 2 for a, b in zip(m1.tolist(), m2.tolist(), strict=True))
        trace = mpmath.fsum(mpmath.mpf(value) for value in [*np.diag(s1).tolist(), *np.diag(s2).tolist()])
        expected = float(shift + trace - 2 * cross)
    assert scores.frechet_distance(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-13)


def test_frechet_distance_of_singular_covariances() -> None:
    x, y = sample(20, 64, 0), sample(12, 64, 1)
    # tr (S1 S2)^(1/2) is the sum of the singular values of the product of the centred data: no root of noise.
    cross = np.linalg.svd((x - x.mean(0)) @ (y - y.mean(0)).T, compute_uv=False).sum() / math.sqrt(19 * 11)
    (m1, s1), (m2, s2) = gaussian(x), gaussian(y)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross
    assert scores.frechet_distance(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-6)
    assert scores.frechet_distance(m2, s2, m1, s1) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [10, 500])
def test_frechet_distance_of_equal_gaussians_is_zero_and_never_below(count: int) -> None:
    for seed in range(5):
        mean, cov = gaussian(sample(count, 32, seed))
        assert 0 <= scores.frechet_distance(mean, cov, mean, cov) < 1e-6 * np.trace(cov)
    assert scores.frechet_distance(mean, 0 * cov, mean, 0 * cov) == 0


def test_frechet_distance_refuses_what_does_not_fit() -> None:
    mean, cov = np.zeros(3), np.eye(3)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        scores.frechet_distance(mean, cov, np.zeros(2), cov)
    with pytest.raises(ValueError, match="shapes"):
        scores.frechet_distance(mean, cov, mean, np.eye(2))
    with pytest.raises(ValueError, match="NaN"):
        scores.frechet_distance(mean, cov * np.nan, mean, cov)


# Kernel distance


def test_kernel_distance_equals_torch_fidelity_on_the_same_subsets() -> None:
    real, fake = torch.from_numpy(sample(300, 16, 0)), torch.from_numpy(sample(200, 16, 1, 0.2))
    expected = kid_features_to_metric(fake, real, kid_subsets=7, kid_subset_size=50, rng_seed=5, verbose=False)
    mean, std = scores.kernel_distance(real, fake, subsets=7, subset_size=50, seed=5)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-10)
    assert std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-10)
    assert scores.kernel_distance(real, fake, 7, 50, seed=6)[0] != mean


def test_kernel_distance_of_all_images_equals_the_formula() -> None:
    x, y = sample(9, 4, 0), sample(9, 4, 1)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / 4 + 1) ** 3

    pairs = [(i, j) for i in range(9) for j in range(9)]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / (9 * 8)
    expected = within - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 81
    mean, std = scores.kernel_distance(x, y, subsets=3)
    assert mean == pytest.approx(expected, rel=1e-12)
    assert std == pytest.approx(0, abs=1e-12)


# Precision, recall and nearest neighbours


def naive_precision_recall(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    def share(points: np.ndarray, centres: np.ndarray) -> float:
        inside = 0
        for point in points:
            for i, centre in enumerate(centres):
                others = sorted(math.dist(centre, other) for j, other in enumerate(centres) if j != i)
                if math.dist(point, centre) <= others[k - 1]:
                    inside += 1
                    break
        return inside / len(points)

    return share(fake, real), share(real, fake)


@pytest.fixture(params=[scores.BLOCK_DISTANCES, 100])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "BLOCK_DISTANCES", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_equals_the_definition_and_torch_fidelity(k: int) -> None:
    real, fake = sample(40, 6, 0), sample(30, 6, 0, 0.4) * 0.8
    found = scores.precision_recall(real, fake, k)
    assert found == naive_precision_recall(real, fake, k)
    assert 0 < found[0] < 1
    assert 0 < found[1] < 1
    options = {"prc_neighborhood": k, "prc_batch_size": 100, "verbose": False}
    expected = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), **options)
    assert found == pytest.approx((expected["precision"], expected["recall"]), abs=1e-6)


@pytest.mark.usefixtures("block")
def test_copies_are_inside_balls_of_radius_zero() -> None:
    point, other = sample(2, 50, 0, shift=100.0).astype(np.float32)
    real = np.stack([point] * 10 + [other] * 10)
    assert scores.precision_recall(real, np.stack([point] * 7)) == (1, 0.5)
    assert scores.precision_recall(real, np.stack([point + 1] * 7)) == (0, 0)
    x = sample(41, 50, 1, shift=100.0).astype(np.float32)
    assert scores.precision_recall(x, x) == (1, 1)
    assert scores.precision_recall(np.tile(x, (4, 1)), x[:7])[0] == 1


@pytest.mark.usefixtures("block")
def test_nearest_distances_equal_the_definition_and_copies_have_distance_zero() -> None:
    references, queries = sample(60, 5, 0, 50.0), sample(35, 5, 1, 50.0)
    queries[4] = references[17]
    queries[5] = references[17] + 1e-9
    expected = [min(math.dist(query, reference) for reference in references) for query in queries]
    found = scores.nearest_distances(queries, references)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[4] == 0
    assert found[5] > 0
    assert scores.nearest_distances(queries[:0], references).shape == (0,)


# Half-splits and accuracy


def test_half_split_distance_equals_the_same_splits_by_numpy_and_scipy() -> None:
    x = sample(201, 8, 0)
    rng = np.random.default_rng(3)
    expected = []
    for _ in range(4):
        order = rng.permutation(201)
        (m1, s1), (m2, s2) = gaussian(x[order[:100]]), gaussian(x[order[100:200]])
        expected.append(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real))
    mean, std = scores.half_split_distance(x, splits=4, seed=3)
    assert mean == pytest.approx(np.mean(expected), rel=1e-10)
    assert std == pytest.approx(np.std(expected), rel=1e-8)
    assert scores.half_split_distance(x, splits=4, seed=3) == (mean, std)


def test_accuracy_of_logits_and_of_classes_equals_scikit_learn() -> None:
    logits, labels = torch.from_numpy(sample(50, 4, 0)), torch.arange(50) % 4
    expected = accuracy_score(labels, logits.argmax(1))
    assert 0 < expected < 1
    assert scores.accuracy(logits, labels) == pytest.approx(expected)
    assert scores.accuracy(logits.argmax(1), labels) == pytest.approx(expected)
    with pytest.raises(ValueError, match="49 for 50"):
        scores.accuracy(logits, labels[1:])
    with pytest.raises(ValueError, match="0 for 0"):
        scores.accuracy(logits[:0], labels[:0])


# Mistakes


@pytest.mark.parametrize("score", [scores.kernel_distance, scores.precision_recall, scores.nearest_distances])
def test_features_that_are_not_finite_or_do_not_fit_are_refused(score: Callable[..., object]) -> None:
    good, bad = sample(10, 4, 0), sample(10, 4, 1)
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        score(good, bad)
    with pytest.raises(ValueError, match="NaN"):
        score(bad, good)
    with pytest.raises(ValueError, match="same number of features"):
        score(good, good[:, :3])


def test_too_few_images_are_refused() -> None:
    x = sample(10, 4, 0)
    with pytest.raises(ValueError, match="1 subset of 2 images"):
        scores.kernel_distance(x, x[:1])
    with pytest.raises(ValueError, match="k is 3, with 10 reals and 3 fakes"):
        scores.precision_recall(x, x[:3])
    with pytest.raises(ValueError, match="at least 1 reference"):
        scores.nearest_distances(x, x[:0])
    with pytest.raises(ValueError, match="at least 4 images"):
        scores.half_split_distance(x[:3])
    x[0, 0] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        scores.half_split_distance(x)
