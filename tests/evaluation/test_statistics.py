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


@pytest.mark.parametrize("cuts", [[], [1], [100], [3, 3, 4, 200], list(range(1, 257))])
def test_any_split_and_order_gives_numpys_mean_and_covariance(cuts: list[int]) -> None:
    x = features()
    parts = np.split(x, cuts)
    for order in (parts, parts[::-1]):
        streamed, merged = GaussianStatistics(7), GaussianStatistics(7)
        for part in order:
            streamed.update(torch.from_numpy(part))
            merged.merge(GaussianStatistics.of(part))
        for found in (streamed, merged):
            assert found.count == len(x)
            np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-13)
            np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-12, atol=1e-12)


def test_features_far_from_zero_lose_no_digits() -> None:
    x = features(offset=0.0)
    shifted = x + 2.0**30  # a plain sum of outer products keeps no digit of the covariance here
    x = shifted - 2.0**30
    streamed = GaussianStatistics(7)
    for part in np.split(shifted, [1, 50, 51]):
        streamed.update(part)
    np.testing.assert_allclose(streamed.covariance, np.cov(x, rowvar=False), rtol=1e-6, atol=1e-6)


def test_float32_features_are_summed_in_float64_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    x = features().astype(np.float32)
    monkeypatch.setattr(statistics, "BLOCK_ROWS", 10)
    found = GaussianStatistics.of(x)
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-12, atol=1e-12)


def test_merge_leaves_the_other_alone_and_results_are_copies() -> None:
    one, two = GaussianStatistics.of(features()), GaussianStatistics.of(features() + 1)
    before = two.covariance
    one.merge(two)
    one.mean.zero_()
    one.covariance.zero_()
    assert torch.equal(two.covariance, before)
    assert one.mean.abs().min() > 0
    assert one.covariance.diagonal().min() > 0


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
    with pytest.raises(ValueError, match="7 features can't take 8"):
        found.merge(GaussianStatistics(8))
    with pytest.raises(ValueError, match=r"shape \(N, D\)"):
        found.update(torch.zeros(7))
    with pytest.raises(ValueError, match="at least 1 feature"):
        GaussianStatistics(0)


def test_sums_hold_all_that_statistics_are() -> None:
    one = GaussianStatistics.of(features())
    two = GaussianStatistics.from_sums(one.sums(), 7)
    assert (two.count, two.dim) == (257, 7)
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.covariance, two.covariance)
    two.update(features())
    assert torch.equal(one.covariance, GaussianStatistics.of(features()).covariance)


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
