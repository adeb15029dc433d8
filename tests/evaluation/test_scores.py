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

from maxgan.evaluation import scores
from maxgan.evaluation.neighbours import nearest_distances, neighbour_scores

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
    expected = fifty_digits(m1, s1, m2, s2)
    assert scores.frechet_distance(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-13)


def test_frechet_distance_of_singular_covariances() -> None:
    x, y = sample(20, 64, 0), sample(12, 64, 1)
    # tr (S1 S2)^(1/2) is the sum of the singular values of the product of the centred data: no root of noise.
    cross = np.linalg.svd((x - x.mean(0)) @ (y - y.mean(0)).T, compute_uv=False).sum() / math.sqrt(19 * 11)
    (m1, s1), (m2, s2) = gaussian(x), gaussian(y)
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross
    assert scores.frechet_distance(m1, s1, m2, s2) == pytest.approx(expected, rel=1e-11)
    assert scores.frechet_distance(m2, s2, m1, s1) == pytest.approx(expected, rel=1e-11)


def fifty_digits(m1: np.ndarray, s1: np.ndarray, m2: np.ndarray, s2: np.ndarray) -> float:
    with mpmath.workdps(50):
        eigenvalues = mpmath.eig(mpmath.matrix(s1.tolist()) * mpmath.matrix(s2.tolist()), left=False, right=False)
        cross = mpmath.fsum(mpmath.re(mpmath.sqrt(value)) for value in eigenvalues)
        shift = mpmath.fsum((mpmath.mpf(a) - mpmath.mpf(b)) ** 2 for a, b in zip(m1.tolist(), m2.tolist(), strict=True))
        trace = mpmath.fsum(mpmath.mpf(value) for value in [*np.diag(s1).tolist(), *np.diag(s2).tolist()])
        return float(shift + trace - 2 * cross)


@pytest.mark.parametrize("decay", [0.5, 3.0, 6.0])
def test_frechet_distance_of_nearly_singular_covariances_equals_fifty_digits(decay: float) -> None:
    # Eigenvalues from 1 down to 10^-7, 10^-42 and 10^-84: the last ones are below the rounding of the matrix itself.
    scale = np.diag(10.0 ** (-decay / 2 * np.arange(14)))
    rng = np.random.default_rng(0)
    turns = [np.linalg.qr(rng.normal(size=(14, 14)))[0] for _ in range(2)]
    s1, s2 = (turn @ scale @ scale @ turn.T for turn in turns)
    s1, s2 = (s1 + s1.T) / 2, (s2 + s2.T) / 2
    m1, m2 = np.zeros(14), np.full(14, 0.1)
    assert scores.frechet_distance(m1, s1, m2, s2) == pytest.approx(fifty_digits(m1, s1, m2, s2), rel=3e-7)


@pytest.mark.parametrize(("first", "second"), [(200, 30), (30, 200), (30, 20), (200, 300)])
def test_frechet_distance_by_any_way_is_the_same(first: int, second: int) -> None:
    x, y = sample(first, 64, 0), sample(second, 64, 1, 0.2)
    expected = scores.frechet_distance_of_features(x, y)
    assert scores.frechet_distance(*gaussian(x), *gaussian(y)) == pytest.approx(expected, rel=1e-10)
    assert scores.frechet_distance(*gaussian(y), *gaussian(x)) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_singular_covariances_does_not_hang_on_the_order_of_the_images() -> None:
    x, y = sample(40, 64, 0), sample(30, 64, 1)
    (m1, s1), (m2, s2) = gaussian(x), gaussian(y)
    (m3, s3), (m4, s4) = gaussian(x[::-1]), gaussian(np.roll(y, 7, 0))
    found = scores.frechet_distance(m1, s1, m2, s2)
    assert scores.frechet_distance(m3, s3, m4, s4) == pytest.approx(found, rel=1e-10)


@pytest.mark.parametrize("dim", [64, pytest.param(256, marks=pytest.mark.slow)])
@pytest.mark.parametrize("decay", [8, 3])
def test_the_number_of_threads_hardly_changes_a_distance(decay: float, dim: int) -> None:
    # Eigenvalues down to 1e-16 or 1e-6 of the first: those near the limit of a numerical rank are the noisiest.
    scale = 10 ** -np.linspace(0, decay, dim)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0]
    real, fake = (np.random.default_rng(seed).normal(size=(2 * dim, dim)) * scale @ turn for seed in (1, 2))
    white = np.random.default_rng(3).normal(size=(2 * dim, dim))
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            mean, std = scores.resampled_distance(*gaussian(real), fake, 3)
            distances = [scores.frechet_distance(*gaussian(real), *gaussian(x)) for x in (fake, white)]
            found.append([*distances, mean, std, scores.extrapolated_distance(*gaussian(real), fake, 3)])
    finally:
        torch.set_num_threads(before)
    assert found[1] == pytest.approx(found[0], rel=1e-10)


@pytest.mark.parametrize("count", [10, 500])
def test_frechet_distance_of_equal_gaussians_is_zero_and_never_below(count: int) -> None:
    for seed in range(5):
        mean, cov = gaussian(sample(count, 32, seed))
        assert 0 <= scores.frechet_distance(mean, cov, mean, cov) < 1e-12 * np.trace(cov)
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


@pytest.mark.parametrize("subsets", [7, 40])
@pytest.mark.parametrize("block", [scores.BLOCK_VALUES, 3000])
def test_kernel_distance_equals_torch_fidelity_on_the_same_subsets(
    subsets: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 7 subsets of 50 are cheaper one by one; for 40 the kernel of all images is computed once.
    monkeypatch.setattr(scores, "BLOCK_VALUES", block)
    real, fake = torch.from_numpy(sample(300, 16, 0)), torch.from_numpy(sample(200, 16, 1, 0.2))
    expected = kid_features_to_metric(fake, real, kid_subsets=subsets, kid_subset_size=50, rng_seed=5, verbose=False)
    mean, std = scores.kernel_distance(real, fake, subsets=subsets, subset_size=50, seed=5)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-10)
    assert std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-10)
    assert scores.kernel_distance(real, fake, subsets, 50, seed=6)[0] != mean


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


def test_resampled_distance_is_the_deviation_of_the_bootstrap() -> None:
    real, fake = sample(400, 6, 0), sample(150, 6, 1)
    rng = np.random.default_rng(2)
    expected = []
    for _ in range(5):
        (m1, s1), (m2, s2) = gaussian(real), gaussian(fake[rng.integers(150, size=150)])
        expected.append(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real))
    mean, std = scores.resampled_distance(*gaussian(real), fake, 5, seed=2)
    assert mean == pytest.approx(np.mean(expected), rel=1e-10)
    assert std == pytest.approx(np.std(expected), rel=1e-8)
    with pytest.raises(ValueError, match="at least 2 resamplings"):
        scores.resampled_distance(*gaussian(real), fake, 1)


def test_extrapolation_comes_nearer_to_the_true_distance() -> None:
    rng = np.random.default_rng(0)
    real = gaussian(rng.normal(size=(20000, 20)))
    errors, biases = [], []
    for seed in range(5):
        fake = rng.normal(size=(400, 20)) * 1.1
        truth = 20 * 0.1**2
        errors.append(scores.extrapolated_distance(*real, fake, 15, seed) - truth)
        biases.append(scores._distance_to(*real, torch.from_numpy(fake)) - truth)
    assert np.mean(biases) > 0.1
    assert abs(np.mean(errors)) < 0.3 * np.mean(biases)
    sizes = np.array([40, 400])
    draws = np.random.default_rng(9)
    points = [scores._distance_to(*real, torch.from_numpy(fake[draws.choice(400, n, replace=False)])) for n in sizes]
    slope = (points[0] - points[1]) / (1 / 40 - 1 / 400)
    assert scores.extrapolated_distance(*real, fake, 2, 9) == pytest.approx(points[1] - slope / 400, rel=1e-9)


def test_class_distances_are_those_of_each_class() -> None:
    real, fake = torch.from_numpy(sample(40, 5, 0)), torch.from_numpy(sample(30, 5, 1))
    real_labels, fake_labels = torch.arange(40) % 3, torch.arange(30) % 4
    fake_labels[1] = 9
    real_labels[0] = 3  # a class with one real has no covariance
    found = scores.class_distances(real, real_labels, fake, fake_labels)
    assert list(found) == [0, 1, 2]
    one, two = gaussian(real[real_labels == 1].numpy()), gaussian(fake[fake_labels == 1].numpy())
    root = scipy.linalg.sqrtm(one[1] @ two[1]).real
    expected = ((one[0] - two[0]) ** 2).sum() + np.trace(one[1] + two[1] - 2 * root)
    assert found[1] == pytest.approx(expected, rel=1e-6)


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


@pytest.mark.parametrize("score", [scores.kernel_distance, neighbour_scores, nearest_distances])
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
    with pytest.raises(ValueError, match="at least 4 images"):
        scores.half_split_distance(x[:3])
    x[0, 0] = np.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        scores.half_split_distance(x)
