"""Streamed statistics against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from maxgan.evaluation import statistics
from maxgan.evaluation.statistics import GaussianStatistics, InceptionStatistics, inception_splits


def features(count: int = 257, dim: int = 7, offset: float = 3.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return offset + rng.normal(size=(count, dim)) @ rng.normal(size=(dim, dim))


def fifteen_digits(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance by the formula in numpy's long double."""
    exact = x.astype(np.longdouble)
    centred = exact - exact.mean(0)
    return exact.mean(0).astype(float), (centred.T @ centred / (len(x) - 1)).astype(float)


@pytest.fixture(params=[(256, 128), (10, 3)])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of a chunk, and rows of a block of the scatter."""
    for name, size in zip(("CHUNK_IMAGES", "BLOCK_ROWS"), request.param, strict=True):
        monkeypatch.setattr(statistics, name, size)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("cuts", [[], [1], [100], [3, 3, 4, 200], [256], list(range(1, 300))])
def test_any_split_and_order_gives_the_same_bits_and_fifteen_digits(cuts: list[int]) -> None:
    x = features(300)
    whole = GaussianStatistics.of(x)
    mean, covariance = fifteen_digits(x)
    np.testing.assert_allclose(whole.mean, mean, rtol=1e-15)
    np.testing.assert_allclose(whole.covariance, covariance, rtol=1e-14, atol=1e-15)
    rng = np.random.default_rng(1)
    for order in (np.arange(300), np.arange(300)[::-1].copy(), rng.permutation(300)):
        streamed = GaussianStatistics(7)
        for part in np.split(order, cuts):
            streamed.update(torch.from_numpy(x[part]), torch.from_numpy(part))
        assert streamed.count == 300
        assert torch.equal(streamed.mean, whole.mean)
        assert torch.equal(streamed.covariance, whole.covariance)
    following = GaussianStatistics(7)
    for rows in np.split(x, cuts):
        following.update(rows)
    assert torch.equal(following.covariance, whole.covariance)


def test_features_far_from_zero_lose_no_digits() -> None:
    x = features(offset=0.0)
    shifted = x + 2.0**30  # a plain sum of outer products keeps no digit of the covariance here
    x = shifted - 2.0**30
    streamed = GaussianStatistics(7)
    for part in np.split(shifted, [1, 50, 51]):
        streamed.update(part)
    np.testing.assert_allclose(streamed.covariance, np.cov(x, rowvar=False), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("sizes")
def test_a_part_of_the_images_in_any_order_gives_the_same_bits() -> None:
    x, places = features(300), np.arange(0, 300, 2)
    whole = GaussianStatistics(7)
    whole.update(x[places], torch.from_numpy(places))
    mean, covariance = fifteen_digits(x[places])
    np.testing.assert_allclose(whole.mean, mean, rtol=1e-15)
    np.testing.assert_allclose(whole.covariance, covariance, rtol=1e-14, atol=1e-15)
    streamed = GaussianStatistics(7)
    for place in places[::-1].copy():
        streamed.update(x[[place]], torch.tensor([place]))
    assert torch.equal(streamed.covariance, whole.covariance)


@pytest.mark.usefixtures("sizes")
def test_float32_features_are_summed_in_float64() -> None:
    x = features().astype(np.float32)
    found = GaussianStatistics.of(x)
    mean, covariance = fifteen_digits(x)
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.mean, mean, rtol=1e-15)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-14, atol=1e-15)


@pytest.mark.usefixtures("sizes")
def test_results_are_copies_and_more_may_come_after_them() -> None:
    found = GaussianStatistics.of(features())
    found.mean.zero_()
    found.covariance.zero_()
    found.update(features() + 1)
    whole = GaussianStatistics.of(np.concatenate([features(), features() + 1]))
    assert torch.equal(found.mean, whole.mean)
    assert torch.equal(found.covariance, whole.covariance)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("dim", [7, 300, 640])
def test_the_number_of_threads_changes_no_bit(dim: int, threads: int) -> None:
    x = np.exp(np.random.default_rng(0).normal(size=(600, dim))).astype(np.float32)
    before = torch.get_num_threads()
    found = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            found.append(GaussianStatistics.of(x))
            means, covariances = zip(*((each.mean, each.covariance) for each in found), strict=True)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*means)
    assert torch.equal(*covariances)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_and_nothing_is_added(bad: float) -> None:
    found = GaussianStatistics.of(features())
    mean = found.mean
    batch = torch.zeros(3, 7)
    batch[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        found.update(batch)
    assert found.count == 257
    assert torch.equal(found.mean, mean)


def test_mistakes_are_named() -> None:
    found = GaussianStatistics(7)
    found.update(torch.zeros(0, 7))
    with pytest.raises(ValueError, match="at least 1 image"):
        _ = found.mean
    found.update(torch.zeros(1, 7))
    with pytest.raises(ValueError, match="at least 2 images"):
        _ = found.covariance
    with pytest.raises(ValueError, match="7 features can't take 8"):
        found.update(torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"shape \(N, D\)"):
        found.update(torch.zeros(7))
    with pytest.raises(ValueError, match="at least 1 feature"):
        GaussianStatistics(0)


# Inception Score


def logits(count: int = 203, classes: int = 9) -> torch.Tensor:
    return torch.from_numpy(3 * np.random.default_rng(1).normal(size=(count, classes)))


@pytest.mark.parametrize(("seed", "splits"), [(None, 10), (2020, 10), (5, 1), (None, 3)])
@pytest.mark.parametrize("size", [1, 50, 203])
def test_the_inception_score_equals_torch_fidelity_for_any_parts(seed: int | None, splits: int, size: int) -> None:
    x = logits()
    expected = isc_features_to_metric(x, splits, seed is not None, seed)
    places = inception_splits(len(x), splits, seed)
    found = InceptionStatistics(9, splits)
    for part, split in zip(x.split(size), places.split(size), strict=True):
        found.update(part, split)
    assert found.score() == pytest.approx(tuple(expected.values()), rel=1e-12)


def test_the_inception_score_takes_certain_logits_and_names_mistakes() -> None:
    found = InceptionStatistics(4, 1)
    found.update(1000 * torch.eye(4), torch.zeros(4, dtype=torch.int64))
    assert found.score() == pytest.approx((4, 0))
    with pytest.raises(ValueError, match="must be finite"):
        found.update(torch.full((1, 4), torch.nan), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(N, 4\), not \(1, 5\)"):
        found.update(torch.zeros(1, 5), torch.zeros(1, dtype=torch.int64))
    few = InceptionStatistics(4, 10)
    few.update(torch.eye(4), inception_splits(4, 10, None))
    with pytest.raises(ValueError, match="10 splits needs at least 10 images, not 4"):
        few.score()
    with pytest.raises(ValueError, match="at least 2 classes"):
        InceptionStatistics(1, 10)
