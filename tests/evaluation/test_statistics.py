"""Streamed statistics against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maxgan.evaluation import statistics
from maxgan.evaluation.statistics import GaussianStatistics


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
